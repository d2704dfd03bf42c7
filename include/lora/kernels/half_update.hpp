// SPDX-License-Identifier: MIT
// Adds an update to weights of 16 bits in place so that removing it restores every bit: exact_update.hpp for weights
// that are narrower than the update.
//
// The sum of weight and update is rounded once, to 16 bits. The distance between the old weight and round16(merged -
// delta), in units of last place of 16 bits, is one signed byte, or the old weight is kept.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "lora/core/finite.hpp"
#include "lora/core/half.hpp"
#include "lora/core/rounding.hpp"
#include "lora/format/bf16.hpp"
#include "lora/format/f16.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/kernels/simd.hpp"

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
  const double sum = lora::detail::sum(a, b);
  const double added = lora::detail::difference(sum, a);
  const double lost = lora::detail::difference(b, added);
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
  const bool exact = (-held <= gap && gap <= held) || !is_finite(a) || !is_finite(b);
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

namespace detail {

/// apply_scaled() of 16-bit weights one by one, for any numbers and factors.
template <class Format>
[[nodiscard]] ExactUpdate apply_half_elements(std::uint16_t* weights, const float* delta, const RunFactors<float>& run,
                                              std::int8_t* codes, Index count, std::uint16_t* originals) noexcept {
  ExactUpdate result{.applied = true};
  for (Index i = 0; i < count; ++i) {
    const std::uint16_t original = weights[i];
    const std::uint16_t merged = detail::merged_half<Format>(original, delta[i], run.factors[i * run.step]);
    const std::uint16_t predicted = detail::predicted_half<Format>(merged, delta[i], run.reciprocals[i * run.step]);
    const bool overflows = !detail::finite_half<Format>(merged) && detail::finite_half<Format>(original);
    if (!is_finite(delta[i]) || overflows) result.applied = false;
    weights[i] = merged;
    codes[i] = detail::half_code<Format>(original, predicted);
    if (codes[i] == exceptional_code) originals[result.exceptions++] = original;
  }
  return result;
}

/// restore_scaled() of 16-bit weights one by one.
template <class Format>
Index restore_half_elements(std::uint16_t* weights, const float* delta, const RunFactors<float>& run,
                            const std::int8_t* codes, Index count, const std::uint16_t* originals) noexcept {
  Index exceptions = 0;
  for (Index i = 0; i < count; ++i) {
    const bool exceptional = codes[i] == exceptional_code;
    const std::uint16_t predicted = detail::predicted_half<Format>(weights[i], delta[i], run.reciprocals[i * run.step]);
    weights[i] = exceptional ? originals[exceptions] : detail::half_at_distance(codes[i], predicted);
    exceptions += exceptional ? 1 : 0;
  }
  return exceptions;
}

// The same without factors and for finite numbers, four at a time. These are vectors of 16 bytes on every machine:
// compiled once, and merging is not done often.

inline constexpr Index half_lanes = 4;
using HalfWords __attribute__((vector_size(16))) = std::uint32_t;
using HalfIntegers __attribute__((vector_size(16))) = std::int32_t;
using HalfFloats __attribute__((vector_size(16))) = float;

[[nodiscard]] LORA_INLINE HalfWords bits_of(HalfFloats values) { return reinterpret_cast<HalfWords>(values); }
[[nodiscard]] LORA_INLINE HalfFloats floats_of(HalfWords bits) { return reinterpret_cast<HalfFloats>(bits); }

/// a + b, rounded on its own whatever the flags.
[[nodiscard]] LORA_INLINE HalfFloats sum_of(HalfFloats a, HalfFloats b) {
  HalfFloats sum = a + b;
  LORA_OPAQUE_VECTOR(sum);
  return sum;
}

/// a + b rounded to odd: see sum_to_odd(). The error of the sum is exact (Knuth, The Art of Computer
/// Programming, 4.2.2).
[[nodiscard]] LORA_INLINE HalfFloats sum_to_odd(HalfFloats a, HalfFloats b) {
  const HalfFloats sum = sum_of(a, b);
  const HalfFloats part_of_a = sum_of(sum, -b);
  const HalfFloats part_of_b = sum_of(sum, -part_of_a);
  const HalfFloats error = sum_of(sum_of(a, -part_of_a), sum_of(b, -part_of_b));
  const auto inexact = reinterpret_cast<HalfWords>((bits_of(error) << 1) != 0U);
  const auto even = reinterpret_cast<HalfWords>((bits_of(sum) & 1U) == 0U);
  const HalfWords outwards = 1U - 2U * (bits_of(error) >> 31 ^ bits_of(sum) >> 31);  // 1, or -1
  return floats_of(bits_of(sum) + (inexact & even & outwards));
}

/// Reads and rounds numbers of 16 bits in the low halves of words. Pre: they are finite.
template <class Format>
struct HalfLanes;
template <>
struct HalfLanes<formats::BF16> {
  [[nodiscard]] LORA_INLINE static HalfFloats values(HalfWords halves) { return floats_of(halves << 16); }
  [[nodiscard]] LORA_INLINE static HalfWords round(HalfFloats values) {
    const HalfWords bits = bits_of(values);
    return (bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16;
  }
};
template <>
struct HalfLanes<formats::F16> {
  [[nodiscard]] LORA_INLINE static HalfFloats values(HalfWords halves) {
    const HalfWords magnitude = halves & 0x7FFFU;
    const auto small = reinterpret_cast<HalfWords>(magnitude < 0x0400U);
    const HalfFloats denormal =
        __builtin_convertvector(reinterpret_cast<HalfIntegers>(magnitude), HalfFloats) * 0x1p-24F;
    const HalfWords normal = (magnitude << 13) + rebias;
    return floats_of((halves & 0x8000U) << 16 | (small & bits_of(denormal)) | (~small & normal));
  }
  [[nodiscard]] LORA_INLINE static HalfWords round(HalfFloats values) {
    const HalfWords sign = bits_of(values) >> 16 & 0x8000U;
    const HalfWords magnitude = bits_of(values) & 0x7FFFFFFFU;
    const HalfWords normal = (magnitude + 0xFFFU + (magnitude >> 13 & 1U) - rebias) >> 13;
    // The last place of 0.5 is 2^-24, that of denormal numbers of 16 bits.
    const HalfWords denormal = bits_of(sum_of(floats_of(magnitude), HalfFloats{} + 0.5F)) - 0x3F000000U;
    const auto small = reinterpret_cast<HalfWords>(magnitude < 0x38800000U);
    const HalfWords rounded = (small & denormal) | (~small & normal);
    const auto over = reinterpret_cast<HalfWords>(rounded > 0x7C00U);
    return sign | (over & 0x7C00U) | (~over & rounded);
  }

