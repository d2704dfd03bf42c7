// SPDX-License-Identifier: MIT
// Names of Llama-like models' modules in Hugging Face's transformers and in llama.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/io/text.hpp"

namespace lora {

namespace detail {

using NamePair = std::pair<std::string_view, std::string_view>;  // transformers, llama.cpp

inline constexpr std::array<NamePair, 7> gguf_block_names{{{"self_attn.q_proj", "attn_q"},
                                                           {"self_attn.k_proj", "attn_k"},
                                                           {"self_attn.v_proj", "attn_v"},
                                                           {"self_attn.o_proj", "attn_output"},
                                                           {"mlp.gate_proj", "ffn_gate"},
                                                           {"mlp.up_proj", "ffn_up"},
                                                           {"mlp.down_proj", "ffn_down"}}};

inline constexpr std::array<NamePair, 2> gguf_outer_names{
    {{"model.embed_tokens", "token_embd"}, {"lm_head", "output"}}};

/// "<prefix><digits>.<rest>" as digits and rest.
[[nodiscard]] inline std::optional<NamePair> split_block(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const auto digits = std::min(name.find_first_not_of("0123456789"), name.size());
  if (digits == 0 || digits == name.size() || name[digits] != '.') return std::nullopt;
  return NamePair{name.substr(0, digits), name.substr(digits + 1)};
}

}  // namespace detail

/// The name of a module in llama.cpp's files, without ".weight", for Llama-like architectures (llama, mistral, qwen2
/// and others with the same module names): "model.layers.3.self_attn.q_proj" -> "blk.3.attn_q", "model.embed_tokens" ->
/// "token_embd", "lm_head" -> "output". A leading "base_model.model.", which PEFT writes, is ignored.
/// @throws ConfigError naming a module that is not one of these.
/// Source: llama.cpp, gguf-py/gguf/tensor_mapping.py.
[[nodiscard]] inline std::string llama_cpp_name(std::string_view module) {
  std::string_view name = module;
  constexpr std::string_view peft_prefix = "base_model.model.";
  if (name.starts_with(peft_prefix)) name.remove_prefix(peft_prefix.size());
  for (const auto& [theirs, ours] : detail::gguf_outer_names) {
    if (name == theirs) return std::string(ours);
  }
  if (const auto block = detail::split_block(name, "model.layers.")) {
    for (const auto& [theirs, ours] : detail::gguf_block_names) {
      if (block->second == theirs) return std::string("blk.").append(block->first).append(".").append(ours);
    }
  }
  throw ConfigError("llama_cpp_name", "module " + in_quotes(module),
                    "a projection of attention or MLP in model.layers.N, model.embed_tokens or lm_head",
                    "another name");
}

/// The inverse: "blk.3.attn_q" -> "model.layers.3.self_attn.q_proj". @throws ConfigError naming an unknown name.
[[nodiscard]] inline std::string transformers_name(std::string_view name) {
  for (const auto& [theirs, ours] : detail::gguf_outer_names) {
    if (name == ours) return std::string(theirs);
  }
  if (const auto block = detail::split_block(name, "blk.")) {
    for (const auto& [theirs, ours] : detail::gguf_block_names) {
      if (block->second == ours) return std::string("model.layers.").append(block->first).append(".").append(theirs);
    }
  }
  throw ConfigError("transformers_name", "module " + in_quotes(name),
                    "a projection of attention or feed-forward in blk.N, token_embd or output", "another name");
}

}  // namespace lora
