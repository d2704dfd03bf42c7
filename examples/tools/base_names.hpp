// SPDX-License-Identifier: MIT
// Reads an adapter for a checkpoint of another format: its modules get the checkpoint's names and order of rows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "lora/core/error.hpp"
#include "lora/io/gguf.hpp"

namespace lora::tools {

namespace detail {

inline constexpr std::array<std::string_view, 10> architectures_without_permutation{
    "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3", "starcoder2", "stablelm"};

/// Whether llama.cpp stores the query and key of this architecture with their rows permuted; nothing if the tool does
/// not know it.
[[nodiscard]] inline std::optional<bool> permutes_rows(std::string_view architecture) {
  const auto& plain = architectures_without_permutation;
  if (architecture == "llama") return true;
  if (std::find(plain.begin(), plain.end(), architecture) != plain.end()) return false;
  return std::nullopt;
}

[[nodiscard]] inline std::string known_orders_of_rows() {
  std::string known = "one whose order of rows is known: llama";
  for (const auto name : architectures_without_permutation) known.append(", ").append(name);
  return known;
}

/// @throws ConfigError for an architecture that the tool does not know
[[nodiscard]] inline bool merge_permutes_rows(const std::string& architecture) {
  if (const auto permutes = permutes_rows(architecture)) return *permutes;
  throw ConfigError("merge", "general.architecture", known_orders_of_rows(), in_quotes(architecture));
}

/// Whether a query or key is among the modules, by the ends of their names.
[[nodiscard]] inline bool has_rotary_rows(const AdapterWeights<float>& weights, std::string_view query,
                                          std::string_view key) {
  return std::any_of(weights.modules.begin(), weights.modules.end(),
                     [&](const auto& entry) { return entry.first.ends_with(query) || entry.first.ends_with(key); });
}

/// Names that are llama.cpp's become transformers', others stay.
[[nodiscard]] inline std::string transformers_name_if_any(std::string_view name) {
  const bool llama_cpp = name.starts_with("blk.") || name == "token_embd" || name == "output";
  return llama_cpp ? transformers_name(name) : std::string(name);
}

inline constexpr Index most_heads = Index{1} << 32;

template <class T>
inline constexpr bool is_count = std::is_integral_v<T> && !std::is_same_v<T, bool>;

/// The one number that a value of the metadata says: an integer, or a list that repeats one. Nothing for others.
[[nodiscard]] inline std::optional<Index> one_number(const GgufValue& value) {
  const auto counted = [](auto number) -> std::optional<Index> {
    const bool counts = std::cmp_greater(number, 0) && std::cmp_less_equal(number, most_heads);
    return counts ? std::optional(static_cast<Index>(number)) : std::nullopt;
  };
  return std::visit(
      [&]<class T>(const T& held) -> std::optional<Index> {
        if constexpr (is_count<T>) {
          return counted(held);
        } else if constexpr (requires {
                               requires is_count<typename T::value_type> && !std::is_same_v<T, std::string>;
                             }) {
          const bool repeats = !held.empty() && std::equal(held.begin() + 1, held.end(), held.begin());
          return repeats ? counted(held.front()) : std::nullopt;
        } else {
          return std::nullopt;
        }
      },
      value);
}

/// A number of heads in the metadata; nothing if the key is not there. @throws FormatError for what is no number
[[nodiscard]] inline std::optional<Index> number_of_heads(const GgufFile& model, const std::string& key) {
  const auto found = model.contents.metadata.find(key);
  if (found == model.contents.metadata.end()) return std::nullopt;
  if (const auto number = one_number(found->second)) return number;
  throw FormatError("merge", model.label + ", " + key, "one number of heads for all layers, 1 or more",
                    "another value");
}

[[nodiscard]] inline GgufHeads heads_of_model(const GgufFile& model) {
  const std::string prefix = model.text("general.architecture") + ".attention.";
  const auto heads = number_of_heads(model, prefix + "head_count");
  if (!heads) throw FormatError("merge", model.label, prefix + "head_count", "none");
  return {*heads, number_of_heads(model, prefix + "head_count_kv").value_or(*heads)};
}

/// A number of heads in config.json; nothing if the key is not there, or null.
/// @throws FormatError for what is no number
[[nodiscard]] inline std::optional<Index> number_of_heads(const nlohmann::json& config, const char* key) {
  const auto found = config.is_object() ? config.find(key) : config.end();
  if (!config.is_object() || found == config.end() || found->is_null()) return std::nullopt;
  const auto number = found->is_number_unsigned() ? found->template get<std::uint64_t>() : 0;
  if (number > 0 && std::cmp_less_equal(number, most_heads)) return static_cast<Index>(number);
  throw FormatError("merge", std::string("config.json, ") + key, "a number of heads, 1 or more", "another value");
}

[[nodiscard]] inline std::optional<GgufHeads> heads_of_config(const nlohmann::json& config) {
  const auto heads = number_of_heads(config, "num_attention_heads");
  if (!heads) return std::nullopt;
  return GgufHeads{*heads, number_of_heads(config, "num_key_value_heads").value_or(*heads)};
}

/// Takes the magnitudes of DoRA out of `weights`, which GGUF adapters cannot hold: by the names in the file, and in the
/// order of its rows.
[[nodiscard]] inline std::map<std::string, RowVector<float>> take_magnitudes(AdapterWeights<float>& weights,
                                                                             const GgufOptions& options) {
  std::map<std::string, RowVector<float>> magnitudes;
  for (auto& [name, module] : weights.modules) {
    if (module.magnitude.size() == 0) continue;
    const std::string stem = options.rename(name);
    Matrix<float> column = module.magnitude.transpose();
    lora::detail::permute_rope_rows("merge", lora::detail::gguf_module(name),
                                    lora::detail::gguf_rope_heads(stem, options), true, column);
    magnitudes[stem] = column.transpose();
    module.magnitude.resize(0);
  }
  return magnitudes;
}

[[nodiscard]] inline AdapterFile with_names_of(const GgufFile& model, AdapterFile adapter) {
  GgufOptions options;
  options.rename = llama_cpp_name;
  const std::string architecture = model.text("general.architecture");
  const bool permuted = has_rotary_rows(adapter.weights, ".q_proj", ".k_proj") && merge_permutes_rows(architecture);
  if (permuted) options.rope_heads = heads_of_model(model);
  const auto magnitudes = take_magnitudes(adapter.weights, options);
  const auto bytes = gguf_adapter_bytes({std::move(adapter.weights), {}, architecture}, options);
  adapter.weights = parse_gguf_adapter(bytes).weights;
  for (const auto& [stem, magnitude] : magnitudes) adapter.weights.modules.at(stem).magnitude = magnitude;
  return adapter;
}

}  // namespace detail

/// Reads an adapter so that its modules have the names of `base`. `heads`, where given, is taken in place of what
/// config.json says. Adapters and checkpoints in GGUF and in Hugging Face's formats go together by the names of
/// Llama-like models; between GGUF and GGUF, or outside GGUF, names stay.
/// @throws IoError, FormatError; ConfigError for names, architectures and options that have no counterpart
[[nodiscard]] inline AdapterFile read_adapter_for(const Checkpoint& base, const std::filesystem::path& path,
                                                  const std::string& name, const std::optional<GgufHeads>& heads) {
  if (!is_gguf(path)) {
    AdapterFile adapter = read_adapter(path, name);
    return base.gguf() == nullptr ? adapter : detail::with_names_of(*base.gguf(), std::move(adapter));
  }
  AdapterFile adapter = read_adapter(path, name);
  if (base.gguf() == nullptr) {
    GgufOptions options;
    options.rename = detail::transformers_name_if_any;
    // Names of transformers come with rows in its order.
    if (detail::has_rotary_rows(adapter.weights, ".attn_q", ".attn_k") &&
        detail::merge_permutes_rows(adapter.architecture)) {
      options.rope_heads = heads ? heads : detail::heads_of_config(base.config());
      if (!options.rope_heads) {
        throw ConfigError("merge", "--heads", "the number of attention heads, to order the rows of query and key",
                          "none, and no config.json beside the checkpoint that tells");
      }
    }
    adapter = read_adapter(path, name, options);
  }
  leave_out_norms(adapter);
  return adapter;
}

}  // namespace lora::tools
