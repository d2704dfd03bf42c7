// Stochastic gradient descent with momentum and weight decay.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/elementwise.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/moments.hpp"
#include "lora/optim/step_check.hpp"

namespace lora {

/// Options of SGD, with PyTorch's meaning.
struct SGDOptions {
  double learning_rate = 1e-3;
  double momentum = 0.0;
  double dampening = 0.0;     ///< fraction removed from every gradient but the first as it enters the momentum
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
/// where rate = learning_rate * Parameter::learning_rate_scale(). The semantics are those of torch.optim.SGD.
///
/// State, in Parameter::moments(): `first` is b (absent as long as momentum is 0), `second` stays empty. To restore a
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

  /// Sets the rate of subsequent steps. @throws ConfigError unless it is finite and not negative.
  void set_learning_rate(double learning_rate) {
    detail::require_not_negative<Scalar>("SGD::set_learning_rate", "learning_rate", learning_rate);
    options_.learning_rate = learning_rate;
  }

  /// Updates every parameter once; gradients are read only. All parameters are checked before the first is changed.
  /// Allocates a parameter's state in its first step with momentum, and nothing later.
  /// @throws StateError for a parameter that is locked, listed twice, or holds another optimiser's state
  /// @throws ConfigError for a negative or non-finite Parameter::learning_rate_scale
  /// @throws std::bad_alloc After any exception, no value and no state has changed.
  void step(std::span<const Parameter<Scalar>> parameters) {
    check_("SGD::step", name, options_.learning_rate, parameters);
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) prepare(parameter);
    }
    for (const auto& parameter : parameters) {
      if (parameter.size() != 0) update(parameter);
    }
  }

  /// The same for a layer (its `parameters()`) or a model (its `trainable_parameters()`).
  template <class Source>
    requires(
        requires(Source& source) { source.parameters(); } ||
        requires(Source & source) { source.trainable_parameters(); })
  void step(Source&& source) {
    const auto& parameters = detail::parameter_range(source);
    step(detail::span_of(parameters));
  }

 private:
  struct Coefficients {
    Scalar rate;
    Scalar decay;
    Scalar momentum;
    Scalar rest;  ///< 1 - dampening
    bool decays;
    bool first_time;
    bool nesterov;
  };

  // Reserves first, so that the update cannot throw.
  void prepare(const Parameter<Scalar>& parameter) const {
    auto& state = parameter.moments();
    if (!state.first.empty()) detail::require_moment_size("SGD::step", parameter, state.first);
    if (!state.second.empty()) {
      throw StateError("SGD::step", parameter.name(), "no second moment", std::to_string(state.second.size()));
    }
    if (options_.momentum != 0) state.first.reserve(static_cast<std::size_t>(parameter.size()));
  }

  void update(const Parameter<Scalar>& parameter) const noexcept {
    auto& state = parameter.moments();
    state.owner = name;
    ++state.steps;
    const auto scalar = [](double number) { return static_cast<Scalar>(number); };
    const Coefficients c{.rate = scalar(options_.learning_rate * parameter.learning_rate_scale()),
                         .decay = scalar(options_.weight_decay),
                         .momentum = scalar(options_.momentum),
                         .rest = scalar(1 - options_.dampening),
                         .decays = options_.weight_decay != 0,
                         .first_time = state.first.empty(),
                         .nesterov = options_.nesterov};
    Scalar* const value = parameter.value().data();
    const Scalar* const gradient = parameter.gradient().data();
    if (options_.momentum == 0) {
      update_all<false>(c, value, gradient, nullptr, parameter.size());
    } else {
      state.first.resize(static_cast<std::size_t>(parameter.size()));
      update_all<true>(c, value, gradient, state.first.data(), parameter.size());
    }
  }

  template <bool has_momentum>
  static void update_all(const Coefficients& c, Scalar* value, const Scalar* gradient, Scalar* first,
                         Index count) noexcept {
    using Lanes = detail::Pack<Scalar>;
    Index i = 0;
    LORA_UNROLL_BY_FOUR
    for (; i + Lanes::lanes <= count; i += Lanes::lanes) {
      typename Lanes::Type p, g, b{};
      Lanes::load(value + i, p);
      Lanes::load(gradient + i, g);
      if constexpr (has_momentum) Lanes::load(first + i, b);
      update_pack<has_momentum>(c, p, g, b);
      Lanes::store(p, value + i);
      if constexpr (has_momentum) Lanes::store(b, first + i);
    }
    if (i == count) return;
    const Index rest = count - i;
    typename Lanes::Type p{}, g{}, b{};
    Lanes::load(value + i, rest, p);
    Lanes::load(gradient + i, rest, g);
    if constexpr (has_momentum) Lanes::load(first + i, rest, b);
    update_pack<has_momentum>(c, p, g, b);
    Lanes::store(p, rest, value + i);
    if constexpr (has_momentum) Lanes::store(b, rest, first + i);
  }

  template <bool has_momentum, class Pack>
  static void update_pack(const Coefficients& c, Pack& p, const Pack& g, Pack& b) noexcept {
    Pack d = g;
    if (c.decays) d = g + c.decay * p;
    if constexpr (has_momentum) {
      if (c.first_time) {
        b = d;
      } else {
        b = c.momentum * b + c.rest * d;
      }
      if (c.nesterov) {
        d += c.momentum * b;
      } else {
        d = b;
      }
    }
    p -= c.rate * d;
  }

  SGDOptions options_;
  detail::StepCheck<Scalar> check_;
};

}  // namespace lora
