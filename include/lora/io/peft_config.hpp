// SPDX-License-Identifier: MIT
// Reads adapter_config.json, as PEFT's save_pretrained writes it, into a LoraModelConfig.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/peft_json.hpp"
#include "lora/io/text.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

/// A configuration read from a file, and warnings about what it does not represent ("unknown key ...").
struct PeftConfig {
  LoraModelConfig config;             ///< what the file says
  std::vector<std::string> warnings;  ///< one for each key that has no counterpart here
};

namespace detail {

/// Keys that are read.
inline constexpr std::array<std::string_view, 24> read_peft_keys{"alpha_pattern",
                                                                 "auto_mapping",
                                                                 "base_model_name_or_path",
                                                                 "bias",
                                                                 "exclude_modules",
                                                                 "fan_in_fan_out",
                                                                 "init_lora_weights",
                                                                 "layers_pattern",
                                                                 "layers_to_transform",
                                                                 "lora_alpha",
                                                                 "lora_bias",
                                                                 "lora_dropout",
                                                                 "modules_to_save",
                                                                 "peft_type",
                                                                 "qalora_group_size",
                                                                 "r",
                                                                 "rank_pattern",
                                                                 "revision",
                                                                 "target_modules",
                                                                 "task_type",
                                                                 "use_dora",
                                                                 "use_qalora",
                                                                 "use_rslora",
                                                                 "velora_config"};

/// Options that change what an adapter computes and that this library does not implement: a value that counts as false
/// in Python leaves them off.
inline constexpr std::array<std::string_view, 9> unsupported_peft_keys{"alora_invocation_tokens",
                                                                       "arrow_config",
                                                                       "enable_lora",
                                                                       "ensure_weight_tying",
                                                                       "layer_replication",
                                                                       "megatron_config",
                                                                       "target_parameters",
                                                                       "trainable_token_indices",
                                                                       "use_bdlora"};

/// Likewise, but PEFT makes a configuration of an empty object: only null leaves them off.
inline constexpr std::array<std::string_view, 2> unsupported_peft_objects{"kasa_config", "monteclora_config"};

/// Keys that do not affect what a trained adapter computes. The configurations among them are of starts, and without
/// that start, which init_lora_weights names, PEFT ignores them.
inline constexpr std::array<std::string_view, 9> ignored_peft_keys{"corda_config",  "eva_config",     "inference_mode",
                                                                   "loftq_config",  "lora_ga_config", "megatron_core",
                                                                   "merge_weights", "peft_version",   "runtime_config"};

/// What the file calls modes of biases, and starts that are texts; "pissa" may be followed by "_niter_" and a number.
inline constexpr std::array<std::pair<std::string_view, BiasMode>, 3> peft_bias_modes{
    {{"none", BiasMode::none}, {"all", BiasMode::all}, {"lora_only", BiasMode::lora_only}}};
inline constexpr std::array<std::pair<std::string_view, InitLoraWeights>, 4> peft_starts{
    {{"gaussian", InitLoraWeights::gaussian},
     {"orthogonal", InitLoraWeights::orthogonal},
     {"olora", InitLoraWeights::olora},
     {"pissa", InitLoraWeights::pissa}}};

template <class Value, std::size_t Count>
[[nodiscard]] std::string_view peft_name_of(const std::array<std::pair<std::string_view, Value>, Count>& names,
                                            Value value) noexcept {
  return std::find_if(names.begin(), names.end(), [&](const auto& one) { return one.second == value; })->first;
}

[[nodiscard]] inline bool is_peft_key(std::string_view key) noexcept {
  const auto among = [&](const auto& keys) { return std::find(keys.begin(), keys.end(), key) != keys.end(); };
  return among(read_peft_keys) || among(unsupported_peft_keys) || among(unsupported_peft_objects) ||
         among(ignored_peft_keys);
}

/// Turns a document into a configuration.
class PeftConfigReader {
 public:
  PeftConfigReader(std::string_view text, std::string_view label)
      : json_(parse_peft_json(text, label, is_peft_key)), label_(label) {}

