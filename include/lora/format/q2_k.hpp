// SPDX-License-Identifier: MIT
// Q2_K of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block256.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 256 weights, 84 bytes: [16 bytes of (s, m)][q: 64 bytes of four][d: F16][dmin: F16].
/// value = (d * s) * q - (dmin * m), with s (low nibble) and m (high nibble) of 16 weights. Source: ggml's block_q2_K.
struct Q2_K {
  static constexpr std::string_view name = "Q2_K";
  static constexpr Index block_size = 256;
  static constexpr Index block_bytes = 84;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const std::uint8_t* codes = block + 16;
    const float d = detail::f16_at(block + 80);
    const float dmin = detail::f16_at(block + 82);
    for (Index i = 0; i < block_size; ++i) {
      const std::uint8_t group = block[i / 16];
      const float scale = detail::product(d, static_cast<float>(detail::low_nibble(group)));
      const float minimum = detail::product(dmin, static_cast<float>(detail::high_nibble(group)));
      const auto q = static_cast<float>(detail::crumb_of_256(codes, i));
      values[i] = detail::difference(detail::product(scale, q), minimum);
    }
  }
};

}  // namespace lora::formats
