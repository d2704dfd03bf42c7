// SPDX-License-Identifier: MIT
// Writes LoRA adapters in the form llama.cpp reads.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
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
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/gguf_adapter.hpp"
#include "lora/io/gguf_encoder.hpp"
#include "lora/io/gguf_value.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

namespace detail {

/// The file of an adapter, in memory.
class GgufAdapterEncoder {
 public:
  GgufAdapterEncoder(const GgufAdapter& adapter, const GgufOptions& options) : adapter_(adapter), options_(options) {
    if (adapter.architecture.empty() || utf8_prefix(adapter.architecture) != adapter.architecture.size()) {
      throw ConfigError(operation, "architecture", "a name as \"llama\"", in_quotes(adapter.architecture));
    }
    if (options.dtype != Dtype::F32 && options.dtype != Dtype::F16 && options.dtype != Dtype::BF16) {
      throw ConfigError(operation, "dtype", "F32, F16 or BF16", name_of(options.dtype));
    }
    check_gguf_heads(operation, options);
    refuse_activated_lora(operation, "metadata", adapter.metadata);
    for (const auto& [name, module] : adapter.weights.modules) check_module(name, module);
    alpha_ = file_alpha();
  }

  [[nodiscard]] std::vector<std::byte> encode() const {
    GgufEncoder file(alignment());
    add_metadata(file);
    for (const auto& [stem, name] : names_in_file()) add_module(*name, stem, adapter_.weights.modules.at(*name), file);
    for (const auto& [name, tensor] : adapter_.weights.saved) add_norm(name, tensor, file);
    return std::move(file).finish();
  }

 private:
  static constexpr std::string_view operation = "write_gguf_adapter";

  [[nodiscard]] std::map<std::string, const std::string*> names_in_file() const {
    std::map<std::string, const std::string*> names;
    for (const auto& entry : adapter_.weights.modules) {
      const std::string stem = options_.rename ? options_.rename(entry.first) : entry.first;
      const auto [other, is_new] = names.emplace(stem, &entry.first);
      if (is_new) continue;
      throw ConfigError(operation, gguf_module(entry.first), "a name in the file of its own",
                        in_quotes(stem) + ", as " + in_quotes(*other->second));
    }
    return names;
  }

  static void check_module(const std::string& name, const ModuleWeights<float>& module) {
    const auto refuse = [&](std::string_view got) {
      throw ConfigError(operation, gguf_module(name), "what GGUF can hold: factors of a linear layer or an embedding",
                        got);
    };
    if (module.kind != ModuleKind::linear && module.kind != ModuleKind::embedding) refuse("a convolution");
    if (module.magnitude.size() > 0) refuse("DoRA");
    if (module.qalora_group_size > 0) refuse("QALoRA");
    if (module.lora_bias.size() > 0) refuse("a lora_bias");
    if (module.rank() == 0) refuse("rank 0");
    check_shape(operation, gguf_module(name) + ", B", module.B, -1, module.rank());
    if (module.A.cols() == 0 || module.B.rows() == 0) refuse("a factor without elements");
    if (!is_finite(module.scaling)) {
      throw ConfigError(operation, gguf_module(name) + ", scaling", "a finite number", number_text(module.scaling));
    }
  }

  [[nodiscard]] static double alpha_of(const ModuleWeights<float>& module) noexcept {
    return module.scaling * static_cast<double>(module.rank());
  }

  [[nodiscard]] float file_alpha() const {
    double alpha = options_.alpha.value_or(0.0);
    if (!options_.alpha) {
      for (const auto& entry : adapter_.weights.modules) {
        if (alpha == 0.0) alpha = alpha_of(entry.second);
      }
      if (static_cast<float>(alpha) == 0.0F) alpha = 1.0;
    }
    const auto stored = static_cast<float>(alpha);
    if (is_finite(stored) && stored != 0.0F) return stored;
    throw ConfigError(operation, "alpha", "a finite number other than 0, as float", number_text(alpha));
  }

  [[nodiscard]] std::size_t alignment() const {
    const auto found = adapter_.metadata.find("general.alignment");
    if (found == adapter_.metadata.end()) return gguf_default_alignment;
    const auto* value = std::get_if<std::uint32_t>(&found->second);
    if (value != nullptr && is_gguf_alignment(*value)) return *value;
    throw ConfigError(operation, "general.alignment", "a power of two up to 65536, as u32",
                      value == nullptr ? "another type" : std::to_string(*value));
  }

  static void check_text(std::string_view what, std::string_view text) {
    if (utf8_prefix(text) == text.size()) return;
    throw ConfigError(operation, what, "UTF-8", in_quotes(text));
  }

  void add_metadata(GgufEncoder& file) const {
    const std::array<std::pair<std::string_view, GgufValue>, 4> own{{{"general.architecture", adapter_.architecture},
                                                                     {"general.type", std::string("adapter")},
                                                                     {"adapter.type", std::string("lora")},
                                                                     {"adapter.lora.alpha", alpha_}}};
    for (const auto& [key, value] : own) file.add_metadata(key, value);
    for (const auto& [key, value] : adapter_.metadata) {
      if (std::any_of(own.begin(), own.end(), [&key = key](const auto& one) { return one.first == key; })) continue;
      if (key.empty()) throw ConfigError(operation, "metadata", "a key", "an empty one");
      check_text("metadata key", key);
      file.add_metadata(key, value);
    }
  }

