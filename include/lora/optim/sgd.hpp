// SPDX-License-Identifier: MIT
// Stochastic gradient descent with momentum and weight decay.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/elementwise.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/optimizer.hpp"
#include "lora/optim/step_check.hpp"

namespace lora {

/// Options of SGD, with PyTorch's meaning.
struct SGDOptions {
  double learning_rate = 1e-3;  ///< before Parameter::learning_rate_scale()
  double momentum = 0.0;        ///< 0: plain gradient descent, without state
  double dampening = 0.0;       ///< fraction removed from every gradient but the first as it enters the momentum
  double weight_decay = 0.0;    ///< L2 penalty: coupled, it passes through the momentum
  bool nesterov = false;        ///< needs momentum > 0 and dampening = 0
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
class SGD : public detail::Optimizer<SGD<Scalar>, Scalar, SGDOptions> {
  using Base = detail::Optimizer<SGD<Scalar>, Scalar, SGDOptions>;

 public:
  static constexpr std::string_view name = "SGD";  ///< the owner of the moments it fills

  /// @throws ConfigError for a negative or non-finite option, or nesterov without momentum or with dampening.
  explicit SGD(const SGDOptions& options = {}) : Base(options) {
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

 private:
  friend Base;
  using Base::options_;
  static constexpr std::string_view step_operation = "SGD::step";
  static constexpr std::string_view rate_operation = "SGD::set_learning_rate";

  enum class Momentum { none, plain, nesterov };

  struct Coefficients {
    Scalar rate;
    Scalar decay;
    Scalar momentum;
    Scalar kept;   ///< factor of b: 0 in the first step, in which b is 0
    Scalar added;  ///< factor of d as it enters b: 1 in the first step, 1 - dampening later
  };

  // Template parameters, because compilers leave tests of what never changes in the loop at -O2.
  template <bool decays, Momentum kind>
  struct Rule {
    Coefficients c;

    template <class Pack>
    void operator()(Pack& p, const Pack& g, Pack& b, Pack&) const noexcept {
      Pack d = g;
      if constexpr (decays) d += c.decay * p;
      if constexpr (kind != Momentum::none) b = c.kept * b + c.added * d;
      if constexpr (kind == Momentum::plain) d = b;
      if constexpr (kind == Momentum::nesterov) d += c.momentum * b;
      p -= c.rate * d;
    }
  };

  void prepare(const Parameter<Scalar>& parameter) const {
    auto& state = parameter.moments();
    if (!state.first.empty()) detail::require_moment_size(step_operation, parameter, state.first);
    if (!state.second.empty()) {
      throw StateError(step_operation, parameter.name(), "no second moment", std::to_string(state.second.size()));
    }
    if (options_.momentum != 0) state.first.reserve(static_cast<std::size_t>(parameter.size()));
  }

  void update(const Parameter<Scalar>& parameter) const noexcept {
    auto& state = parameter.moments();
    state.owner = name;
    ++state.steps;
    const bool first_time = state.first.empty();
    if (options_.momentum != 0) state.first.resize(static_cast<std::size_t>(parameter.size()));
    const auto scalar = [](double number) { return static_cast<Scalar>(number); };
    const Coefficients c{.rate = scalar(options_.learning_rate * parameter.learning_rate_scale()),
                         .decay = scalar(options_.weight_decay),
                         .momentum = scalar(options_.momentum),
                         .kept = scalar(first_time ? 0 : options_.momentum),
                         .added = scalar(first_time ? 1 : 1 - options_.dampening)};
    if (options_.weight_decay == 0) {
      update_with<false>(c, parameter);
    } else {
      update_with<true>(c, parameter);
    }
  }

  template <bool decays>
  void update_with(const Coefficients& c, const Parameter<Scalar>& parameter) const noexcept {
    if (options_.momentum == 0) {
      detail::update_elements<0>(Rule<decays, Momentum::none>{c}, parameter);
    } else if (!options_.nesterov) {
      detail::update_elements<1>(Rule<decays, Momentum::plain>{c}, parameter);
    } else {
      detail::update_elements<1>(Rule<decays, Momentum::nesterov>{c}, parameter);
    }
  }
};

}  // namespace lora
