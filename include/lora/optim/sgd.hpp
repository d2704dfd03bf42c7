// Stochastic gradient descent with momentum and weight decay.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/step_check.hpp"

namespace lora {

/// Options of SGD, in PyTorch's meaning.
struct SGDOptions {
  double learning_rate = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;     ///< takes this part off each gradient that enters the momentum, but the first
  double weight_decay = 0.0;  ///< L2 penalty: coupled, it passes through the momentum
  bool nesterov = false;      ///< needs momentum > 0 and dampening = 0
};

/// For a value p with gradient g, elementwise:
///
///     d = g + weight_decay * p
///     b = d                                       in the first step with momentum
///     b = momentum * b + (1 - dampening) * d      later
///     p = p - rate * b                            (d + momentum * b with nesterov, d without momentum)
///
/// where rate = learning_rate * Parameter::learning_rate_scale. The semantics are those of torch.optim.SGD.
///
/// State, in Parameter::state(): `first` is b (absent as long as momentum is 0), `second` stays empty. To restore a
/// saved state, set `steps`, `first` and `owner = SGD<Scalar>::name`.
///
/// One object serves one thread at a time.
template <RealScalar Scalar>
class SGD {
 public:
  static constexpr std::string_view name = "SGD";

  /// @throws ConfigError for a negative or non-finite option, or nesterov without momentum or with dampening.
  explicit SGD(const SGDOptions& options = {}) : options_(options) {
    const auto require = [](std::string_view option, double value) {
      detail::require_not_negative<Scalar>("SGD", option, value);
    };
    require("learning_rate", options.learning_rate);
    require("momentum", options.momentum);
    require("dampening", options.dampening);
    require("weight_decay", options.weight_decay);
    if (options.nesterov && !(options.momentum > 0 && options.dampening == 0)) {
      throw ConfigError("SGD", "nesterov", "momentum > 0 and dampening = 0",
                        "momentum " + detail::number_text(options.momentum) + ", dampening " +
                            detail::number_text(options.dampening));
    }
  }

  [[nodiscard]] const SGDOptions& options() const noexcept { return options_; }
  [[nodiscard]] double learning_rate() const noexcept { return options_.learning_rate; }

  /// Sets the rate of the steps to come. @throws ConfigError unless it is finite and not negative.
  void set_learning_rate(double learning_rate) {
    detail::require_not_negative<Scalar>("SGD::set_learning_rate", "learning_rate", learning_rate);
    options_.learning_rate = learning_rate;
  }

  /// Updates every parameter once; gradients are read only. All parameters are checked before the first is changed.
  /// Allocates a parameter's state in its first step with momentum, nothing later.
  /// @throws StateError for a parameter that is locked, listed twice, or holds another optimiser's state
  /// @throws ConfigError for a negative or non-finite Parameter::learning_rate_scale
  /// @throws std::bad_alloc Whatever is thrown, no value and no state has changed.
  void step(std::span<const Parameter<Scalar>> parameters) {
    check_("SGD::step", name, options_.learning_rate, parameters);
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) prepare(parameter);
    }
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) update(parameter);
    }
  }

 private:
  // Capacity is no state: it comes before the update, so that the update cannot fail.
  void prepare(const Parameter<Scalar>& parameter) const {
    auto& state = parameter.moments();
    if (!state.first.empty()) detail::require_moment_size("SGD::step", parameter, state.first);
    if (!state.second.empty()) {
      throw StateError("SGD::step", parameter.name(), "no second moment", std::to_string(state.second.size()));
    }
    if (options_.momentum != 0) state.first.reserve(static_cast<std::size_t>(parameter.size()));
  }

  void update(const Parameter<Scalar>& parameter) const noexcept {
    const auto value = detail::array_map(parameter.value().data(), parameter.size());
    const auto gradient = detail::array_map(parameter.gradient().data(), parameter.size());
    parameter.moments().owner = name;
    ++parameter.moments().steps;
    if (options_.weight_decay == 0) {
      descend(parameter, value, gradient);
    } else {
      descend(parameter, value, gradient + static_cast<Scalar>(options_.weight_decay) * value);
    }
  }

  template <class Value, class Direction>
  void descend(const Parameter<Scalar>& parameter, Value value, const Direction& direction) const noexcept {
    const auto rate = static_cast<Scalar>(options_.learning_rate * parameter.learning_rate_scale);
    if (options_.momentum == 0) {
      value -= rate * direction;
      return;
    }
    const auto momentum = static_cast<Scalar>(options_.momentum);
    auto& first = parameter.moments().first;
    const bool first_time = first.empty();
    first.resize(static_cast<std::size_t>(parameter.size()));
    auto buffer = detail::array_map(first.data(), parameter.size());
    if (first_time) {
      buffer = direction;
    } else {
      buffer = momentum * buffer + static_cast<Scalar>(1 - options_.dampening) * direction;
    }
    if (options_.nesterov) {
      value -= rate * (direction + momentum * buffer);
    } else {
      value -= rate * buffer;
    }
  }

  SGDOptions options_;
  detail::StepCheck<Scalar> check_;
};

}  // namespace lora
