// SPDX-License-Identifier: MIT
// Q6_K of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block256.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 256 weights, 210 bytes: [low 4 bits: 128 bytes][upper 2 bits: 64 bytes][s: 16 signed bytes][d: F16].
/// value = (d * s) * (q - 32), with s of 16 weights. Source: ggml's block_q6_K.
struct Q6_K {
  static constexpr std::string_view name = "Q6_K";
  static constexpr Index block_size = 256;
  static constexpr Index block_bytes = 210;
  static constexpr bool scale_is_last = true;  ///< d is not at the block's beginning

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const std::uint8_t* upper_bits = block + 128;
    const std::uint8_t* scales = block + 192;
    const float d = detail::f16_at(block + 208);
    for (Index i = 0; i < block_size; ++i) {
      const float scale = detail::product(d, static_cast<float>(static_cast<std::int8_t>(scales[i / 16])));
      const int q = low_bits_of(block, i) | detail::crumb_of_256(upper_bits, i) << 4;
      values[i] = detail::product(scale, static_cast<float>(q - 32));
    }
  }

 private:
  /// Each half of the block has 64 bytes: its first 64 weights in the low nibbles, its last 64 in the high ones.
  [[nodiscard]] static int low_bits_of(const std::uint8_t* bytes, Index i) noexcept {
    const std::uint8_t byte = bytes[i / 128 * 64 + i % 64];
    return i % 128 < 64 ? detail::low_nibble(byte) : detail::high_nibble(byte);
  }
};

}  // namespace lora::formats
