// SPDX-License-Identifier: MIT
// Reads LoRA adapters in llama.cpp's files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"
#include "lora/io/gguf_adapter.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/gguf_values.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

namespace detail {

/// Builds an adapter from a parsed file.
class GgufAdapterDecoder {
 public:
  GgufAdapterDecoder(GgufContents contents, std::string_view label, const GgufOptions& options)
      : contents_(std::move(contents)), label_(label), options_(options) {
    check_gguf_heads(operation, options);
  }

  [[nodiscard]] GgufAdapter decode() && {
    GgufAdapter adapter;
    require_text("general.type", "adapter");
    require_text("adapter.type", "lora");
    adapter.architecture = text("general.architecture");
    if (adapter.architecture.empty()) refuse("general.architecture", "a name", "an empty one");
    refuse_activated_lora(operation, label_, contents_.metadata);
    const double alpha = read_alpha();
    pair_factors(adapter.weights);
    for (const auto& [stem, pair] : pairs_) add_module(stem, pair, alpha, adapter.weights);
    adapter.metadata = std::move(contents_.metadata);
    return adapter;
  }

 private:
  static constexpr std::string_view operation = "read_gguf_adapter";

  struct Pair {
    const GgufTensor* a = nullptr;
    const GgufTensor* b = nullptr;
  };

  [[noreturn]] void refuse(std::string_view what, std::string_view expected, std::string_view got) const {
    std::string argument(label_);
    argument.append(", ").append(what);
    throw FormatError(operation, argument, expected, got);
  }

  [[nodiscard]] std::string text(std::string_view key) const {
    const auto found = contents_.metadata.find(key);
    if (found == contents_.metadata.end()) refuse(key, "a string", "none");
    const auto* value = std::get_if<std::string>(&found->second);
    if (value == nullptr) refuse(key, "a string", "another type");
    return *value;
  }

  void require_text(std::string_view key, std::string_view expected) const {
    const std::string got = text(key);
    if (got != expected) refuse(key, in_quotes(expected), in_quotes(got));
  }

  /// Without alpha, or with alpha 0, llama.cpp does not scale.
  [[nodiscard]] double read_alpha() const {
    const auto found = contents_.metadata.find("adapter.lora.alpha");
    if (found == contents_.metadata.end()) return 0.0;
    const auto* value = std::get_if<float>(&found->second);
    if (value == nullptr) refuse("adapter.lora.alpha", "a float", "another type");
    if (!is_finite(*value)) refuse("adapter.lora.alpha", "a finite number", number_text(*value));
    return *value;
  }

  void pair_factors(AdapterWeights<float>& weights) {
    for (const GgufTensor& tensor : contents_.tensors) {
      const std::string_view name = tensor.name;
      const auto stem = [&](std::string_view suffix) { return name.substr(0, name.size() - suffix.size()); };
      if (name.ends_with(gguf_suffix_a)) {
        pairs_[stem(gguf_suffix_a)].a = &tensor;
      } else if (name.ends_with(gguf_suffix_b)) {
        pairs_[stem(gguf_suffix_b)].b = &tensor;
      } else if (name.ends_with(gguf_norm_suffix)) {
        add_norm(tensor, weights);
      } else {
        refuse("tensor " + in_quotes(name), "a name that ends in .weight.lora_a, .weight.lora_b or _norm.weight",
               "another");
      }
    }
  }

  void add_norm(const GgufTensor& tensor, AdapterWeights<float>& weights) const {
    if (tensor.extents[1] != 1 || tensor.extents[2] != 1 || tensor.extents[3] != 1 || tensor.size() == 0) {
      refuse("tensor " + in_quotes(tensor.name), "one dimension of 1 or more elements", "another shape");
    }
    SavedTensor<float> saved{{static_cast<Index>(tensor.extents[0])},
                             std::vector<float>(static_cast<std::size_t>(tensor.extents[0]))};
    read_gguf_rows(tensor, 0, 1, saved.values);
    weights.saved.emplace(tensor.name, std::move(saved));
  }

  [[nodiscard]] Matrix<float> matrix(const GgufTensor& tensor) const {
    if (tensor.extents[2] != 1 || tensor.extents[3] != 1 || tensor.size() == 0) {
      refuse("tensor " + in_quotes(tensor.name), "two dimensions of 1 or more", "another shape");
    }
    return read_gguf_tensor(tensor);
  }

  void add_module(std::string_view stem, const Pair& pair, double alpha, AdapterWeights<float>& weights) const {
    const std::string what = gguf_module(stem);
    if (pair.a == nullptr || pair.b == nullptr) {
      refuse(what, "lora_a and lora_b", pair.a == nullptr ? "lora_b alone" : "lora_a alone");
    }
    ModuleWeights<float> module;
    module.A = matrix(*pair.a);
    module.B = matrix(*pair.b);
    if (is_gguf_embedding(stem)) {
      module.kind = ModuleKind::embedding;
      module.A = Matrix<float>(module.A.transpose());
    }
    if (module.A.rows() != module.B.cols()) {
      refuse(what, "one rank",
             std::to_string(module.A.rows()) + " in lora_a, " + std::to_string(module.B.cols()) + " in lora_b");
    }
    module.scaling = alpha == 0.0 ? 1.0 : alpha / static_cast<double>(module.rank());
    permute_rope_rows(operation, what, gguf_rope_heads(stem, options_), false, module.B);
    const std::string name = options_.rename ? options_.rename(stem) : std::string(stem);
    if (!weights.modules.emplace(name, std::move(module)).second) {
      throw ConfigError(operation, "rename", "a new name for every module", in_quotes(name) + " twice");
    }
  }

  GgufContents contents_;
  std::string_view label_;
  const GgufOptions& options_;
  std::map<std::string_view, Pair> pairs_;
};

}  // namespace detail

/// The adapter in a whole GGUF file in the caller's memory; `label` names it in errors. See read_gguf_adapter.
/// Pure and reentrant. @throws FormatError, ConfigError, ShapeError, std::bad_alloc.
[[nodiscard]] inline GgufAdapter parse_gguf_adapter(std::span<const std::byte> bytes, const GgufOptions& options = {},
                                                    std::string_view label = "bytes in memory") {
  return detail::GgufAdapterDecoder(parse_gguf(bytes, label), label, options).decode();
}

/// Reads an adapter that llama.cpp can load. Tensors "<module>.weight.lora_a" (rank x in_features) and
/// "<module>.weight.lora_b" (out_features x rank) make a module `<module>`, renamed by `options.rename`, with scaling =
/// alpha / rank, or 1 if the file has no alpha or alpha 0. "token_embd" is an embedding, whose lora_a is num_embeddings
/// x rank in the file. Factors of any type are decoded, also those in blocks, such as convert_lora_to_gguf.py --outtype
/// q8_0 writes. Tensors "*_norm.weight", which llama.cpp does not apply, become saved tensors.
/// @throws IoError when the file cannot be read; FormatError when it breaks a rule of the format (parse_gguf), is not a
/// LoRA adapter, or has a factor without its partner, or with a different rank or shape;
/// ShapeError when `rope_heads` do not divide the rows; ConfigError for options out of range or names that coincide;
/// whatever `rename` throws; std::bad_alloc. Source: ggml-org/llama.cpp, src/llama-adapter.cpp and
/// convert_lora_to_gguf.py.
[[nodiscard]] inline GgufAdapter read_gguf_adapter(const std::filesystem::path& path, const GgufOptions& options = {}) {
  const MappedFile file(path);
  return parse_gguf_adapter(file.bytes(), options, path_text(path));
}

}  // namespace lora
