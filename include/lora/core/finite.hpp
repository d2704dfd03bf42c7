// SPDX-License-Identifier: MIT
// Tests from its bits whether a number is finite: with -ffast-math, std::isfinite is always true.
#pragma once

#include <bit>
#include <cstdint>

namespace lora {

/// Whether it is neither infinite nor NaN, by its bits: std::isfinite is always true with -ffast-math.
[[nodiscard]] constexpr bool is_finite(float value) noexcept {
  return (std::bit_cast<std::uint32_t>(value) & 0x7f800000U) != 0x7f800000U;
}

/// The same for double.
[[nodiscard]] constexpr bool is_finite(double value) noexcept {
  constexpr std::uint64_t exponent = 0x7ff0000000000000U;
  return (std::bit_cast<std::uint64_t>(value) & exponent) != exponent;
}

/// Whether it is NaN, by its bits.
[[nodiscard]] constexpr bool is_nan(double value) noexcept {
  return (std::bit_cast<std::uint64_t>(value) & 0x7fffffffffffffffU) > 0x7ff0000000000000U;
}

}  // namespace lora
