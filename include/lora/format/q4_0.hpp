// SPDX-License-Identifier: MIT
// Q4_0 of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 32 weights, 18 bytes: [d: F16][q: 16 bytes of two]. value = d * (q - 8).
/// Byte j has weight j in its low nibble and weight j + 16 in its high one. Source: ggml's block_q4_0.
struct Q4_0 {
  static constexpr std::string_view name = "Q4_0";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 18;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    for (Index i = 0; i < block_size; ++i) {
      const int q = detail::nibble_of_32(block + 2, i);
      values[i] = detail::product(static_cast<float>(q - 8), d);
    }
  }

  /// d = w / -8 for the weight w of the largest magnitude, the first of several, and q = round(w / d) + 8, at most
  /// 15, with d before it is stored as F16. Beyond |w| = 8 * 65504, d is an infinity. A weight that is not finite
  /// makes d NaN.
  static void encode(const float* values, std::uint8_t* block) noexcept {
    const detail::SymmetricBlock encoded = detail::symmetric_block<4>(values);
    detail::put_f16(encoded.scale, block);
    detail::put_nibbles_of_32(encoded.codes, block + 2);
  }
};

}  // namespace lora::formats
