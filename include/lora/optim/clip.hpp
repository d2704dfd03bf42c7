// SPDX-License-Identifier: MIT
// Clipping of gradients by their global norm.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/optim/elementwise.hpp"
#include "lora/optim/moments.hpp"

namespace lora {

namespace detail {

/// Sum of (scale * g)^2 over all gradients, in double and in a fixed order: four partial sums per gradient.
template <class Scalar>
[[nodiscard]] double scaled_sum_of_squares(std::span<const Parameter<Scalar>> parameters, double scale) noexcept {
  double total = 0;
  for (const auto& parameter : parameters) {
    const Scalar* const gradient = parameter.gradient().data();
    const Index size = parameter.size();
    double sums[4] = {};
    Index i = 0;
    for (; i + 4 <= size; i += 4) {
      const double g0 = scale * static_cast<double>(gradient[i]);
      const double g1 = scale * static_cast<double>(gradient[i + 1]);
      const double g2 = scale * static_cast<double>(gradient[i + 2]);
      const double g3 = scale * static_cast<double>(gradient[i + 3]);
      sums[0] += g0 * g0;
      sums[1] += g1 * g1;
      sums[2] += g2 * g2;
      sums[3] += g3 * g3;
    }
    for (; i < size; ++i) {
      const double g = scale * static_cast<double>(gradient[i]);
      sums[0] += g * g;
    }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  return total;
}

/// Largest magnitude in all gradients; an infinity or NaN, if there is one, is reported in `culprit`.
template <class Scalar>
[[nodiscard]] double largest_gradient(std::span<const Parameter<Scalar>> parameters,
                                      const Parameter<Scalar>** culprit) noexcept {
  double largest = 0;
  for (const auto& parameter : parameters) {
    const Scalar* const gradient = parameter.gradient().data();
    for (Index i = 0; i < parameter.size(); ++i) {
      const double size = std::abs(static_cast<double>(gradient[i]));
      if (!is_finite(size)) {
        if (*culprit == nullptr) *culprit = &parameter;
        if (is_nan(size)) return size;
        largest = size;
      } else if (size > largest) {
        largest = size;
      }
    }
  }
  return largest;
}

template <class Scalar>
[[nodiscard]] double gradient_norm(std::span<const Parameter<Scalar>> parameters,
                                   const Parameter<Scalar>** culprit) noexcept {
  const double plain = scaled_sum_of_squares(parameters, 1.0);
  // Between these bounds no square has overflowed, and squares that underflowed are negligible.
  if (is_finite(plain) && plain >= 0x1p-900) return std::sqrt(plain);
  const double largest = largest_gradient(parameters, culprit);
  if (!is_finite(largest)) return largest;  // first: with -ffast-math a NaN may compare equal to 0
  if (largest == 0) return 0;
  const int exponent = std::clamp(std::ilogb(largest), -1000, 1000);  // 2^exponent and its inverse are normal doubles
  return std::scalbn(std::sqrt(scaled_sum_of_squares(parameters, std::scalbn(1.0, -exponent))), exponent);
}

template <class Scalar>
double clip_gradient_norm(std::span<const Parameter<Scalar>> parameters, double max_norm) {
  if (is_nan(max_norm) || max_norm < 0) {
    throw ConfigError("clip_gradient_norm", "max_norm", "a number that is not negative", number_text(max_norm));
  }
  const Parameter<Scalar>* culprit = nullptr;
  const double norm = gradient_norm(parameters, &culprit);
  if (!is_finite(norm)) {
    throw StateError("clip_gradient_norm", "gradients", "a finite norm",
                     number_text(norm) + (culprit == nullptr ? "" : " from '" + culprit->name() + "'"));
  }
  const double factor = max_norm / (norm + 1e-6);
  if (!is_finite(max_norm) || factor >= 1) return norm;
  for (const auto& parameter : parameters) {
    Scalar* const gradient = parameter.gradient().data();
    Index i = 0;
    if constexpr (sizeof(Scalar) == sizeof(double)) {
      typename Pack<Scalar>::Type g{};
      for (; i + Pack<Scalar>::lanes <= parameter.size(); i += Pack<Scalar>::lanes) {
        Pack<Scalar>::load(gradient + i, g);
        g *= factor;
        Pack<Scalar>::store(g, gradient + i);
      }
    }
    for (; i < parameter.size(); ++i) gradient[i] = static_cast<Scalar>(static_cast<double>(gradient[i]) * factor);
  }
  return norm;
}

}  // namespace detail

/// Euclidean norm of all gradients taken as one vector, sqrt(sum of g^2), accumulated in double. It neither overflows
/// nor underflows unless the norm itself does; it is infinite or NaN if a gradient is. Each parameter must be listed
/// once. `source`: a range of parameters, a layer or a model. No allocation except for a model's list of parameters.
template <ParameterSource Source>
[[nodiscard]] double gradient_norm(Source&& source) {
  const auto& parameters = detail::parameter_range(source);
  const Parameter<source_scalar_t<Source>>* culprit = nullptr;
  return detail::gradient_norm(detail::span_of(parameters), &culprit);
}

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), where norm is gradient_norm before scaling. Returns that
/// norm. Call it after backward and before the optimiser's step. Infinite `max_norm` only measures. No allocation.
/// The semantics are those of torch.nn.utils.clip_grad_norm_ with error_if_nonfinite = True: a norm that is not finite
/// cannot be clipped, and no gradient changes then. To skip such a step instead, check gradient_norm first.
/// @throws ConfigError if `max_norm` is negative or NaN @throws StateError if the norm is not finite
/// Source: Pascanu et al., On the difficulty of training recurrent neural networks, arXiv 1211.5063, Algorithm 1.
template <ParameterSource Source>
double clip_gradient_norm(Source&& source, double max_norm) {
  const auto& parameters = detail::parameter_range(source);
  return detail::clip_gradient_norm(detail::span_of(parameters), max_norm);
}

}  // namespace lora
