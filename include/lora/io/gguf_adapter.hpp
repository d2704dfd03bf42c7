// SPDX-License-Identifier: MIT
// What the reader and the writer of GGUF adapters share: the adapter, the options, the order of rows.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/gguf_value.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

/// The contents of a file. The writer sets "general.architecture", "general.type", "adapter.type" and
/// "adapter.lora.alpha" itself and ignores these keys in `metadata`.
struct GgufAdapter {
  AdapterWeights<float> weights;  ///< the adapter's modules, by PEFT's names
  GgufMetadata metadata;          ///< every value in the file, by key
  std::string architecture;       ///< of the base model: "llama", "qwen2", ...
};

/// Attention heads of the base model, for the order of rows that rotary embeddings need; see GgufOptions::rope_heads.
struct GgufHeads {
  Index heads = 0;     ///< num_attention_heads
  Index heads_kv = 0;  ///< num_key_value_heads
};

/// How modules are stored in a file. The same `rope_heads` undo on reading what they do on writing; `rename` maps
/// module to file names when writing (llama_cpp_name) and file to module names when reading (transformers_name).
struct GgufOptions {
  /// New name of a module, without ".weight"; without this function names stay as they are.
  std::function<std::string(std::string_view)> rename = {};
  /// In llama.cpp's "llama" architecture (Llama, Mistral) rotary embeddings pair neighbouring rows of the query and key
  /// weights, where transformers pairs the first half of a head with the second. With this option the rows of B of
  /// modules called *.attn_q and *.attn_k in the file are permuted between the two orders; within a head of n rows, row
  /// c * n/2 + j of transformers is row 2 j + c of llama.cpp (c = 0, 1). Adapters trained in transformers need it for
  /// that architecture, and must not use it for others (qwen2, ...).
  std::optional<GgufHeads> rope_heads = std::nullopt;
  /// Writing: element type of the factors, F32, F16 or BF16.
  Dtype dtype = Dtype::F32;
  /// Writing: the file's single alpha, not 0. By default, that of the first module whose scaling is not 0.
  std::optional<double> alpha = std::nullopt;
};

namespace detail {

inline constexpr std::string_view gguf_suffix_a = ".weight.lora_a";
inline constexpr std::string_view gguf_suffix_b = ".weight.lora_b";
inline constexpr std::string_view gguf_norm_suffix = "_norm.weight";

/// An activated LoRA (aLoRA), which llama.cpp applies only from these tokens on, must not be taken for a LoRA.
inline void refuse_activated_lora(std::string_view operation, std::string_view argument, const GgufMetadata& metadata) {
  constexpr std::string_view key = "adapter.alora.invocation_tokens";
  if (!metadata.contains(key)) return;
  throw ConfigError(operation, argument, "an adapter that is always active", "one with " + std::string(key));
}

/// llama.cpp finds token embeddings by name, and stores their A transposed.
[[nodiscard]] inline bool is_gguf_embedding(std::string_view stem) noexcept { return stem.ends_with("token_embd"); }

/// The number of heads whose rows rotary embeddings order; 0 for a module without rotary embeddings.
[[nodiscard]] inline Index gguf_rope_heads(std::string_view stem, const GgufOptions& options) noexcept {
  if (!options.rope_heads) return 0;
  if (stem.ends_with(".attn_q")) return options.rope_heads->heads;
  return stem.ends_with(".attn_k") ? options.rope_heads->heads_kv : 0;
}

inline void check_gguf_heads(std::string_view operation, const GgufOptions& options) {
  if (!options.rope_heads || (options.rope_heads->heads > 0 && options.rope_heads->heads_kv > 0)) return;
  throw ConfigError(operation, "rope_heads", "1 or more heads and heads_kv",
                    std::to_string(options.rope_heads->heads) + " and " + std::to_string(options.rope_heads->heads_kv));
}

/// Permutes the rows of B from transformers' order to llama.cpp's, or back.
inline void permute_rope_rows(std::string_view operation, const std::string& module, Index heads, bool to_llama_cpp,
                              Matrix<float>& b) {
  if (heads == 0) return;
  if (heads > b.rows() / 2 || b.rows() % (2 * heads) != 0) {
    throw ShapeError(operation, module + ", B", "rows that " + std::to_string(heads) + " heads share in pairs",
                     std::to_string(b.rows()));
  }
  const Index half = b.rows() / heads / 2;
  Matrix<float> permuted(b.rows(), b.cols());
  for (Index row = 0; row < b.rows(); ++row) {
    const Index head = row / (2 * half) * (2 * half);
    const Index within = row - head;
    const Index other = head + within % half * 2 + within / half;
    permuted.row(to_llama_cpp ? other : row) = b.row(to_llama_cpp ? row : other);
  }
  b = std::move(permuted);
}

[[nodiscard]] inline std::string gguf_module(std::string_view name) { return "module " + in_quotes(name); }

}  // namespace detail

}  // namespace lora
