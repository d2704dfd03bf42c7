// SPDX-License-Identifier: MIT
// The reference answers that reference.mjs makes, and the folder of the pretrained model where there is one.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/types.hpp"
#include "sentence_encoder/packed_texts.hpp"
#include "support/golden.hpp"

namespace examples::sentence_encoder::testing {

/// Texts with what the model's own package makes of them in Node.
struct Reference {
  std::vector<std::string> texts;
  std::vector<TokenIds> ids;
  lora::Matrix<float> embeddings;  ///< texts x 512

  [[nodiscard]] static Reference load() {
    const std::filesystem::path folder = std::filesystem::path(LORA_SOURCE_DIR) / "tests/sentence_encoder";
    std::ifstream file(folder / "reference.json");
    Reference reference;
    for (const auto& entry : nlohmann::json::parse(file)) {
      reference.texts.push_back(entry.at("text").get<std::string>());
      reference.ids.push_back(entry.at("ids").get<TokenIds>());
    }
    const auto tensors = lora::testing::Golden::load(folder / "reference.safetensors");
    reference.embeddings = tensors.matrix<float>("embeddings");
    return reference;
  }
};

/// $LORA_SENTENCE_ENCODER_DIR, else where examples/sentence_encoder/fetch_model.sh puts the model.
[[nodiscard]] inline std::filesystem::path model_folder() {
  if (const char* folder = std::getenv("LORA_SENTENCE_ENCODER_DIR"); folder != nullptr && *folder != '\0') {
    return folder;
  }
#ifdef LORA_SENTENCE_ENCODER_DIR
  return LORA_SENTENCE_ENCODER_DIR;
#else
  return std::filesystem::path(LORA_SOURCE_DIR) / "build/models/universal-sentence-encoder-lite";
#endif
}

[[nodiscard]] inline bool has_model() { return std::filesystem::exists(model_folder() / "model.json"); }

/// Why a test that needs the model is skipped.
[[nodiscard]] inline std::string no_model() {
  std::string message = "no model in ";
  message += model_folder().string();
  return message += ": run examples/sentence_encoder/fetch_model.sh, or set LORA_SENTENCE_ENCODER_DIR";
}

}  // namespace examples::sentence_encoder::testing