  void add_module(const std::string& name, const std::string& stem, const ModuleWeights<float>& module,
                  GgufEncoder& file) const {
    const bool embedding = module.kind == ModuleKind::embedding;
    if (embedding != is_gguf_embedding(stem)) {
      throw ConfigError(operation, gguf_module(name),
                        embedding ? "an embedding to be called token_embd" : "a linear module to be called otherwise",
                        in_quotes(stem));
    }
    const Matrix<float> a = embedding ? Matrix<float>(module.A.transpose()) : module.A;
    Matrix<float> b = module.B;
    fold(module, b);
    permute_rope_rows(operation, gguf_module(name), gguf_rope_heads(stem, options_), true, b);
    add_matrix(name, stem + std::string(gguf_suffix_a), a, file);
    add_matrix(name, stem + std::string(gguf_suffix_b), b, file);
  }

  /// A module whose own alpha equals the file's keeps the bits of its B.
  void fold(const ModuleWeights<float>& module, Matrix<float>& b) const {
    if (static_cast<float>(alpha_of(module)) == alpha_) return;
    const double factor = alpha_of(module) / static_cast<double>(alpha_);
    b = (factor * b.cast<double>()).cast<float>();
  }

  void add_matrix(const std::string& name, const std::string& tensor, const Matrix<float>& values,
                  GgufEncoder& file) const {
    const std::array<std::uint64_t, 2> extents{static_cast<std::uint64_t>(values.cols()),
                                               static_cast<std::uint64_t>(values.rows())};
    add_tensor(gguf_module(name), tensor, extents, {values.data(), static_cast<std::size_t>(values.size())},
               options_.dtype, file);
  }

  void add_norm(const std::string& name, const SavedTensor<float>& tensor, GgufEncoder& file) const {
    const std::string label = "tensor " + in_quotes(name);
    if (!name.ends_with(gguf_norm_suffix)) {
      throw ConfigError(operation, label, "what GGUF adapters can hold beside factors: *_norm.weight",
                        "another tensor to replace");
    }
    const auto size = static_cast<Index>(tensor.values.size());
    if (tensor.shape.size() != 1 || tensor.shape.front() != size || size == 0) {
      throw ShapeError(operation, label, "one dimension of 1 or more elements, as many as there are values",
                       shape_text(tensor.shape));
    }
    const std::array<std::uint64_t, 1> extents{tensor.values.size()};
    add_tensor(label, name, extents, tensor.values, Dtype::F32, file);
  }

  static void add_tensor(const std::string& label, const std::string& name, std::span<const std::uint64_t> extents,
                         std::span<const float> values, Dtype dtype, GgufEncoder& file) {
    check_text(label + ", name", name);
    if (name.size() >= gguf_name_limit || name.find('\0') != std::string::npos) {
      throw ConfigError(operation, label, "a name in the file of less than 64 bytes, none of them 0", in_quotes(name));
    }
    std::byte* const bytes =
        file.add_tensor(name, extents, *gguf_type_of_dtype(dtype), values.size() * (bits_of(dtype) / 8));
    lora::encode<float>(dtype, values, bytes);
    std::vector<float> stored(values.size());
    decode<float>(dtype, bytes, stored);
    if (std::all_of(stored.begin(), stored.end(), [](float value) { return is_finite(value); })) return;
    throw StateError(operation, label, "elements that are finite in " + std::string(name_of(dtype)), "one that is not");
  }

  const GgufAdapter& adapter_;
  const GgufOptions& options_;
  float alpha_ = 1;
};

}  // namespace detail

/// The bytes that write_gguf_adapter writes. Pure and reentrant.
[[nodiscard]] inline std::vector<std::byte> gguf_adapter_bytes(const GgufAdapter& adapter,
                                                               const GgufOptions& options = {}) {
  return detail::GgufAdapterEncoder(adapter, options).encode();
}

/// Writes an adapter in the form llama.cpp reads, whole or not at all. The format has one alpha for all modules and
/// scales by alpha / rank; any other scaling of a module (rsLoRA, patterns of alpha and rank) is multiplied into its B:
///   B' = B * scaling * rank / alpha.
/// Modules are sorted by their names in the file. Holds the file in memory. Reentrant.
/// @throws ConfigError naming the module or tensor that the format cannot hold (convolutions, DoRA, QALoRA, lora_bias,
/// rank 0, replaced tensors other than "*_norm.weight", names of 50 bytes or more after renaming), or an option out of
/// range; ShapeError when factors, or `rope_heads`, do not fit; StateError when an element is not finite as stored;
/// IoError; whatever `rename` throws; std::bad_alloc. The file at `path` is unchanged then.
inline void write_gguf_adapter(const std::filesystem::path& path, const GgufAdapter& adapter,
                               const GgufOptions& options = {}) {
  const std::vector<std::byte> bytes = gguf_adapter_bytes(adapter, options);
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

}  // namespace lora