  [[nodiscard]] PeftConfig read() {
    const std::string type = text("peft_type");
    if (type != "LORA") {
      if (find("peft_type") == nullptr) refuse("peft_type", "\"LORA\"", "no such key");
      throw ConfigError(peft_config_operation, label_ + ": peft_type", "\"LORA\"", in_quotes(type));
    }
    PeftConfig result;
    read_lora(result.config.lora);
    read_model(result.config);
    refuse_unsupported();
    read_velora();
    warn_of_unknown();
    result.warnings = std::move(warnings_);
    check_config(peft_config_operation, result.config);
    const PeftJsonField* start = find("init_lora_weights");
    if (result.config.lora.lora_bias && start != nullptr && !start->value.is_boolean()) {
      throw ConfigError(peft_config_operation, label_ + ": init_lora_weights",
                        "true or false with lora_bias, as in PEFT", json_text(start->value));
    }
    if (result.config.lora.rank < 1) {
      throw ConfigError(peft_config_operation, label_ + ": r", "1 or more", std::to_string(result.config.lora.rank));
    }
    return result;
  }

 private:
  using Json = nlohmann::json;

  void read_lora(LoraConfig& lora) {
    lora.rank = integer("r", lora.rank);
    lora.alpha = number("lora_alpha", lora.alpha);
    lora.dropout = number("lora_dropout", lora.dropout);
    lora.fan_in_fan_out = boolean("fan_in_fan_out");
    lora.use_rslora = boolean("use_rslora");
    lora.use_dora = boolean("use_dora");
    lora.use_qalora = boolean("use_qalora");
    lora.qalora_group_size = integer("qalora_group_size", lora.qalora_group_size);
    lora.lora_bias = boolean("lora_bias");
    read_bias(lora.bias);
    read_initialization(lora);
  }

  void read_model(LoraModelConfig& config) {
    config.target_modules = selector("target_modules");
    if (to_lower(config.target_modules.pattern()) == "all-linear") {
      config.target_modules = ModuleSelector::all_linear();
    }
    config.exclude_modules = selector("exclude_modules");
    read_layers(config.layers_to_transform);
    config.layers_pattern = names_or_name("layers_pattern");
    config.modules_to_save = names("modules_to_save");
    config.base_model_name_or_path = text("base_model_name_or_path");
    config.revision = text("revision");
    config.task_type = text("task_type");
    read_auto_mapping(config.auto_mapping);
    config.rank_pattern = pattern<Index>(
        "rank_pattern", [&](const std::string& key, const Json& value) { return as_integer(key, value); });
    config.alpha_pattern = pattern<double>(
        "alpha_pattern", [&](const std::string& key, const Json& value) { return as_number(key, value); });
  }

  void read_bias(BiasMode& bias) {
    const std::string name = text("bias", "none");
    if (!assign(peft_bias_modes, name, bias)) unsupported_.push_back("bias = " + in_quotes(name));
  }

  /// Whether a table knows the name; `value` is what it stands for then.
  template <class Names, class Value>
  [[nodiscard]] static bool assign(const Names& names, std::string_view name, Value& value) noexcept {
    const auto found = std::find_if(names.begin(), names.end(), [&](const auto& one) { return one.first == name; });
    if (found == names.end()) return false;
    value = found->second;
    return true;
  }

  void read_initialization(LoraConfig& lora) {
    const PeftJsonField* field = find("init_lora_weights");
    if (field == nullptr) return;
    if (field->value.is_boolean()) {
      lora.init_lora_weights = field->value.get<bool>() ? InitLoraWeights::kaiming_uniform : InitLoraWeights::random;
      return;
    }
    if (!field->value.is_string()) refuse_value("init_lora_weights", "a boolean or a string", field->value);
    const std::string name = to_lower(field->value.get<std::string>());
    constexpr std::string_view iterations = "pissa_niter_";
    if (assign(peft_starts, name, lora.init_lora_weights)) return;
    if (name == "true") {
      lora.init_lora_weights = InitLoraWeights::kaiming_uniform;
    } else if (name.starts_with(iterations)) {
      lora.init_lora_weights = InitLoraWeights::pissa;
      lora.pissa_niter = read_count(std::string_view(name).substr(iterations.size()), field->value);
    } else if (name == "eva" || name == "mica") {
      // These start A and B alone. corda, loftq and lora_ga also change the base weight, which a file does not hold.
      lora.init_lora_weights = InitLoraWeights::kaiming_uniform;
      warn_of_training("init_lora_weights", *field);
    } else {
      unsupported_.push_back("init_lora_weights = " + json_text(field->value));
    }
  }

