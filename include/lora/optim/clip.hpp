// Clipping of gradients by their global norm.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "lora/core/error.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/moments.hpp"

namespace lora {

namespace detail {

/// Sum of (scale * g)^2 over all gradients, in double and in one fixed order.
template <ParameterRange Range>
[[nodiscard]] double scaled_sum_of_squares(const Range& parameters, double scale) noexcept {
  double total = 0;
  for (const auto& parameter : parameters) {
    total += (parameter.gradient().template cast<double>() * scale).squaredNorm();
  }
  return total;
}

/// Largest magnitude of all gradients; NaN where one is NaN.
template <ParameterRange Range>
[[nodiscard]] double largest_gradient(const Range& parameters) noexcept {
  double largest = 0;
  for (const auto& parameter : parameters) {
    if (parameter.size() == 0) continue;
    if (parameter.gradient().hasNaN()) return std::numeric_limits<double>::quiet_NaN();
    largest = std::max(largest, static_cast<double>(parameter.gradient().cwiseAbs().maxCoeff()));
  }
  return largest;
}

/// The first parameter whose gradient has an element that is not finite; empty where there is none.
template <ParameterRange Range>
[[nodiscard]] std::string first_non_finite(const Range& parameters) {
  for (const auto& parameter : parameters) {
    if (!parameter.gradient().allFinite()) return parameter.name();
  }
  return {};
}

}  // namespace detail

/// Euclidean norm of all gradients taken as one vector, sqrt(sum of g^2), accumulated in double. It neither overflows
/// nor underflows unless the norm itself does; infinite or NaN where a gradient is. Each parameter must be listed once.
/// No allocation.
template <class Range>
  requires ParameterRange<const Range>
[[nodiscard]] double gradient_norm(const Range& parameters) noexcept {
  const double plain = detail::scaled_sum_of_squares<const Range>(parameters, 1.0);
  // Between these bounds no square has overflowed, and squares lost below the smallest double do not count.
  if (plain >= 0x1p-900 && plain <= std::numeric_limits<double>::max()) return std::sqrt(plain);
  const double largest = detail::largest_gradient<const Range>(parameters);
  if (largest == 0 || !std::isfinite(largest)) return largest;
  const int exponent = std::clamp(std::ilogb(largest), -1000, 1000);  // 2^exponent and its inverse are doubles
  const double scaled = detail::scaled_sum_of_squares<const Range>(parameters, std::scalbn(1.0, -exponent));
  return std::scalbn(std::sqrt(scaled), exponent);
}

/// Scales all gradients by min(1, max_norm / (norm + 1e-6)), norm being gradient_norm before. Returns that norm.
/// Call it after backward and before the optimiser's step. Infinite `max_norm` only measures. No allocation.
/// The semantics are those of torch.nn.utils.clip_grad_norm_ with error_if_nonfinite = True: a norm that is not finite
/// cannot be clipped, and no gradient is touched then. To skip such a step instead, ask gradient_norm first.
/// @throws ConfigError if `max_norm` is negative or NaN @throws StateError if the norm is not finite
/// Source: Pascanu et al., On the difficulty of training recurrent neural networks, arXiv 1211.5063, Algorithm 1.
template <class Range>
  requires ParameterRange<const Range>
double clip_gradient_norm(const Range& parameters, double max_norm) {
  using Scalar = parameter_scalar_t<const Range>;
  if (!(max_norm >= 0)) {
    throw ConfigError("clip_gradient_norm", "max_norm", "a number that is not negative", detail::number_text(max_norm));
  }
  const double norm = gradient_norm(parameters);
  if (!std::isfinite(norm)) {
    const std::string culprit = detail::first_non_finite<const Range>(parameters);
    throw StateError("clip_gradient_norm", "gradients", "a finite norm",
                     detail::number_text(norm) + (culprit.empty() ? "" : " from '" + culprit + "'"));
  }
  const double factor = max_norm / (norm + 1e-6);
  if (factor >= 1) return norm;
  for (const auto& parameter : parameters) {
    auto gradient = parameter.gradient();
    gradient = (gradient.template cast<double>() * factor).template cast<Scalar>();
  }
  return norm;
}

}  // namespace lora
