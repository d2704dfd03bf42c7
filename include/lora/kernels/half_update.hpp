// Adds an update to weights of 16 bits in place so that removing it restores every bit: exact_update.hpp for weights
// that are narrower than the update.
//
// The sum of weight and update is rounded once, to 16 bits. The distance between the old weight and round16(merged -
// delta), in units of last place of 16 bits, is one signed byte, or the old weight is kept.
#pragma once

#include <bit>
#include <cstdint>

#include "lora/core/half.hpp"
#include "lora/format/bf16.hpp"
#include "lora/format/f16.hpp"
#include "lora/kernels/exact_update.hpp"

namespace lora::kernels {

/// The bits of a 16-bit format as a number.
template <class Format>
struct HalfNumber;
template <>
struct HalfNumber<formats::F16> {
  [[nodiscard]] static float value(std::uint16_t bits) noexcept { return float_from_f16(bits); }
  [[nodiscard]] static std::uint16_t round(double value) noexcept { return f16_from(value); }
  static constexpr std::uint16_t exponent_bits = 0x7C00;
};
template <>
struct HalfNumber<formats::BF16> {
  [[nodiscard]] static float value(std::uint16_t bits) noexcept { return float_from_bf16(bits); }
  [[nodiscard]] static std::uint16_t round(double value) noexcept { return bf16_from(value); }
  static constexpr std::uint16_t exponent_bits = 0x7F80;
};

namespace detail {

template <class Format>
[[nodiscard]] bool finite_half(std::uint16_t bits) noexcept {
  constexpr auto mask = HalfNumber<Format>::exponent_bits;
  return (bits & mask) != mask;
}

/// The bits as an integer with the same order as the numbers; its own inverse. Signs are random: a branch on them would
/// cost more than all else.
[[nodiscard]] constexpr std::uint16_t ordered_half(std::uint16_t bits) noexcept {
  return static_cast<std::uint16_t>(bits ^ 0x7FFFU * (bits >> 15U));
}

/// a + b where a double does not hold the sum: |a| is far above |b| and b is not 0.
[[nodiscard]] inline double far_sum_to_odd(double a, double b) noexcept {
  const double sum = rounded<double>(a + b);
  const double added = rounded<double>(sum - a);
  const double lost = rounded<double>(b - added);
  const auto bits = std::bit_cast<std::uint64_t>(sum);
  if (lost == 0.0 || (bits & 1U) != 0) return sum;
  const bool outwards = (lost > 0.0) == (sum > 0.0);
  return std::bit_cast<double>(outwards ? bits + 1 : bits - 1);
}

/// a + b rounded to odd: a double whose last bit is set if it is not exact. Rounding it to 16 bits gives the exact sum
/// rounded once. (Rounded to nearest, a sum just beside the middle between two 16-bit numbers would become the middle.)
/// Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
/// IEEE Transactions on Computers 57(4), 2008.
[[nodiscard]] inline double sum_to_odd(float a, float b) noexcept {
  const auto exponent = [](float value) {
    return static_cast<int>(std::bit_cast<std::uint32_t>(value) >> 23U & 0xFFU);
  };
  const int gap = exponent(a) - exponent(b);
  constexpr int held = 28;  // 24 bits, 28 places up, and a carry are the 53 bits of a double
  const bool exact = (-held <= gap && gap <= held) || !finite(a) || !finite(b);
  if (exact) return static_cast<double>(a) + static_cast<double>(b);
  return gap > 0 ? far_sum_to_odd(static_cast<double>(a), static_cast<double>(b))
                 : far_sum_to_odd(static_cast<double>(b), static_cast<double>(a));
}

/// round16((weight + delta) * factor) with the sum as above, and the product rounded to double before.
template <class Format>
[[nodiscard]] std::uint16_t merged_half(std::uint16_t weight, float delta, float factor) noexcept {
  using Number = HalfNumber<Format>;
  return Number::round(sum_to_odd(Number::value(weight), delta) * static_cast<double>(factor));
}

/// What undoing predicts: round16(merged * reciprocal - delta). The product is exact, so that fusing it with the
/// difference changes nothing.
template <class Format>
[[nodiscard]] std::uint16_t predicted_half(std::uint16_t merged, float delta, float reciprocal) noexcept {
  using Number = HalfNumber<Format>;
  return Number::round(static_cast<double>(Number::value(merged)) * static_cast<double>(reciprocal) -
                       static_cast<double>(delta));
}

/// The code of an element. One without a finite original or prediction is exceptional: payloads of NaNs are not
/// predictable.
template <class Format>
[[nodiscard]] std::int8_t half_code(std::uint16_t original, std::uint16_t predicted) noexcept {
  if (!finite_half<Format>(original) || !finite_half<Format>(predicted)) return exceptional_code;
  const int distance =
      static_cast<std::int16_t>(ordered_half(original)) - static_cast<std::int16_t>(ordered_half(predicted));
  const bool fits = -largest_code <= distance && distance <= largest_code;
  return fits ? static_cast<std::int8_t>(distance) : exceptional_code;
}

[[nodiscard]] inline std::uint16_t half_at_distance(std::int8_t code, std::uint16_t predicted) noexcept {
  return ordered_half(static_cast<std::uint16_t>(ordered_half(predicted) + code));
}

}  // namespace detail

/// apply_scaled() of 16-bit weights; `weights` and `originals` are their bits.
template <class Format>
[[nodiscard]] ExactUpdate apply_half(std::uint16_t* weights, const float* delta, const RunFactors<float>& run,
                                     std::int8_t* codes, Index count, std::uint16_t* originals) noexcept {
  ExactUpdate result{.applied = true};
  for (Index i = 0; i < count; ++i) {
    const std::uint16_t original = weights[i];
    const std::uint16_t merged = detail::merged_half<Format>(original, delta[i], run.factors[i * run.step]);
    const std::uint16_t predicted = detail::predicted_half<Format>(merged, delta[i], run.reciprocals[i * run.step]);
    const bool overflows = !detail::finite_half<Format>(merged) && detail::finite_half<Format>(original);
    if (!detail::finite(delta[i]) || overflows) result.applied = false;
    weights[i] = merged;
    codes[i] = detail::half_code<Format>(original, predicted);
    if (codes[i] == exceptional_code) originals[result.exceptions++] = original;
  }
  return result;
}

/// restore_scaled() of 16-bit weights.
template <class Format>
Index restore_half(std::uint16_t* weights, const float* delta, const RunFactors<float>& run, const std::int8_t* codes,
                   Index count, const std::uint16_t* originals) noexcept {
  Index exceptions = 0;
  for (Index i = 0; i < count; ++i) {
    const bool exceptional = codes[i] == exceptional_code;
    const std::uint16_t predicted = detail::predicted_half<Format>(weights[i], delta[i], run.reciprocals[i * run.step]);
    weights[i] = exceptional ? originals[exceptions] : detail::half_at_distance(codes[i], predicted);
    exceptions += exceptional ? 1 : 0;
  }
  return exceptions;
}

}  // namespace lora::kernels
