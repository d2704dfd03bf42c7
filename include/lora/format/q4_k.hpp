// SPDX-License-Identifier: MIT
// Q4_K of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block256.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 256 weights, 144 bytes: [d: F16][dmin: F16][s and m: 12 bytes][q: 128 bytes of two].
/// value = (d * s) * q - (dmin * m), with s and m of 32 weights, 6 bits each. Source: ggml's block_q4_K.
struct Q4_K {
  static constexpr std::string_view name = "Q4_K";
  static constexpr Index block_size = 256;
  static constexpr Index block_bytes = 144;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    const float dmin = detail::f16_at(block + 2);
    const std::uint8_t* codes = block + 16;
    for (Index i = 0; i < block_size; ++i) {
      const auto [s, m] = detail::scale_and_minimum(block + 4, i / 32);
      const float scale = detail::product(d, static_cast<float>(s));
      const float minimum = detail::product(dmin, static_cast<float>(m));
      const auto q = static_cast<float>(detail::nibble_of_256(codes, i));
      values[i] = detail::difference(detail::product(scale, q), minimum);
    }
  }
};

}  // namespace lora::formats
