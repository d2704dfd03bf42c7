// SPDX-License-Identifier: MIT
// Q3_K of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block256.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 256 weights, 110 bytes: [third bits: 32 bytes][low 2 bits: 64 bytes][s: 12 bytes][d: F16].
/// value = (d * (s - 32)) * (q - 4), with s of 16 weights. Weight i has bit i / 32 of byte i % 32 of the third bits.
/// Source: ggml's block_q3_K.
struct Q3_K {
  static constexpr std::string_view name = "Q3_K";
  static constexpr Index block_size = 256;
  static constexpr Index block_bytes = 110;
  static constexpr bool scale_is_last = true;  ///< d is not at the block's beginning

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const std::uint8_t* low_bits = block + 32;
    const std::uint8_t* scales = block + 96;
    const float d = detail::f16_at(block + 108);
    for (Index i = 0; i < block_size; ++i) {
      const float scale = detail::product(d, static_cast<float>(scale_of(scales, i / 16) - 32));
      const int third_bit = detail::bits_at(block[i % 32], static_cast<int>(i / 32), 1);
      const int q = detail::crumb_of_256(low_bits, i) | third_bit << 2;
      values[i] = detail::product(scale, static_cast<float>(q - 4));
    }
  }

 private:
  /// The 6 bits of group 0 to 15: four in the nibbles of the first 8 bytes, low nibbles first, and the upper two in the
  /// last 4 bytes, of which each has those of groups 4 apart.
  [[nodiscard]] static int scale_of(const std::uint8_t* bytes, Index group) noexcept {
    const std::uint8_t byte = bytes[group % 8];
    const int lower = group < 8 ? detail::low_nibble(byte) : detail::high_nibble(byte);
    const int upper = detail::bits_at(bytes[8 + group % 4], static_cast<int>(group / 4 * 2), 2);
    return lower | upper << 4;
  }
};

}  // namespace lora::formats
