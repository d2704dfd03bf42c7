// SPDX-License-Identifier: MIT
// Single operations that round on their own, whatever the flags of the including file. Compilers fuse a * b + c into
// one rounding where the instruction set allows it (g++ by default); with -ffast-math they also reorder sums, divide by
// multiplying with a reciprocal, and replace std::fma by a product and a sum (clang++).
#pragma once

#include <cmath>

namespace lora::detail {

/// The value, of which the compiler no longer knows where it comes from: it was rounded to its type, and no operation
/// before is combined with one after.
template <class Scalar>
[[nodiscard]] inline Scalar rounded(Scalar value) noexcept {
#if defined(__SSE2__)
  __asm__("" : "+x"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#else
  __asm__("" : "+m"(value));
#endif
  return value;
}

/// a * b, rounded once.
template <class Scalar>
[[nodiscard]] inline Scalar product(Scalar a, Scalar b) noexcept {
  return rounded(a * b);
}

/// a + b, rounded once.
template <class Scalar>
[[nodiscard]] inline Scalar sum(Scalar a, Scalar b) noexcept {
  return rounded(a + b);
}

/// a - b, rounded once.
template <class Scalar>
[[nodiscard]] inline Scalar difference(Scalar a, Scalar b) noexcept {
  return rounded(a - b);
}

/// a / b, rounded once: the quotient in double, rounded to float, is that of floats. -mrecip has no estimates of it.
[[nodiscard]] inline float quotient(float a, float b) noexcept {
  return rounded(static_cast<float>(static_cast<double>(a) / rounded(static_cast<double>(b))));
}

/// a b + c, rounded once. Where the machine has no such instruction, clang++ sees through a call of std::fma with
/// -ffast-math, but not through the pointer.
[[nodiscard]] inline double fused(double a, double b, double c) noexcept {
#if defined(__clang__)
  double (*function)(double, double, double) = &::fma;
  __asm__("" : "+r"(function));
  return function(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

}  // namespace lora::detail
