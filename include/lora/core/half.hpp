// SPDX-License-Identifier: MIT
// The two 16-bit floating-point formats of stored tensors: IEEE 754 binary16 (F16) and bfloat16 (BF16).
#pragma once

#include <bit>
#include <cstdint>

namespace lora {

namespace detail {

/// value / 2^shift rounded to nearest, ties to even. 1 <= shift <= 53, value < 2^63.
[[nodiscard]] constexpr std::uint64_t shift_right_to_nearest_even(std::uint64_t value, int shift) noexcept {
  const std::uint64_t half = std::uint64_t{1} << (shift - 1);
  const std::uint64_t odd = (value >> shift) & 1U;
  return (value + half - 1 + odd) >> shift;
}

/// `value` rounded once, to nearest even, to a sign, `ExponentBits` and `MantissaBits` that fill 16 bits.
/// Going through float first would round twice. A NaN becomes a quiet NaN with the leading bits of its payload.
template <int ExponentBits, int MantissaBits>
[[nodiscard]] constexpr std::uint16_t round_to_16_bits(double value) noexcept {
  static_assert(1 + ExponentBits + MantissaBits == 16);
  constexpr int double_mantissa_bits = 52;
  constexpr int double_bias = 1023;
  constexpr int bias = (1 << (ExponentBits - 1)) - 1;
  constexpr int excess_bits = double_mantissa_bits - MantissaBits;
  constexpr std::uint64_t double_infinity = std::uint64_t{0x7FF} << double_mantissa_bits;
  constexpr std::uint64_t hidden_bit = std::uint64_t{1} << double_mantissa_bits;
  constexpr std::uint64_t infinity = ((std::uint64_t{1} << ExponentBits) - 1) << MantissaBits;
  constexpr std::uint64_t quiet_bit = std::uint64_t{1} << (MantissaBits - 1);

  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint64_t sign = bits >> 63 << 15;
  const std::uint64_t magnitude = bits & ~(std::uint64_t{1} << 63);
  const auto exponent = static_cast<int>(magnitude >> double_mantissa_bits) - double_bias;
  const std::uint64_t mantissa = magnitude & (hidden_bit - 1);

  std::uint64_t rounded = 0;
  if (magnitude > double_infinity) {
    rounded = infinity | quiet_bit | (mantissa >> excess_bits);
  } else if (exponent > bias) {
    rounded = infinity;
  } else if (exponent >= 1 - bias) {
    // A carry out of the mantissa raises the exponent; past the largest finite number this gives infinity, as intended.
    constexpr std::uint64_t rebias = static_cast<std::uint64_t>(double_bias - bias) << double_mantissa_bits;
    rounded = shift_right_to_nearest_even(magnitude - rebias, excess_bits);
  } else {
    const int shift = excess_bits + (1 - bias - exponent);
    // Beyond 53 the value is less than half of the smallest subnormal number.
    if (shift <= 53) rounded = shift_right_to_nearest_even(hidden_bit | mantissa, shift);
  }
  return static_cast<std::uint16_t>(sign | rounded);
}

}  // namespace detail

/// The value of an F16, exactly. Subnormal numbers, infinities and NaN payloads are kept. Does not throw or allocate.
[[nodiscard]] constexpr float float_from_f16(std::uint16_t bits) noexcept {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000U} << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  constexpr std::uint32_t rebias = 127 - 15;
  const std::uint32_t wide_exponent = exponent == 0x1F ? 0xFFU : exponent + rebias;
  return std::bit_cast<float>(sign | wide_exponent << 23 | mantissa << 13);
}

/// The value of a BF16, exactly. Does not throw or allocate.
[[nodiscard]] constexpr float float_from_bf16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

/// The F16 nearest to `value`, ties to even; beyond the range, infinity. A float widens exactly before it is rounded.
/// Does not throw or allocate.
[[nodiscard]] constexpr std::uint16_t f16_from(double value) noexcept { return detail::round_to_16_bits<5, 10>(value); }

/// The BF16 nearest to `value`, ties to even; beyond the range, infinity. Does not throw or allocate.
[[nodiscard]] constexpr std::uint16_t bf16_from(double value) noexcept { return detail::round_to_16_bits<8, 7>(value); }

}  // namespace lora
