// Adding an update to weights in place so that taking it away again restores every bit.
//
// w + delta rounds, so (w + delta) - delta is w only up to a few units in the last place. Floating-point numbers taken
// as integers in their own order make that difference a small integer: one signed byte per weight, with the weight
// itself kept aside where a byte does not do.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "lora/core/types.hpp"

namespace lora::kernels {

/// The code of an element whose original is kept whole.
inline constexpr std::int8_t exceptional_code = -128;

/// What an exact update did.
struct ExactUpdate {
  bool applied = false;  ///< false: some delta or sum was not finite, and nothing was written
  Index exceptions = 0;  ///< number of elements with `exceptional_code`
};

namespace detail {

template <class Scalar>
using Bits = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;

/// Bits of a number as an integer that orders as the numbers do; its own inverse.
template <class Scalar>
[[nodiscard]] constexpr Bits<Scalar> ordered(Bits<Scalar> bits) noexcept {
  constexpr Bits<Scalar> all = ~Bits<Scalar>(0);
  return (bits >> (8 * sizeof(Scalar) - 1)) != 0 ? bits ^ (all >> 1) : bits;
}

/// Looks at bits, so that -ffinite-math-only does not remove it.
template <class Scalar>
[[nodiscard]] constexpr bool finite(Scalar value) noexcept {
  constexpr Bits<Scalar> exponent = sizeof(Scalar) == 4 ? Bits<Scalar>(0x7f800000U)
                                                        : static_cast<Bits<Scalar>>(0x7ff0000000000000ULL);
  return (std::bit_cast<Bits<Scalar>>(value) & exponent) != exponent;
}

/// Returns `value`, and keeps -ffast-math from rewriting (w + delta) - delta as w.
template <class Scalar>
[[nodiscard]] inline Scalar rounded(Scalar value) noexcept {
  const volatile Scalar kept = value;
  return kept;
}

}  // namespace detail

/// weights[i] <- weights[i] + delta[i] for i < count, with codes[i] so that `restore_exact` gives the former bits back.
/// Originals of elements with `exceptional_code` go to `originals`, in order; it has room for `count`.
/// Writes nothing and says so when a delta is not finite, or a sum is not where the weight was. No allocation; the
/// arrays do not overlap.
template <class Scalar>
[[nodiscard]] ExactUpdate apply_exact(Scalar* weights, const Scalar* delta, std::int8_t* codes, Index count,
                                      Scalar* originals) {
  using detail::Bits;
  for (Index i = 0; i < count; ++i) {
    const Scalar sum = weights[i] + delta[i];
    if (!detail::finite(delta[i]) || (!detail::finite(sum) && detail::finite(weights[i]))) return {};
  }
  ExactUpdate result{.applied = true, .exceptions = 0};
  for (Index i = 0; i < count; ++i) {
    const Scalar original = weights[i];
    const Scalar sum = detail::rounded<Scalar>(original + delta[i]);
    const Scalar back = sum - delta[i];
    const auto code = detail::ordered<Scalar>(std::bit_cast<Bits<Scalar>>(original)) -
                      detail::ordered<Scalar>(std::bit_cast<Bits<Scalar>>(back));
    weights[i] = sum;
    if (code + 127U <= 254U) {
      codes[i] = static_cast<std::int8_t>(code);
    } else {
      codes[i] = exceptional_code;
      originals[result.exceptions++] = original;
    }
  }
  return result;
}

/// Undoes `apply_exact` bit for bit, given the same delta and what it wrote. No allocation.
template <class Scalar>
void restore_exact(Scalar* weights, const Scalar* delta, const std::int8_t* codes, Index count,
                   const Scalar* originals) {
  using detail::Bits;
  for (Index i = 0; i < count; ++i) {
    if (codes[i] == exceptional_code) {
      weights[i] = *originals++;
      continue;
    }
    const Scalar back = weights[i] - delta[i];
    const auto code = static_cast<Bits<Scalar>>(static_cast<std::int64_t>(codes[i]));
    weights[i] = std::bit_cast<Scalar>(
        detail::ordered<Scalar>(detail::ordered<Scalar>(std::bit_cast<Bits<Scalar>>(back)) + code));
  }
}

}  // namespace lora::kernels
