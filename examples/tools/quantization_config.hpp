// SPDX-License-Identifier: MIT
// The quantization_config of config.json, from which transformers knows which layers are in 4 bits, and the layers that
// it leaves as they are.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "config_text.hpp"
#include "four_bit.hpp"
#include "lora/core/error.hpp"
#include "module_names.hpp"

namespace lora::tools {

/// Linear layers that transformers leaves as they are, whatever config.json says: those of T5 and its relatives, and of
/// BLIP-2. Source: huggingface/transformers, `_keep_in_fp32_modules` of the models.
[[nodiscard]] inline bool is_kept_by_transformers(std::string_view module) {
  return module.ends_with(".DenseReluDense.wo") || module.starts_with("qformer.");
}

namespace detail {

/// Source: huggingface/transformers, `_tied_weights_keys` of the models. Most have lm_head; in some, that is a block
/// with further layers, which are stored.
[[nodiscard]] inline std::string name_of_head(const Checkpoint& checkpoint, const nlohmann::json& config) {
  if (model_type_of(config) == "whisper") return "proj_out";
  if (checkpoint.find("lm_head.dense.weight")) return "lm_head.decoder";
  return checkpoint.find("cls.predictions.transform.dense.weight") ? "cls.predictions.decoder" : "lm_head";
}

/// The head that transformers ties to an embedding and leaves out of files; nothing if it is stored or not tied.
[[nodiscard]] inline std::optional<std::string> tied_head(const Checkpoint& checkpoint, const nlohmann::json& config) {
  const auto tied = config.find("tie_word_embeddings");
  if (tied != config.end() && *tied == false) return std::nullopt;
  std::string head = name_of_head(checkpoint, config);
  for (const auto& name : checkpoint.names()) {
    if (!name.ends_with(".weight")) continue;
    const std::string module = module_of_weight(name);
    if (is_head_name(module) || module == head) return std::nullopt;
  }
  return head;
}

/// What transformers must not take for a layer of 4 bits. Where this list is given, it has no other.
[[nodiscard]] inline std::vector<std::string> skipped_modules(const Checkpoint& checkpoint, const Changes& changes,
                                                              const nlohmann::json& config) {
  std::vector<std::string> modules;
  for (const auto& name : checkpoint.names()) {
    const bool matrix = name.ends_with(".weight") && checkpoint.find(name)->shape.size() == 2;
    const bool four_bit = changes.tensors.contains(name) || has_quant_state(checkpoint, name);
    if (matrix && !four_bit) modules.push_back(module_of_weight(name));
  }
  if (const auto head = tied_head(checkpoint, config)) modules.push_back(*head);
  return modules;
}

/// config.json has one description for all weights of a model.
inline void require_no_other_method(const nlohmann::json& config) {
  const auto there = config.find("quantization_config");
  if (there == config.end() || there->is_null()) return;
  const auto four_bit = there->is_object() ? there->find("load_in_4bit") : there->end();
  if (there->is_object() && four_bit != there->end() && *four_bit == true) return;
  throw ConfigError("quantize", "config.json, quantization_config", "none, or that of bitsandbytes in 4 bits",
                    "another");
}

}  // namespace detail

/// config.json with a description of the weights of 4 bits, those of `changes` and those that the checkpoint has.
/// @throws ConfigError if it describes another method of quantization
[[nodiscard]] inline std::string with_four_bit_config(const Checkpoint& checkpoint, const Changes& changes,
                                                      const ConfigFile& config, const FourBitOptions& options) {
  detail::require_no_other_method(config.values);
  const nlohmann::ordered_json quantization = {
      {"quant_method", "bitsandbytes"},
      {"load_in_4bit", true},
      {"load_in_8bit", false},
      {"bnb_4bit_quant_type", options.type == BitsandbytesType::nf4 ? "nf4" : "fp4"},
      {"bnb_4bit_use_double_quant", options.scales == BitsandbytesScales::nested},
      {"bnb_4bit_quant_storage", "uint8"},
      {"llm_int8_skip_modules", detail::skipped_modules(checkpoint, changes, config.values)}};
  return with_member(config.text, "quantization_config", quantization);
}

/// config.json without a description of quantized weights.
[[nodiscard]] inline std::string without_quantization_config(const ConfigFile& config) {
  return with_member(config.text, "quantization_config", std::nullopt);
}

}  // namespace lora::tools
