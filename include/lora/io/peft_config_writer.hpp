// SPDX-License-Identifier: MIT
// Writes a LoraModelConfig as the adapter_config.json that PEFT loads.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/core/error.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/peft_config.hpp"
#include "lora/io/text.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

namespace detail {

// Keeps the order of insertion. Keys are inserted in ascending order, as PEFT writes them, and a pattern's entries in
// the configuration's order, because the first match wins.
using PeftOutputJson = nlohmann::ordered_json;

[[nodiscard]] inline PeftOutputJson text_or_null(const std::string& text) {
  return text.empty() ? PeftOutputJson(nullptr) : PeftOutputJson(text);
}

template <class T>
[[nodiscard]] PeftOutputJson list_or_null(const std::vector<T>& values) {
  return values.empty() ? PeftOutputJson(nullptr) : PeftOutputJson(values);
}

/// Writes a whole number as an integer, as PEFT does for alpha.
[[nodiscard]] inline PeftOutputJson number_json(double number) {
  constexpr double exact = 9007199254740992.0;  // 2^53
  if (std::trunc(number) == number && std::abs(number) < exact) return static_cast<std::int64_t>(number);
  return number;
}

[[nodiscard]] inline PeftOutputJson selector_json(const ModuleSelector& selector) {
  switch (selector.kind()) {
    case ModuleSelector::Kind::none:
      return nullptr;
    case ModuleSelector::Kind::names:
      return selector.names();
    case ModuleSelector::Kind::pattern:
      return selector.pattern();
    case ModuleSelector::Kind::all_linear:
      return "all-linear";
  }
  return nullptr;
}

[[nodiscard]] inline PeftOutputJson initialization_json(const LoraConfig& lora) {
  if (lora.init_lora_weights == InitLoraWeights::kaiming_uniform) return true;
  if (lora.init_lora_weights == InitLoraWeights::random) return false;
  std::string name(peft_name_of(peft_starts, lora.init_lora_weights));
  if (lora.pissa_niter != 0 && name == "pissa") name.append("_niter_").append(std::to_string(lora.pissa_niter));
  return name;
}

[[nodiscard]] inline PeftOutputJson auto_mapping_json(const LoraModelConfig& config) {
  if (!config.auto_mapping) return nullptr;
  PeftOutputJson mapping;
  mapping["base_model_class"] = config.auto_mapping->base_model_class;
  mapping["parent_library"] = config.auto_mapping->parent_library;
  return mapping;
}

template <class Value, class ToJson>
[[nodiscard]] PeftOutputJson pattern_json(const std::vector<std::pair<std::string, Value>>& pattern, ToJson to_json) {
  // The object's own insertion looks at every key before.
  PeftOutputJson::object_t object;
  std::set<std::string_view> written;
  for (const auto& [key, value] : pattern) {
    if (written.insert(key).second) object.emplace_back(key, to_json(value));
  }
  return object;
}

[[nodiscard]] inline PeftOutputJson peft_config_json(const LoraModelConfig& config) {
  const LoraConfig& lora = config.lora;
  PeftOutputJson json;
  json["alpha_pattern"] = pattern_json(config.alpha_pattern, number_json);
  json["auto_mapping"] = auto_mapping_json(config);
  json["base_model_name_or_path"] = text_or_null(config.base_model_name_or_path);
  json["bias"] = peft_name_of(peft_bias_modes, lora.bias);
  if (!config.exclude_modules.empty()) json["exclude_modules"] = selector_json(config.exclude_modules);
  json["fan_in_fan_out"] = lora.fan_in_fan_out;
  json["inference_mode"] = true;
  json["init_lora_weights"] = initialization_json(lora);
  json["layers_pattern"] = list_or_null(config.layers_pattern);
  json["layers_to_transform"] = list_or_null(config.layers_to_transform);
  json["lora_alpha"] = number_json(lora.alpha);
  if (lora.lora_bias) json["lora_bias"] = true;
  json["lora_dropout"] = lora.dropout;
  json["modules_to_save"] = list_or_null(config.modules_to_save);
  json["peft_type"] = "LORA";
  if (lora.use_qalora) json["qalora_group_size"] = lora.qalora_group_size;
  json["r"] = lora.rank;
  json["rank_pattern"] = pattern_json(config.rank_pattern, [](Index rank) { return rank; });
  json["revision"] = text_or_null(config.revision);
  json["target_modules"] = selector_json(config.target_modules);
  json["task_type"] = text_or_null(config.task_type);
  if (lora.use_dora) json["use_dora"] = true;
  if (lora.use_qalora) json["use_qalora"] = true;
  if (lora.use_rslora) json["use_rslora"] = true;
  return json;
}

}  // namespace detail

/// The text of an adapter_config.json: keys ascending, two spaces of indentation. Options newer than PEFT 0.5
/// (exclude_modules, lora_bias, use_dora, use_qalora and its group size, use_rslora) are written only when active,
/// because a PEFT that does not know a key refuses it, while one that knows it fills in what is missing. merge_weights
/// has no key in the file.
/// @throws ConfigError for what PEFT would refuse: options out of range, rank 0, lora_bias with another start than
/// kaiming_uniform and random, text that is not UTF-8; std::bad_alloc, but a process that has no memory at all ends:
/// nlohmann's json allocates when it is destroyed
[[nodiscard]] inline std::string peft_config_text(const LoraModelConfig& config) {
  constexpr std::string_view operation = "write adapter_config.json";
  check_config(operation, config);
  if (config.lora.rank < 1) throw ConfigError(operation, "rank", "1 or more", std::to_string(config.lora.rank));
  try {
    const detail::PeftOutputJson json = detail::peft_config_json(config);
    if (config.lora.lora_bias && !json.at("init_lora_weights").is_boolean()) {
      throw ConfigError(operation, "init_lora_weights", "true or false with lora_bias, as in PEFT",
                        json.at("init_lora_weights").dump());
    }
    return json.dump(2, ' ', true);
  } catch (const nlohmann::json::exception& error) {
    throw ConfigError(operation, "a name or pattern", "UTF-8", in_quotes(error.what()));
  }
}

/// Writes an adapter_config.json atomically. @throws ConfigError like peft_config_text; IoError
inline void write_peft_config(const std::filesystem::path& path, const LoraModelConfig& config) {
  const std::string text = peft_config_text(config);
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace lora
