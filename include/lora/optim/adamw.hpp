// SPDX-License-Identifier: MIT
// Adam with decoupled weight decay.
#pragma once

#include <cmath>
#include <cstddef>
#include <string_view>

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/elementwise.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/optimizer.hpp"
#include "lora/optim/step_check.hpp"

namespace lora {

/// Options of AdamW, with PyTorch's meaning.
struct AdamWOptions {
  double learning_rate = 1e-3;  ///< before Parameter::learning_rate_scale()
  double beta1 = 0.9;           ///< decay of the first moment, in [0, 1)
  double beta2 = 0.999;         ///< decay of the second moment, in [0, 1)
  double epsilon = 1e-8;        ///< added to the denominator
  double weight_decay = 0.01;   ///< decoupled: shrinks the value and does not enter the moments
};

/// For a value p with gradient g, elementwise, in step t = 1, 2, ... of the parameter:
///
///     p = p * (1 - rate * weight_decay)
///     m = beta1 * m + (1 - beta1) * g
///     v = beta2 * v + (1 - beta2) * g * g
///     p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
///
/// where rate = learning_rate * Parameter::learning_rate_scale(). Semantics and order are those of torch.optim.AdamW;
/// coefficients are computed in double. With epsilon = 0, an element whose gradient was always 0 becomes NaN, as in
/// PyTorch.
///
/// State, in Parameter::moments(): `first` is m, `second` is v, `steps` is t. To restore a saved state, set these three
/// and `owner = AdamW<Scalar>::name`.
///
/// One object serves one thread at a time. Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization,
/// arXiv 1711.05101, Algorithm 2.
template <RealScalar Scalar>
class AdamW : public detail::Optimizer<AdamW<Scalar>, Scalar, AdamWOptions> {
  using Base = detail::Optimizer<AdamW<Scalar>, Scalar, AdamWOptions>;

 public:
  static constexpr std::string_view name = "AdamW";  ///< the owner of the moments it fills

  /// @throws ConfigError for a negative or non-finite option, or a beta outside [0, 1).
  explicit AdamW(const AdamWOptions& options = {}) : Base(options) {
    detail::require_not_negative<Scalar>("AdamW", "learning_rate", options.learning_rate);
    detail::require_below("AdamW", "beta1", options.beta1, 1.0);
    detail::require_below("AdamW", "beta2", options.beta2, 1.0);
    detail::require_not_negative<Scalar>("AdamW", "epsilon", options.epsilon);
    detail::require_not_negative<Scalar>("AdamW", "weight_decay", options.weight_decay);
  }

 private:
  friend Base;
  using Base::options_;
  static constexpr std::string_view step_operation = "AdamW::step";
  static constexpr std::string_view rate_operation = "AdamW::set_learning_rate";

  struct Rule {
    Scalar kept;  ///< 1 - rate * weight_decay
    Scalar beta1;
    Scalar beta1_rest;  ///< 1 - beta1
    Scalar beta2;
    Scalar beta2_rest;       ///< 1 - beta2
    Scalar step_size;        ///< rate / (1 - beta1^t)
    Scalar root_correction;  ///< sqrt(1 - beta2^t)
    Scalar epsilon;

    template <class Pack>
    void operator()(Pack& p, const Pack& g, Pack& m, Pack& v) const noexcept {
      m = beta1 * m + beta1_rest * g;
      v = beta2 * v + (beta2_rest * g) * g;
      Pack root = v;
      detail::Pack<Scalar>::square_root(root);
      p = kept * p - (step_size * m) / (root / root_correction + epsilon);
    }
  };

  static void prepare(const Parameter<Scalar>& parameter) {
    auto& state = parameter.moments();
    if (!state.owner.empty()) {
      detail::require_moment_size(step_operation, parameter, state.first);
      detail::require_moment_size(step_operation, parameter, state.second);
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
    const double rate = options_.learning_rate * parameter.learning_rate_scale();
    detail::update_elements<2>(rule(rate, static_cast<double>(state.steps)), parameter);
  }

  [[nodiscard]] Rule rule(double rate, double time) const noexcept {
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
};

}  // namespace lora
