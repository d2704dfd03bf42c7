// SPDX-License-Identifier: MIT
// What all optimisers share: options, learning rate, and the order of a step.
#pragma once

#include <span>

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/moments.hpp"
#include "lora/optim/step_check.hpp"

namespace lora::detail {

/// The base of an optimiser. For parameters that are not empty, `Derived` has `prepare`, which reserves memory and may
/// throw but changes no value and no state, and `update`, which does not throw.
template <class Derived, RealScalar Scalar, class Options>
class Optimizer {
 public:
  /// The options it was created with, and the rate that was set last.
  [[nodiscard]] const Options& options() const noexcept { return options_; }
  /// The rate of the next step, before Parameter::learning_rate_scale().
  [[nodiscard]] double learning_rate() const noexcept { return options_.learning_rate; }

  /// Sets the rate of subsequent steps. @throws ConfigError unless it is finite and not negative.
  void set_learning_rate(double learning_rate) {
    require_not_negative<Scalar>(Derived::rate_operation, "learning_rate", learning_rate);
    options_.learning_rate = learning_rate;
  }

  /// Updates every parameter once; gradients are read only. All parameters are checked before the first is changed.
  /// Allocates a parameter's moments in the first step that uses them, and nothing later.
  /// @throws StateError for a parameter that is locked, listed twice, or holds another optimiser's state
  /// @throws ConfigError for a negative or non-finite Parameter::learning_rate_scale
  /// @throws std::bad_alloc After any exception, no value and no state has changed.
  void step(std::span<const Parameter<Scalar>> parameters) {
    check_(Derived::step_operation, Derived::name, options_.learning_rate, parameters);
    const Derived& derived = static_cast<const Derived&>(*this);
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) derived.prepare(parameter);
    }
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) derived.update(parameter);
    }
  }

  /// The same for a layer (its `parameters()`) or a model (its `trainable_parameters()`).
  template <class Source>
    requires(
        requires(Source& source) { source.parameters(); } ||
        requires(Source & source) { source.trainable_parameters(); })
  void step(Source&& source) {
    const auto& parameters = parameter_range(source);
    step(span_of(parameters));
  }

 protected:
  explicit Optimizer(const Options& options) : options_(options) {}

  Options options_;

 private:
  StepCheck<Scalar> check_;
};

}  // namespace lora::detail