 private:
  static constexpr std::uint32_t rebias = (127U - 15U) << 23U;
};

[[nodiscard]] LORA_INLINE HalfWords load_halves(const std::uint16_t* p) { return HalfWords{p[0], p[1], p[2], p[3]}; }
LORA_INLINE void store_halves(std::uint16_t* p, HalfWords halves) {
  for (int i = 0; i < half_lanes; ++i) p[i] = static_cast<std::uint16_t>(halves[i]);
}
[[nodiscard]] LORA_INLINE HalfFloats load_delta(const float* p) { return HalfFloats{p[0], p[1], p[2], p[3]}; }

[[nodiscard]] LORA_INLINE HalfIntegers ordered_halves(HalfWords halves) {
  const HalfWords ordered = halves ^ 0x7FFFU * (halves >> 15 & 1U);
  return reinterpret_cast<HalfIntegers>(ordered << 16) >> 16;
}

[[nodiscard]] LORA_INLINE HalfWords not_finite(HalfFloats values) {
  return reinterpret_cast<HalfWords>((bits_of(values) & 0x7F800000U) == 0x7F800000U);
}
template <class Format>
[[nodiscard]] LORA_INLINE HalfWords not_finite(HalfWords halves) {
  constexpr std::uint32_t mask = HalfNumber<Format>::exponent_bits;
  return reinterpret_cast<HalfWords>((halves & mask) == mask);
}
[[nodiscard]] LORA_INLINE bool any(HalfWords mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }

/// Four elements of apply_half_elements() without factors; false, and nothing is written, if any of them is
/// exceptional.
template <class Format>
[[nodiscard]] inline bool apply_four_halves(std::uint16_t* weights, const float* delta, std::int8_t* codes) noexcept {
  using Lanes = HalfLanes<Format>;
  const HalfWords original = load_halves(weights);
  const HalfFloats added = load_delta(delta);
  const HalfWords merged = Lanes::round(sum_to_odd(Lanes::values(original), added));
  const HalfWords predicted = Lanes::round(sum_to_odd(Lanes::values(merged), -added));
  const HalfIntegers distance = ordered_halves(original) - ordered_halves(predicted);
  const auto far = reinterpret_cast<HalfWords>((distance > largest_code) | (distance < -largest_code));
  if (any(not_finite(added) | not_finite<Format>(original) | not_finite<Format>(merged) |
          not_finite<Format>(predicted) | far)) {
    return false;
  }
  store_halves(weights, merged);
  for (int i = 0; i < half_lanes; ++i) codes[i] = static_cast<std::int8_t>(distance[i]);
  return true;
}

/// Four elements of restore_half_elements() without factors; false, and nothing is written, if any is exceptional.
template <class Format>
[[nodiscard]] inline bool restore_four_halves(std::uint16_t* weights, const float* delta,
                                              const std::int8_t* codes) noexcept {
  using Lanes = HalfLanes<Format>;
  const HalfIntegers distance{codes[0], codes[1], codes[2], codes[3]};
  const HalfWords merged = load_halves(weights);
  const HalfFloats added = load_delta(delta);
  const auto exceptional = reinterpret_cast<HalfWords>(distance == exceptional_code);
  if (any(exceptional | not_finite(added) | not_finite<Format>(merged))) return false;
  const HalfWords predicted = Lanes::round(sum_to_odd(Lanes::values(merged), -added));
  const auto ordered = reinterpret_cast<HalfWords>(ordered_halves(predicted) + distance);
  store_halves(weights, reinterpret_cast<HalfWords>(ordered_halves(ordered)));
  return true;
}

[[nodiscard]] inline bool has_factors(const RunFactors<float>& run) noexcept {
  return run.step != 0 || *run.factors != 1.0F || *run.reciprocals != 1.0F;
}

}  // namespace detail

/// apply_scaled() of 16-bit weights; `weights` and `originals` are their bits.
template <class Format>
[[nodiscard]] ExactUpdate apply_half(std::uint16_t* weights, const float* delta, const RunFactors<float>& run,
                                     std::int8_t* codes, Index count, std::uint16_t* originals) noexcept {
  if (count == 0 || detail::has_factors(run)) {
    return detail::apply_half_elements<Format>(weights, delta, run, codes, count, originals);
  }
  ExactUpdate result{.applied = true};
  for (Index i = 0; i < count; i += detail::half_lanes) {
    const Index part = std::min(detail::half_lanes, count - i);
    if (part == detail::half_lanes && detail::apply_four_halves<Format>(weights + i, delta + i, codes + i)) continue;
    const ExactUpdate one_by_one = detail::apply_half_elements<Format>(weights + i, delta + i, run, codes + i, part,
                                                                       originals + result.exceptions);
    result.exceptions += one_by_one.exceptions;
    result.applied = result.applied && one_by_one.applied;
  }
  return result;
}

/// restore_scaled() of 16-bit weights.
template <class Format>
Index restore_half(std::uint16_t* weights, const float* delta, const RunFactors<float>& run, const std::int8_t* codes,
                   Index count, const std::uint16_t* originals) noexcept {
  if (count == 0 || detail::has_factors(run)) {
    return detail::restore_half_elements<Format>(weights, delta, run, codes, count, originals);
  }
  Index exceptions = 0;
  for (Index i = 0; i < count; i += detail::half_lanes) {
    const Index part = std::min(detail::half_lanes, count - i);
    if (part == detail::half_lanes && detail::restore_four_halves<Format>(weights + i, delta + i, codes + i)) continue;
    exceptions +=
        detail::restore_half_elements<Format>(weights + i, delta + i, run, codes + i, part, originals + exceptions);
  }
  return exceptions;
}

}  // namespace lora::kernels