  // VeLoRA compresses what is remembered for the backward pass.
  void read_velora() {
    const PeftJsonField* field = find("velora_config");
    if (field == nullptr) return;
    if (!field->value.is_object()) refuse_value("velora_config", "an object", field->value);
    warn_of_training("velora_config", *field);
  }

  void warn_of_training(std::string_view key, const PeftJsonField& field) {
    warnings_.push_back(label_ + ": " + std::string(key) + " = " + json_text(field.value) +
                        " concerns only the training and is not kept");
  }

  [[nodiscard]] Index read_count(std::string_view digits, const Json& value) const {
    int count = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), count);
    if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size() || count < 0) {
      refuse("init_lora_weights", "pissa_niter_ and a number", in_quotes(value.get<std::string>()));
    }
    return count;
  }

  void read_layers(std::vector<Index>& layers) {
    const PeftJsonField* field = find("layers_to_transform");
    if (field == nullptr) return;
    constexpr std::string_view expected = "an integer or a list of integers";
    if (!field->value.is_array()) {
      layers.push_back(as_integer("layers_to_transform", field->value, expected));
      return;
    }
    for (const Json& layer : field->items) layers.push_back(as_integer("layers_to_transform", layer, expected));
  }

  void read_auto_mapping(std::optional<AutoMapping>& mapping) {
    const PeftJsonField* field = find("auto_mapping");
    if (field == nullptr) return;
    if (!field->value.is_object()) refuse_value("auto_mapping", "an object of strings", field->value);
    mapping.emplace();
    for (std::size_t i = 0; i < field->items.size(); ++i) {
      const std::string& key = field->keys[i];
      if (key != "base_model_class" && key != "parent_library") continue;
      const Json& item = field->items[i];
      if (!item.is_null() && !item.is_string()) refuse_value("auto_mapping " + key, "a string", item);
      std::string& part = key == "parent_library" ? mapping->parent_library : mapping->base_model_class;
      part = item.is_null() ? std::string() : item.get<std::string>();
    }
  }

  /// An object's members in the order of their keys in the file: the first that matches a module wins.
  template <class Value, class ToValue>
  [[nodiscard]] std::vector<std::pair<std::string, Value>> pattern(const std::string& key, ToValue to_value) {
    std::vector<std::pair<std::string, Value>> result;
    const PeftJsonField* field = find(key);
    if (field == nullptr) return result;
    if (!field->value.is_object()) refuse_value(key, "an object", field->value);
    std::map<std::string_view, std::size_t> places;
    for (std::size_t i = 0; i < field->items.size(); ++i) {
      const std::string& name = field->keys[i];
      const Value value = to_value(key + " " + in_quotes(name), field->items[i]);
      const auto [place, inserted] = places.emplace(name, result.size());
      if (inserted) result.emplace_back(name, value);
      result[place->second].second = value;
    }
    return result;
  }

  void refuse_unsupported() {
    const auto add = [&](std::string_view key, const PeftJsonField& field) {
      unsupported_.push_back(std::string(key) + " = " + json_text(field.value));
    };
    for (const std::string_view key : unsupported_peft_keys) {
      const PeftJsonField* field = find(key);
      if (field != nullptr && is_true(*field)) add(key, *field);
    }
    for (const std::string_view key : unsupported_peft_objects) {
      if (const PeftJsonField* field = find(key)) add(key, *field);
    }
    if (unsupported_.empty()) return;
    std::string text;
    for (const std::string& option : unsupported_) text.append(text.empty() ? "" : ", ").append(option);
    throw ConfigError(peft_config_operation, label_, "no option that this library does not implement", text);
  }

  void warn_of_unknown() {
    for (const std::string& key : json_.unknown) warnings_.push_back(label_ + ": unknown key " + key + " is ignored");
    if (json_.unknown_count > json_.unknown.size()) {
      warnings_.push_back(label_ + ": " + std::to_string(json_.unknown_count - json_.unknown.size()) +
                          " more unknown keys are ignored");
    }
  }

  /// The value of a key; null if there is none, or null.
  [[nodiscard]] const PeftJsonField* find(std::string_view key) const {
    const auto found = json_.fields.find(key);
    return found == json_.fields.end() || found->second.value.is_null() ? nullptr : &found->second;
  }

  [[nodiscard]] Index integer(const std::string& key, Index otherwise) const {
    const PeftJsonField* field = find(key);
    return field == nullptr ? otherwise : as_integer(key, field->value);
  }
  [[nodiscard]] double number(const std::string& key, double otherwise) const {
    const PeftJsonField* field = find(key);
    return field == nullptr ? otherwise : as_number(key, field->value);
  }
  [[nodiscard]] bool boolean(std::string_view key) const {
    const PeftJsonField* field = find(key);
    if (field == nullptr) return false;
    if (!field->value.is_boolean()) refuse_value(key, "a boolean", field->value);
    return field->value.get<bool>();
  }
  [[nodiscard]] std::string text(std::string_view key, std::string otherwise = {}) const {
    const PeftJsonField* field = find(key);
    if (field == nullptr) return otherwise;
    if (!field->value.is_string()) refuse_value(key, "a string", field->value);
    return field->value.get<std::string>();
  }

  [[nodiscard]] std::vector<std::string> names(std::string_view key,
                                               std::string_view expected = "a list of strings") const {
    const PeftJsonField* field = find(key);
    std::vector<std::string> result;
    if (field == nullptr) return result;
    if (!field->value.is_array()) refuse_value(key, expected, field->value);
    result.reserve(field->items.size());
    for (const Json& name : field->items) {
      if (!name.is_string()) refuse_value(key, expected, name);
      result.push_back(name.get<std::string>());
    }
    return result;
  }
  [[nodiscard]] std::vector<std::string> names_or_name(std::string_view key) const {
    const PeftJsonField* field = find(key);
    if (field != nullptr && field->value.is_string()) {
      return text(key).empty() ? std::vector<std::string>() : std::vector{text(key)};
    }
    return names(key, "a string or a list of strings");
  }
  [[nodiscard]] ModuleSelector selector(std::string_view key) const {
    const PeftJsonField* field = find(key);
    if (field == nullptr) return {};
    if (field->value.is_string()) return ModuleSelector::matching(text(key));
    return ModuleSelector::listed(names(key, "a string or a list of strings"));
  }

  [[nodiscard]] Index as_integer(const std::string& key, const Json& value,
                                 std::string_view expected = "an integer") const {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()});
    if (!fits) refuse_value(key, expected, value);
    return static_cast<Index>(value.get<std::int64_t>());
  }
  [[nodiscard]] double as_number(const std::string& key, const Json& value) const {
    if (!value.is_number()) refuse_value(key, "a number", value);
    return value.get<double>();
  }

  /// As Python's bool().
  [[nodiscard]] static bool is_true(const PeftJsonField& field) {
    const Json& value = field.value;
    if (value.is_boolean()) return value.get<bool>();
    if (value.is_number()) return value.get<double>() != 0;
    if (value.is_string()) return !value.get_ref<const std::string&>().empty();
    return !field.items.empty();
  }

  [[nodiscard]] static std::string to_lower(std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  }

  [[noreturn]] void refuse(std::string_view key, std::string_view expected, std::string_view got) const {
    throw FormatError(peft_config_operation, label_ + ": " + std::string(key), expected, got);
  }
  [[noreturn]] void refuse_value(std::string_view key, std::string_view expected, const Json& value) const {
    refuse(key, expected, json_text(value));
  }

  PeftJson json_;
  std::string label_;
  std::vector<std::string> unsupported_;
  std::vector<std::string> warnings_;
};

}  // namespace detail

/// Reads the text of an adapter_config.json. Missing keys get PEFT's defaults. Keys that PEFT 0.20 does not know, and
/// those that concern only the training and are not kept, are returned as warnings. `label` names the text in errors.
/// Time and memory are linear in the text, which is at most 16 MiB and nests at most 127 levels.
/// @throws FormatError for text that is not JSON, and for a value of the wrong type, with its key; ConfigError for a
/// peft_type other than LORA, for active options that this library does not implement, listing all of them, and for
/// values out of range. Regular expressions are not compiled here.
[[nodiscard]] inline PeftConfig parse_peft_config(std::string_view text,
                                                  std::string_view label = "adapter_config.json") {
  return detail::PeftConfigReader(text, label).read();
}

/// Reads an adapter_config.json. @throws IoError; otherwise like parse_peft_config
[[nodiscard]] inline PeftConfig read_peft_config(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_peft_config(file.text(), path_text(path));
}

}  // namespace lora
