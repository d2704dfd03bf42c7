// SPDX-License-Identifier: MIT
// Q5_1 of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 32 weights, 24 bytes: [d: F16][m: F16][fifth bits: 4 bytes][low 4 bits: 16 bytes]. value = d * q + m.
/// Byte j has weight j in its low nibble and weight j + 16 in its high one; weight i has bit i of the
/// fifth bits, a little-endian word. Source: ggml's block_q5_1.
struct Q5_1 {
  static constexpr std::string_view name = "Q5_1";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 24;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    const float m = detail::f16_at(block + 2);
    for (Index i = 0; i < block_size; ++i) {
      const int q = detail::nibble_of_32(block + 8, i) | detail::fifth_bit_of_32(block + 4, i) << 4;
      values[i] = detail::sum(detail::product(static_cast<float>(q), d), m);
    }
  }

  /// m = min w, d = (max w - min w) / 31 and q = round((w - m) / d), with d and m before they are stored as F16, in
  /// which they become infinite beyond 65504. A weight that is not finite makes d and m NaN.
  static void encode(const float* values, std::uint8_t* block) noexcept {
    const detail::AffineBlock encoded = detail::affine_block<5>(values);
    detail::put_f16(encoded.scale, block);
    detail::put_f16(encoded.minimum, block + 2);
    detail::put_fifth_bits_of_32(encoded.codes, block + 4);
    detail::put_nibbles_of_32(encoded.codes, block + 8);
  }
};

}  // namespace lora::formats
