// Adam with decoupled weight decay.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/step_check.hpp"

namespace lora {

/// Options of AdamW, in PyTorch's meaning.
struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;  ///< decoupled: shrinks the value, stays out of the moments
};

namespace detail {

/// out = sqrt(in), rounded to nearest, also for infinities and denormals. Eigen 3.4 takes an approximation for packets
/// of float on x86 that turns an infinity into a NaN.
template <class Scalar>
void square_root(const Scalar* in, Scalar* out, Index count) noexcept {
  Index i = 0;
#if defined(__SSE__)
  if constexpr (std::is_same_v<Scalar, float>) {
    for (; i + 4 <= count; i += 4) _mm_storeu_ps(out + i, _mm_sqrt_ps(_mm_loadu_ps(in + i)));
    for (; i < count; ++i) out[i] = std::sqrt(in[i]);
    return;
  }
#endif
  array_map(out, count) = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>(in, count).sqrt();
}

}  // namespace detail

/// For a value p with gradient g, in the parameter's step t = 1, 2, ..., elementwise:
///
///     p = p * (1 - rate * weight_decay)
///     m = beta1 * m + (1 - beta1) * g
///     v = beta2 * v + (1 - beta2) * g * g
///     p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
///
/// where rate = learning_rate * Parameter::learning_rate_scale. Semantics and order are those of torch.optim.AdamW;
/// coefficients are computed in double. With epsilon = 0, an element whose gradient was always 0 becomes NaN, as there.
///
/// State, in Parameter::state(): `first` is m, `second` is v, `steps` is t. To restore a saved state, set these three
/// and `owner = AdamW<Scalar>::name`.
///
/// One object serves one thread at a time. Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization,
/// arXiv 1711.05101, Algorithm 2.
template <RealScalar Scalar>
class AdamW {
 public:
  static constexpr std::string_view name = "AdamW";

  /// @throws ConfigError for a negative or non-finite option, or a beta outside [0, 1).
  explicit AdamW(const AdamWOptions& options = {}) : options_(options) {
    detail::require_not_negative<Scalar>("AdamW", "learning_rate", options.learning_rate);
    detail::require_below("AdamW", "beta1", options.beta1, 1.0);
    detail::require_below("AdamW", "beta2", options.beta2, 1.0);
    detail::require_not_negative<Scalar>("AdamW", "epsilon", options.epsilon);
    detail::require_not_negative<Scalar>("AdamW", "weight_decay", options.weight_decay);
  }

  [[nodiscard]] const AdamWOptions& options() const noexcept { return options_; }
  [[nodiscard]] double learning_rate() const noexcept { return options_.learning_rate; }

  /// Sets the rate of the steps to come. @throws ConfigError unless it is finite and not negative.
  void set_learning_rate(double learning_rate) {
    detail::require_not_negative<Scalar>("AdamW::set_learning_rate", "learning_rate", learning_rate);
    options_.learning_rate = learning_rate;
  }

  /// Updates every parameter once; gradients are read only. All parameters are checked before the first is changed.
  /// Allocates a parameter's state in its first step, nothing later.
  /// @throws StateError for a parameter that is locked, listed twice, or holds another optimiser's state
  /// @throws ConfigError for a negative or non-finite Parameter::learning_rate_scale
  /// @throws std::bad_alloc Whatever is thrown, no value and no state has changed.
  void step(std::span<const Parameter<Scalar>> parameters) {
    check_("AdamW::step", name, options_.learning_rate, parameters);
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) prepare(parameter);
    }
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) update(parameter);
    }
  }

 private:
  struct Coefficients {
    Scalar kept;  ///< 1 - rate * weight_decay
    Scalar beta1;
    Scalar beta1_rest;  ///< 1 - beta1
    Scalar beta2;
    Scalar beta2_rest;       ///< 1 - beta2
    Scalar step_size;        ///< rate / (1 - beta1^t)
    Scalar root_correction;  ///< sqrt(1 - beta2^t)
    Scalar epsilon;
  };

  /// Scalars of each array that one pass handles, so that what it writes is still in the first-level cache.
  static constexpr Index chunk_size = 512;

  // Capacity is no state: it comes before the update, so that the update cannot fail.
  static void prepare(const Parameter<Scalar>& parameter) {
    auto& state = parameter.moments();
    if (!state.owner.empty()) {
      detail::require_moment_size("AdamW::step", parameter, state.first);
      detail::require_moment_size("AdamW::step", parameter, state.second);
    }
    state.first.reserve(static_cast<std::size_t>(parameter.size()));
    state.second.reserve(static_cast<std::size_t>(parameter.size()));
  }

  void update(const Parameter<Scalar>& parameter) const noexcept {
    auto& state = parameter.moments();
    state.first.resize(static_cast<std::size_t>(parameter.size()));
    state.second.resize(static_cast<std::size_t>(parameter.size()));
    state.owner = name;
    ++state.steps;
    const Coefficients c =
        coefficients(options_.learning_rate * parameter.learning_rate_scale, static_cast<double>(state.steps));
    Scalar* const value = parameter.value().data();
    const Scalar* const gradient = parameter.gradient().data();
    for (Index i = 0; i < parameter.size(); i += chunk_size) {
      update_chunk(c, value + i, gradient + i, state.first.data() + i, state.second.data() + i,
                   std::min(chunk_size, parameter.size() - i));
    }
  }

  [[nodiscard]] Coefficients coefficients(double rate, double time) const noexcept {
    const auto scalar = [](double number) { return static_cast<Scalar>(number); };
    return {.kept = scalar(1 - rate * options_.weight_decay),
            .beta1 = scalar(options_.beta1),
            .beta1_rest = scalar(1 - options_.beta1),
            .beta2 = scalar(options_.beta2),
            .beta2_rest = scalar(1 - options_.beta2),
            .step_size = scalar(rate / (1 - std::pow(options_.beta1, time))),
            .root_correction = scalar(std::sqrt(1 - std::pow(options_.beta2, time))),
            .epsilon = scalar(options_.epsilon)};
  }

  static void update_chunk(const Coefficients& c, Scalar* value, const Scalar* gradient, Scalar* first, Scalar* second,
                           Index count) noexcept {
    const Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>> g(gradient, count);
    auto p = detail::array_map(value, count);
    auto m = detail::array_map(first, count);
    auto v = detail::array_map(second, count);
    alignas(64) std::array<Scalar, chunk_size> root_storage;
    const auto root = detail::array_map(root_storage.data(), count);

    m = c.beta1 * m + c.beta1_rest * g;
    v = c.beta2 * v + (c.beta2_rest * g) * g;
    detail::square_root(second, root_storage.data(), count);
    p = c.kept * p - (c.step_size * m) / (root / c.root_correction + c.epsilon);
  }

  AdamWOptions options_;
  detail::StepCheck<Scalar> check_;
};

}  // namespace lora
