// SPDX-License-Identifier: MIT
// The rounding of number formats, whatever the flags of the including file: without it, one weight in 18,000 gets
// another code of Q4_0 with -march=native, and one in 500 another of Q4_1 with -ffast-math (g++ 12; half of the weights
// multiples of 1/64).
//
// Decoding ggml's formats is less delicate: a product of scales and codes has at most 24 bits and is exact, so a value
// is rounded once, in the sum if there is one, and a fused sum gives the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "lora/core/finite.hpp"
#include "lora/core/rounding.hpp"

namespace lora::formats::detail {

using lora::detail::difference;
using lora::detail::product;
using lora::detail::quotient;
using lora::detail::rounded;
using lora::detail::sum;

/// 1 / value; 0 for zero.
[[nodiscard]] inline float reciprocal_or_zero(float value) noexcept {
  return value != 0.0F ? quotient(1.0F, value) : 0.0F;
}

/// The integer next to `value` towards zero; 0 where the value is not finite. Pre: a finite value fits an int.
[[nodiscard]] inline int truncated(float value) noexcept { return is_finite(value) ? static_cast<int>(value) : 0; }

/// The integer nearest to `value`, halves away from zero; 0 where the value is not finite. std::round is not used
/// because -ffast-math replaces it. Pre: a finite value fits an int.
[[nodiscard]] inline int nearest_away_from_zero(float value) noexcept {
  const int whole = truncated(value);
  if (!is_finite(value)) return whole;
  const float rest = difference(value, static_cast<float>(whole));
  return whole + static_cast<int>(rest >= 0.5F) - static_cast<int>(rest <= -0.5F);
}

/// Bits of |value|. They are ordered as the magnitudes are, with infinities and NaNs above all numbers.
[[nodiscard]] inline std::uint32_t magnitude_bits(float value) noexcept {
  return std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFU;
}

/// Whether a < b, for numbers. Compares integers: with -ffast-math, a minimum of floats may return either of two zeros.
[[nodiscard]] inline bool less(float a, float b) noexcept {
  const auto key = [](float value) {
    const auto magnitude = static_cast<std::int32_t>(magnitude_bits(value));
    return std::bit_cast<std::int32_t>(value) < 0 ? -magnitude : magnitude;
  };
  return key(a) < key(b);
}

}  // namespace lora::formats::detail
