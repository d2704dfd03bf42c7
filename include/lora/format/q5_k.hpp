// SPDX-License-Identifier: MIT
// Q5_K of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block256.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 256 weights, 176 bytes: [d: F16][dmin: F16][s and m: 12 bytes][fifth bits: 32 bytes][low 4 bits: 128 bytes].
/// value = (d * s) * q - (dmin * m), with s and m of 32 weights, 6 bits each. Weight i has bit i / 32 of byte i % 32 of
/// the fifth bits. Source: ggml's block_q5_K.
struct Q5_K {
  static constexpr std::string_view name = "Q5_K";
  static constexpr Index block_size = 256;
  static constexpr Index block_bytes = 176;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    const float dmin = detail::f16_at(block + 2);
    const std::uint8_t* fifth_bits = block + 16;
    const std::uint8_t* low_bits = block + 48;
    for (Index i = 0; i < block_size; ++i) {
      const auto [s, m] = detail::scale_and_minimum(block + 4, i / 32);
      const float scale = detail::product(d, static_cast<float>(s));
      const float minimum = detail::product(dmin, static_cast<float>(m));
      const int fifth_bit = detail::bits_at(fifth_bits[i % 32], static_cast<int>(i / 32), 1);
      const int q = detail::nibble_of_256(low_bits, i) | fifth_bit << 4;
      values[i] = detail::difference(detail::product(scale, static_cast<float>(q)), minimum);
    }
  }
};

}  // namespace lora::formats
