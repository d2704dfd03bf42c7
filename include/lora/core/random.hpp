// SPDX-License-Identifier: MIT
// Uniform and normal deviates with the same bits on every platform and compiler.
//
// A compiler may or may not contract a*b + c into a fused multiply-add, which changes the last bit. Here every such
// expression is either exact or explicitly fused (core/rounding.hpp), and no C library function is called whose result
// may vary.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lora/core/philox.hpp"
#include "lora/core/rounding.hpp"
#include "lora/core/view.hpp"

namespace lora {

namespace detail {

/// Evaluates c[0] + c[1] x + c[2] x^2 + ...
template <std::size_t n>
[[nodiscard]] inline double polynomial(const std::array<double, n>& coefficients, double x) noexcept {
  double sum = coefficients[n - 1];
  for (std::size_t i = n - 1; i-- > 0;) sum = fused(sum, x, coefficients[i]);
  return sum;
}

/// Natural logarithm of a positive normal x, to about one unit in the last place:
/// log(m 2^e) = e log 2 + 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2)).
[[nodiscard]] inline double reproducible_log(double x) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>(bits >> 52U) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0xFFFFFFFFFFFFFU) | (std::uint64_t{1023} << 52U));
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  const double z = (mantissa - 1.0) / (mantissa + 1.0);
  const double square = z * z;
  double series = 0.0;
  for (int odd = 25; odd >= 1; odd -= 2) series = fused(series, square, 1.0 / odd);
  const double logarithm = 2.0 * z * series;
  return fused(exponent, 0.69314718055994530942, logarithm);
}

}  // namespace detail

/// Quantile of the standard normal distribution for p in (0, 1), relative error about 1e-16.
/// Source: Wichura, "Algorithm AS 241", Applied Statistics 37 (1988), routine PPND16.
[[nodiscard]] inline double normal_quantile(double p) noexcept {
  // clang-format off
  static constexpr std::array<double, 8> central_top = {
      3.3871328727963666080e0, 1.3314166789178437745e+2, 1.9715909503065514427e+3, 1.3731693765509461125e+4,
      4.5921953931549871457e+4, 6.7265770927008700853e+4, 3.3430575583588128105e+4, 2.5090809287301226727e+3};
  static constexpr std::array<double, 8> central_bottom = {
      1.0, 4.2313330701600911252e+1, 6.8718700749205790830e+2, 5.3941960214247511077e+3,
      2.1213794301586595867e+4, 3.9307895800092710610e+4, 2.8729085735721942674e+4, 5.2264952788528545610e+3};
  static constexpr std::array<double, 8> middle_top = {
      1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
      1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr std::array<double, 8> middle_bottom = {
      1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
      1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9};
  static constexpr std::array<double, 8> far_top = {
      6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7};
  static constexpr std::array<double, 8> far_bottom = {
      1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15};
  // clang-format on
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = detail::fused(-q, q, 0.180625);
    return q * detail::polynomial(central_top, r) / detail::polynomial(central_bottom, r);
  }
  const double tail = std::sqrt(-detail::reproducible_log(q < 0 ? p : 1.0 - p));
  const double size = tail <= 5.0
                          ? detail::polynomial(middle_top, tail - 1.6) / detail::polynomial(middle_bottom, tail - 1.6)
                          : detail::polynomial(far_top, tail - 5.0) / detail::polynomial(far_bottom, tail - 5.0);
  return q < 0 ? -size : size;
}

namespace detail {

/// target(i, j) = value_of(64 bits of the stream), row by row.
template <class Scalar, class Value>
void fill_from_bits(const MatrixView<Scalar>& target, const RandomStream& stream, const Value& value_of) noexcept {
  std::uint64_t element = 0;
  std::array<std::uint32_t, 4> words{};
  for (Index i = 0; i < target.rows; ++i) {
    for (Index j = 0; j < target.cols; ++j, ++element) {
      if (element % 2 == 0) words = stream.block(element / 2);
      const std::size_t first = element % 2 * 2;
      target(i, j) = static_cast<Scalar>(value_of(std::uint64_t{words[first]} << 32U | words[first + 1]));
    }
  }
}

}  // namespace detail

/// Fills `target`, row by row, with U(-bound, bound), from two words of the stream per element.
/// The value is bound * (2 u - 1) rounded once, with u of 53 bits.
template <class Scalar>
void fill_uniform(const MatrixView<Scalar>& target, double bound, const RandomStream& stream) noexcept {
  detail::fill_from_bits(target, stream, [bound](std::uint64_t bits) {
    return bound * (static_cast<double>(bits >> 11U) * 0x1p-52 - 1.0);  // only the product with the bound rounds
  });
}

/// Fills `target`, row by row, with N(0, deviation^2) by inversion, from two words of the stream per element.
template <class Scalar>
void fill_normal(const MatrixView<Scalar>& target, double deviation, const RandomStream& stream) noexcept {
  detail::fill_from_bits(target, stream, [deviation](std::uint64_t bits) {
    // The probability is exact, and inside (0, 1).
    return deviation * normal_quantile((static_cast<double>(bits >> 12U) + 0.5) * 0x1p-52);
  });
}

}  // namespace lora
