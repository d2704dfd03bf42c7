// SPDX-License-Identifier: MIT
// Adds an update to weights in place so that removing it restores every bit.
//
// w + delta rounds, so (w + delta) - delta is w only up to a few units in the last place. If the bits of floating-point
// numbers are read as integers in numeric order, that difference is a small integer: one signed byte per weight. If a
// byte is too small, the weight itself is kept instead. Sums and differences round the same way in every instruction
// set, so any of them restores what any other applied. The same holds for (w + delta) * f, undone as merged * (1 / f) -
// delta.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "lora/core/finite.hpp"
#include "lora/core/rounding.hpp"
#include "lora/kernels/kernel_calls.hpp"

namespace lora::kernels {

/// The code of an element whose original value is kept.
inline constexpr std::int8_t exceptional_code = -128;

/// Other codes lie within +-largest_code.
inline constexpr int largest_code = 127;

/// Factors of a run of weights, with their reciprocals: one per element (`step` 1), or one for all (`step` 0).
template <class Scalar>
struct RunFactors {
  const Scalar* factors = nullptr;
  const Scalar* reciprocals = nullptr;
  Index step = 0;
};

namespace detail {

template <class Scalar>
using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;

template <class Scalar>
inline constexpr Bits<Scalar> exponent_bits = sizeof(Scalar) == 4 ? Bits<Scalar>(0x7f800000U)
                                                                  : static_cast<Bits<Scalar>>(0x7ff0000000000000ULL);

/// The bits of a number as an integer with the same order as the numbers; its own inverse.
template <class Scalar>
[[nodiscard]] constexpr Bits<Scalar> ordered(Bits<Scalar> bits) noexcept {
  constexpr Bits<Scalar> all = ~Bits<Scalar>(0);
  return (bits >> (8 * sizeof(Scalar) - 1)) != 0 ? bits ^ (all >> 1) : bits;
}

/// The code of an element, given its original value and the value that undoing predicts.
template <class Scalar>
[[nodiscard]] Bits<Scalar> distance(Scalar original, Scalar predicted) {
  return ordered<Scalar>(std::bit_cast<Bits<Scalar>>(original)) -
         ordered<Scalar>(std::bit_cast<Bits<Scalar>>(predicted));
}

/// Stores the code, or the original value if the code does not fit. Returns the number of exceptions, 0 or 1.
template <class Scalar>
Index keep_code(Bits<Scalar> code, Scalar original, std::int8_t* kept, Scalar* exception) {
  const bool fits = code + static_cast<Bits<Scalar>>(largest_code) <= static_cast<Bits<Scalar>>(2 * largest_code);
  *kept = fits ? static_cast<std::int8_t>(code) : exceptional_code;
  if (!fits) *exception = original;
  return fits ? 0 : 1;
}

/// The number `code` units of last place away from `predicted`.
template <class Scalar>
[[nodiscard]] Scalar at_distance(std::int8_t code, Scalar predicted) {
  const Bits<Scalar> back = ordered<Scalar>(std::bit_cast<Bits<Scalar>>(predicted));
  return std::bit_cast<Scalar>(ordered<Scalar>(back + static_cast<Bits<Scalar>>(static_cast<std::int64_t>(code))));
}

}  // namespace detail

/// weights[i] <- (weights[i] + delta[i]) * factors[i], with codes[i] such that `restore_scaled` restores the former
/// bits. Original values of elements with `exceptional_code` go to `originals`, in order; it has room for `count`. Runs
/// to the end even if a delta is not finite, or a finite weight has a result that is not; it then reports that it did
/// not apply, and `restore_scaled` undoes it. Reciprocals may be rounded in any way, infinite or 0, as long as
/// restoring uses the same ones.
template <class Scalar>
[[nodiscard]] ExactUpdate apply_scaled(Scalar* weights, const Scalar* delta, const RunFactors<Scalar>& run,
                                       std::int8_t* codes, Index count, Scalar* originals) {
  ExactUpdate result{.applied = true};
  for (Index i = 0; i < count; ++i) {
    const Scalar original = weights[i];
    const Scalar sum = lora::detail::sum(original, delta[i]);
    const Scalar merged = lora::detail::product(sum, run.factors[i * run.step]);
    const Scalar back = lora::detail::product(merged, run.reciprocals[i * run.step]);
    if (!is_finite(delta[i]) || (!is_finite(merged) && is_finite(original))) result.applied = false;
    weights[i] = merged;
    result.exceptions += detail::keep_code<Scalar>(detail::distance<Scalar>(original, back - delta[i]), original,
                                                   codes + i, originals + result.exceptions);
  }
  return result;
}

/// Undoes `apply_scaled` bit for bit, given the same delta and reciprocals and what it wrote. Returns the number of
/// original values it used. No allocation.
template <class Scalar>
Index restore_scaled(Scalar* weights, const Scalar* delta, const RunFactors<Scalar>& run, const std::int8_t* codes,
                     Index count, const Scalar* originals) {
  Index exceptions = 0;
  for (Index i = 0; i < count; ++i) {
    const Scalar back = lora::detail::product(weights[i], run.reciprocals[i * run.step]);
    const bool exceptional = codes[i] == exceptional_code;
    weights[i] = exceptional ? originals[exceptions] : detail::at_distance<Scalar>(codes[i], back - delta[i]);
    exceptions += exceptional ? 1 : 0;
  }
  return exceptions;
}

}  // namespace lora::kernels
