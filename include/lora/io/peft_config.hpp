// Reads adapter_config.json, as PEFT's save_pretrained writes it, into a LoraModelConfig.
#pragma once

#include <array>
#include <cctype>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

/// A configuration read from a file, and warnings about what it does not represent ("unknown key ...").
struct PeftConfig {
  LoraModelConfig config;
  std::vector<std::string> warnings;
};

namespace detail {

inline constexpr std::string_view peft_config_operation = "read adapter_config.json";

/// Options that change what an adapter computes and that this library does not implement. Inactive ones are accepted.
inline constexpr std::array<std::string_view, 17> unsupported_peft_keys{"alora_invocation_tokens",
                                                                        "arrow_config",
                                                                        "corda_config",
                                                                        "enable_lora",
                                                                        "ensure_weight_tying",
                                                                        "eva_config",
                                                                        "kasa_config",
                                                                        "layer_replication",
                                                                        "loftq_config",
                                                                        "lora_ga_config",
                                                                        "megatron_config",
                                                                        "monteclora_config",
                                                                        "target_parameters",
                                                                        "trainable_token_indices",
                                                                        "use_bdlora",
                                                                        "use_qalora",
                                                                        "velora_config"};

/// Keys that do not affect what an adapter computes.
inline constexpr std::array<std::string_view, 6> ignored_peft_keys{
    "inference_mode", "megatron_core", "merge_weights", "peft_version", "qalora_group_size", "runtime_config"};

/// Whether the bytes are a Git LFS pointer, left in place of a file that was not fetched.
[[nodiscard]] inline bool is_git_lfs_pointer(std::string_view bytes) noexcept {
  return bytes.starts_with("version https://git-lfs.");
}

[[noreturn]] inline void throw_git_lfs_pointer(std::string_view operation, std::string_view label,
                                               std::string_view expected) {
  throw FormatError(operation, label, expected, "a Git LFS pointer; the file itself was not fetched (git lfs pull)");
}

/// The keys of rank_pattern and alpha_pattern in the file's order: the first match wins.
struct PeftPatternKeys {
  std::vector<std::string> rank;
  std::vector<std::string> alpha;
};

[[nodiscard]] inline std::pair<nlohmann::json, PeftPatternKeys> parse_peft_json(std::string_view text,
                                                                                std::string_view label) {
  constexpr std::size_t largest = std::size_t{1} << 24;
  if (is_git_lfs_pointer(text)) throw_git_lfs_pointer(peft_config_operation, label, "JSON");
  if (text.size() > largest) {
    throw FormatError(peft_config_operation, label, "at most " + std::to_string(largest) + " bytes",
                      std::to_string(text.size()));
  }
  std::pair<nlohmann::json, PeftPatternKeys> result;
  PeftPatternKeys& keys = result.second;
  std::string outer;
  const auto note_keys = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (event != nlohmann::json::parse_event_t::key) return true;
    if (depth == 1) outer = parsed.get<std::string>();
    if (depth == 2 && outer == "rank_pattern") keys.rank.push_back(parsed.get<std::string>());
    if (depth == 2 && outer == "alpha_pattern") keys.alpha.push_back(parsed.get<std::string>());
    return true;
  };
  try {
    result.first = nlohmann::json::parse(text.begin(), text.end(), note_keys);
  } catch (const nlohmann::json::parse_error& error) {
    throw FormatError(peft_config_operation, label, "JSON", "an error at byte " + std::to_string(error.byte));
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(peft_config_operation, label, "JSON", in_quotes(error.what()));
  }
  if (!result.first.is_object()) {
    throw FormatError(peft_config_operation, label, "an object", std::string("a JSON ") + result.first.type_name());
  }
  return result;
}

/// Turns a document into a configuration. Every known key is read by name; what is left over is unknown.
class PeftConfigReader {
 public:
  PeftConfigReader(const nlohmann::json& object, const PeftPatternKeys& keys, std::string_view label)
      : object_(object), keys_(keys), label_(label) {}

