// SPDX-License-Identifier: MIT
// What the name of a module of a checkpoint says about it.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace lora::tools {

/// "c" of "a.b.c"
[[nodiscard]] inline std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

/// "a.b" of "a.b.bias"; the whole model is "".
[[nodiscard]] inline std::string module_of_parameter(std::string_view name) {
  const auto dot = name.rfind('.');
  return std::string(dot == std::string_view::npos ? std::string_view() : name.substr(0, dot));
}

/// "a.b" of "a.b.weight"; a parameter that is no module's weight stands for itself.
[[nodiscard]] inline std::string module_of_weight(std::string_view name) {
  return std::string(name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name);
}

/// Whether `end` is the name of a module, or the last parts of it.
[[nodiscard]] inline bool ends_with_name(std::string_view module, std::string_view end) {
  return module == end || (module.ends_with(end) && module[module.size() - end.size() - 1] == '.');
}

/// Whether a module is an embedding, by its name: the shape of a weight does not say it.
[[nodiscard]] inline bool is_embedding_name(std::string_view module) {
  const std::string_view last = last_part(module);
  if (last == "embed_out" || last.ends_with("_embedder")) return false;
  return last.find("embed") != std::string_view::npos || last == "wte" || last == "wpe" || last == "shared" ||
         last == "token_embd";
}

/// Whether a module has one of the names of GPT-2's Conv1D.
[[nodiscard]] inline bool has_conv1d_name(std::string_view module) {
  constexpr std::array<std::string_view, 4> names{"c_attn", "c_proj", "c_fc", "q_attn"};
  return std::find(names.begin(), names.end(), last_part(module)) != names.end();
}

/// Whether a module is a head that transformers leaves as it is, by its name.
[[nodiscard]] inline bool is_head_name(std::string_view module) {
  const std::string_view last = last_part(module);
  return last == "lm_head" || last == "embed_out" || last == "proj_out";
}

}  // namespace lora::tools
