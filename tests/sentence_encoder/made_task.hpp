// SPDX-License-Identifier: MIT
// A made task and a small random encoder: what training needs, without files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lora/core/philox.hpp"
#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/task.hpp"

namespace examples::sentence_encoder::testing {

inline constexpr EncoderShape small_shape{
    .vocabulary = 40, .embedding = 16, .width = 24, .hidden = 32, .layers = 2, .heads = 4, .output = 20};

/// Texts of up to 9 tokens, the last one empty; the label follows from which third of the vocabulary dominates.
[[nodiscard]] inline EncodedTexts made_texts(Index count, std::uint64_t seed) {
  EncodedTexts part;
  for (Index i = 0; i < count; ++i) {
    const auto words = lora::RandomStream(seed, static_cast<std::uint64_t>(i)).block(0);
    const auto label = static_cast<std::uint8_t>(words[0] % 3);
    TokenIds ids;
    for (std::uint32_t t = 0; i + 1 < count && t < 1 + words[1] % 9; ++t) {
      const auto draw = lora::RandomStream(seed, static_cast<std::uint64_t>(i)).block(1 + t);
      const std::uint32_t third = draw[0] % 4 == 0 ? draw[1] % 3 : label;
      ids.push_back(static_cast<std::int32_t>(third * 13 + draw[2] % 13));
    }
    part.texts.push_back(ids);
    part.labels.push_back(label);
    part.rows.push_back(i);
  }
  return part;
}

[[nodiscard]] inline Task made_task() {
  return {{"a", "b", "c"}, made_texts(45, 1), made_texts(30, 2), made_texts(30, 3), 123};
}

}  // namespace examples::sentence_encoder::testing