  [[nodiscard]] PeftConfig read() {
    const std::string type = text("peft_type");
    if (type != "LORA") {
      if (!object_.contains("peft_type")) refuse("peft_type", "\"LORA\"", "no such key");
      throw ConfigError(peft_config_operation, label_ + ": peft_type", "\"LORA\"", in_quotes(type));
    }
    PeftConfig result;
    read_lora(result.config.lora);
    read_model(result.config);
    refuse_unsupported();
    warn_of_unknown(result.warnings);
    check_config(peft_config_operation, result.config);
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
    for_each_pattern("rank_pattern", keys_.rank, [&](const std::string& key, const Json& value) {
      config.rank_pattern.emplace_back(key, as_integer("rank_pattern " + in_quotes(key), value));
    });
    for_each_pattern("alpha_pattern", keys_.alpha, [&](const std::string& key, const Json& value) {
      config.alpha_pattern.emplace_back(key, as_number("alpha_pattern " + in_quotes(key), value));
    });
  }

  void read_bias(BiasMode& bias) {
    const std::string name = text("bias", "none");
    if (name == "none") {
      bias = BiasMode::none;
    } else if (name == "all") {
      bias = BiasMode::all;
    } else if (name == "lora_only") {
      bias = BiasMode::lora_only;
    } else {
      unsupported_.push_back("bias = " + in_quotes(name));
    }
  }

  void read_initialization(LoraConfig& lora) {
    const Json* value = find("init_lora_weights");
    if (value == nullptr) return;
    if (value->is_boolean()) {
      lora.init_lora_weights = value->get<bool>() ? InitLoraWeights::kaiming_uniform : InitLoraWeights::random;
      return;
    }
    if (!value->is_string()) refuse_value("init_lora_weights", "a boolean or a string", *value);
    const std::string name = to_lower(value->get<std::string>());
    constexpr std::string_view iterations = "pissa_niter_";
    if (name == "true") {
      lora.init_lora_weights = InitLoraWeights::kaiming_uniform;
    } else if (name == "gaussian") {
      lora.init_lora_weights = InitLoraWeights::gaussian;
    } else if (name == "orthogonal") {
      lora.init_lora_weights = InitLoraWeights::orthogonal;
    } else if (name == "olora") {
      lora.init_lora_weights = InitLoraWeights::olora;
    } else if (name == "pissa" || name.starts_with(iterations)) {
      lora.init_lora_weights = InitLoraWeights::pissa;
      if (name != "pissa") lora.pissa_niter = read_count(std::string_view(name).substr(iterations.size()), *value);
    } else {
      unsupported_.push_back("init_lora_weights = " + in_quotes(value->get<std::string>()));
    }
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
    const Json* value = find("layers_to_transform");
    if (value == nullptr) return;
    if (!value->is_array()) {
      layers.push_back(as_integer("layers_to_transform", *value, "an integer or a list of integers"));
      return;
    }
    for (const Json& layer : *value) {
      layers.push_back(as_integer("layers_to_transform", layer, "an integer or a list of integers"));
    }
  }

  void read_auto_mapping(std::optional<AutoMapping>& mapping) {
    const Json* value = find("auto_mapping");
    if (value == nullptr) return;
    if (!value->is_object()) refuse_value("auto_mapping", "an object of strings", *value);
    const auto part = [&](const char* key) {
      const auto found = value->find(key);
      if (found == value->end() || found->is_null()) return std::string();
      if (!found->is_string()) refuse_value(std::string("auto_mapping ") + key, "a string", *found);
      return found->get<std::string>();
    };
    mapping = AutoMapping{part("base_model_class"), part("parent_library")};
  }

