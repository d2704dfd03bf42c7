// SPDX-License-Identifier: MIT
// Q5_0 of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 32 weights, 22 bytes: [d: F16][fifth bits: 4 bytes][low 4 bits: 16 bytes]. value = d * (q - 16).
/// Byte j has weight j in its low nibble and weight j + 16 in its high one; weight i has bit i of the
/// fifth bits, a little-endian word. Source: ggml's block_q5_0.
struct Q5_0 {
  static constexpr std::string_view name = "Q5_0";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 22;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    for (Index i = 0; i < block_size; ++i) {
      const int q = detail::nibble_of_32(block + 6, i) | detail::fifth_bit_of_32(block + 2, i) << 4;
      values[i] = detail::product(static_cast<float>(q - 16), d);
    }
  }

  /// d = w / -16 for the weight w of the largest magnitude, the first of several, and q = round(w / d) + 16, at most
  /// 31, with d before it is stored as F16. Beyond |w| = 16 * 65504, d is an infinity. A weight that is not finite
  /// makes d NaN.
  static void encode(const float* values, std::uint8_t* block) noexcept {
    const detail::SymmetricBlock encoded = detail::symmetric_block<5>(values);
    detail::put_f16(encoded.scale, block);
    detail::put_fifth_bits_of_32(encoded.codes, block + 2);
    detail::put_nibbles_of_32(encoded.codes, block + 6);
  }
};

}  // namespace lora::formats
