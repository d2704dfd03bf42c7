// SPDX-License-Identifier: MIT
// Q8_0 of GGUF files.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <string_view>

#include "lora/core/finite.hpp"
#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 32 weights, 34 bytes: [d: F16][q: 32 signed bytes]. value = d * q. Source: ggml's block_q8_0.
struct Q8_0 {
  static constexpr std::string_view name = "Q8_0";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 34;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    for (Index i = 0; i < block_size; ++i) {
      values[i] = detail::product(static_cast<float>(static_cast<std::int8_t>(block[2 + i])), d);
    }
  }

  /// d = max |w| / 127 and q = round(w / d), halves away from zero, with d before it is stored as F16. Beyond
  /// |w| = 127 * 65504, d is an infinity. A weight that is not finite makes d NaN.
  static void encode(const float* values, std::uint8_t* block) noexcept {
    const float largest = detail::first_largest(values, block_size);
    const bool finite = is_finite(largest);
    const float magnitude = std::bit_cast<float>(detail::magnitude_bits(largest));
    const float d = finite ? detail::quotient(magnitude, 127.0F) : std::numeric_limits<float>::quiet_NaN();
    const float inverse = finite ? detail::reciprocal_or_zero(d) : 0.0F;
    detail::put_f16(d, block);
    for (Index i = 0; i < block_size; ++i) {
      const int code = detail::nearest_away_from_zero(detail::product(values[i], inverse));
      block[2 + i] = static_cast<std::uint8_t>(code & 0xFF);
    }
  }
};

}  // namespace lora::formats
