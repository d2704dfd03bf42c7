// SPDX-License-Identifier: MIT
// Q4_1 of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 32 weights, 20 bytes: [d: F16][m: F16][q: 16 bytes of two]. value = d * q + m.
/// Byte j has weight j in its low nibble and weight j + 16 in its high one. Source: ggml's block_q4_1.
struct Q4_1 {
  static constexpr std::string_view name = "Q4_1";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 20;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    const float m = detail::f16_at(block + 2);
    for (Index i = 0; i < block_size; ++i) {
      const int q = detail::nibble_of_32(block + 4, i);
      values[i] = detail::sum(detail::product(static_cast<float>(q), d), m);
    }
  }

  /// m = min w, d = (max w - min w) / 15 and q = round((w - m) / d), with d and m before they are stored as F16, in
  /// which they become infinite beyond 65504. A weight that is not finite makes d and m NaN.
  static void encode(const float* values, std::uint8_t* block) noexcept {
    const detail::AffineBlock encoded = detail::affine_block<4>(values);
    detail::put_f16(encoded.scale, block);
    detail::put_f16(encoded.minimum, block + 2);
    detail::put_nibbles_of_32(encoded.codes, block + 4);
  }
};

}  // namespace lora::formats