  template <class Take>
  void for_each_pattern(const char* key, const std::vector<std::string>& order, Take take) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_object()) refuse_value(key, "an object", *value);
    std::set<std::string_view> taken;
    for (const std::string& pattern : order) {
      const auto found = value->find(pattern);
      if (found != value->end() && taken.insert(pattern).second) take(pattern, *found);
    }
  }

  void refuse_unsupported() {
    for (const std::string_view key : unsupported_peft_keys) {
      const Json* value = find(std::string(key));
      if (value != nullptr && is_active(*value)) unsupported_.push_back(std::string(key) + " = " + describe(*value));
    }
    if (unsupported_.empty()) return;
    std::string text;
    for (const std::string& option : unsupported_) text.append(text.empty() ? "" : ", ").append(option);
    throw ConfigError(peft_config_operation, label_, "no option that this library does not implement", text);
  }

  void warn_of_unknown(std::vector<std::string>& warnings) {
    for (const std::string_view key : ignored_peft_keys) asked_.emplace(key);
    for (const auto& [key, value] : object_.items()) {
      if (!asked_.contains(key)) {
        warnings.push_back(label_ + ": unknown key " + in_quotes(key) + " = " + describe(value) + " is ignored");
      }
    }
  }

  [[nodiscard]] const Json* find(const std::string& key) {
    asked_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  [[nodiscard]] Index integer(const std::string& key, Index otherwise) {
    const Json* value = find(key);
    return value == nullptr ? otherwise : as_integer(key, *value);
  }
  [[nodiscard]] double number(const std::string& key, double otherwise) {
    const Json* value = find(key);
    return value == nullptr ? otherwise : as_number(key, *value);
  }
  [[nodiscard]] bool boolean(const std::string& key) {
    const Json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) refuse_value(key, "a boolean", *value);
    return value->get<bool>();
  }
  [[nodiscard]] std::string text(const std::string& key, std::string otherwise = {}) {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) refuse_value(key, "a string", *value);
    return value->get<std::string>();
  }

  [[nodiscard]] std::vector<std::string> names(const std::string& key,
                                               std::string_view expected = "a list of strings") {
    const Json* value = find(key);
    std::vector<std::string> result;
    if (value == nullptr) return result;
    if (!value->is_array()) refuse_value(key, expected, *value);
    for (const Json& name : *value) {
      if (!name.is_string()) refuse_value(key, expected, name);
      result.push_back(name.get<std::string>());
    }
    return result;
  }
  [[nodiscard]] std::vector<std::string> names_or_name(const std::string& key) {
    const Json* value = find(key);
    if (value != nullptr && value->is_string()) {
      return value->get_ref<const std::string&>().empty() ? std::vector<std::string>() : std::vector{text(key)};
    }
    return names(key, "a string or a list of strings");
  }
  [[nodiscard]] ModuleSelector selector(const std::string& key) {
    const Json* value = find(key);
    if (value == nullptr) return {};
    if (value->is_string()) return ModuleSelector::matching(text(key));
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

  [[nodiscard]] static bool is_active(const Json& value) {
    if (value.is_boolean()) return value.get<bool>();
    if (value.is_number()) return value.get<double>() != 0;
    if (value.is_string()) return !value.get_ref<const std::string&>().empty();
    return !value.empty();
  }

  [[nodiscard]] static std::string describe(const Json& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return "a list";
    return value.is_string() ? in_quotes(value.get_ref<const std::string&>()) : value.dump();
  }

  [[nodiscard]] static std::string to_lower(std::string text) {
    for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text;
  }

  [[noreturn]] void refuse(std::string_view key, std::string_view expected, std::string_view got) const {
    throw FormatError(peft_config_operation, label_ + ": " + std::string(key), expected, got);
  }
  [[noreturn]] void refuse_value(std::string_view key, std::string_view expected, const Json& value) const {
    refuse(key, expected, describe(value));
  }

  const nlohmann::json& object_;
  const PeftPatternKeys& keys_;
  std::string label_;
  std::set<std::string, std::less<>> asked_;
  std::vector<std::string> unsupported_;
};

}  // namespace detail

/// Reads the text of an adapter_config.json. Missing keys get PEFT's defaults. Keys that PEFT 0.20 does not know are
/// returned as warnings. `label` names the text in errors.
/// @throws FormatError for text that is not JSON, and for a value of the wrong type, with its key; ConfigError for a
/// peft_type other than LORA, for active options that this library does not implement, listing all of them, and for
/// values out of range. Regular expressions are not compiled here.
[[nodiscard]] inline PeftConfig parse_peft_config(std::string_view text,
                                                  std::string_view label = "adapter_config.json") {
  const auto [object, keys] = detail::parse_peft_json(text, label);
  return detail::PeftConfigReader(object, keys, label).read();
}

/// Reads an adapter_config.json. @throws IoError; otherwise like parse_peft_config
[[nodiscard]] inline PeftConfig read_peft_config(const std::filesystem::path& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return parse_peft_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                           in_quotes(path.native(), path.native().size()));
}

}  // namespace lora
