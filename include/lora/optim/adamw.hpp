// Adam with decoupled weight decay.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/elementwise.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/moments.hpp"
#include "lora/optim/step_check.hpp"

namespace lora {

/// Options of AdamW, with PyTorch's meaning.
struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;  ///< decoupled: shrinks the value and does not enter the moments
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

  /// Sets the rate of subsequent steps. @throws ConfigError unless it is finite and not negative.
  void set_learning_rate(double learning_rate) {
    detail::require_not_negative<Scalar>("AdamW::set_learning_rate", "learning_rate", learning_rate);
    options_.learning_rate = learning_rate;
  }

  /// Updates every parameter once; gradients are read only. All parameters are checked before the first is changed.
  /// Allocates a parameter's state in its first step, and nothing later.
  /// @throws StateError for a parameter that is locked, listed twice, or holds another optimiser's state
  /// @throws ConfigError for a negative or non-finite Parameter::learning_rate_scale
  /// @throws std::bad_alloc After any exception, no value and no state has changed.
  void step(std::span<const Parameter<Scalar>> parameters) {
    check_("AdamW::step", name, options_.learning_rate, parameters);
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
    Scalar kept;  ///< 1 - rate * weight_decay
    Scalar beta1;
    Scalar beta1_rest;  ///< 1 - beta1
    Scalar beta2;
    Scalar beta2_rest;       ///< 1 - beta2
    Scalar step_size;        ///< rate / (1 - beta1^t)
    Scalar root_correction;  ///< sqrt(1 - beta2^t)
    Scalar epsilon;
  };

  // Reserves first, so that the update cannot throw.
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
        coefficients(options_.learning_rate * parameter.learning_rate_scale(), static_cast<double>(state.steps));
    update_all(c, parameter.value().data(), parameter.gradient().data(), state.first.data(), state.second.data(),
               parameter.size());
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

  static void update_all(const Coefficients& c, Scalar* value, const Scalar* gradient, Scalar* first, Scalar* second,
                         Index count) noexcept {
    using Lanes = detail::Pack<Scalar>;
    Index i = 0;
    for (; i + Lanes::lanes <= count; i += Lanes::lanes) {
      typename Lanes::Type p, g, m, v;
      Lanes::load(value + i, p);
      Lanes::load(gradient + i, g);
      Lanes::load(first + i, m);
      Lanes::load(second + i, v);
      update_pack(c, p, g, m, v);
      Lanes::store(p, value + i);
      Lanes::store(m, first + i);
      Lanes::store(v, second + i);
    }
    if (i == count) return;
    const Index rest = count - i;
    typename Lanes::Type p{}, g{}, m{}, v{};
    Lanes::load(value + i, rest, p);
    Lanes::load(gradient + i, rest, g);
    Lanes::load(first + i, rest, m);
    Lanes::load(second + i, rest, v);
    update_pack(c, p, g, m, v);
    Lanes::store(p, rest, value + i);
    Lanes::store(m, rest, first + i);
    Lanes::store(v, rest, second + i);
  }

  template <class Pack>
  static void update_pack(const Coefficients& c, Pack& p, const Pack& g, Pack& m, Pack& v) noexcept {
    m = c.beta1 * m + c.beta1_rest * g;
    v = c.beta2 * v + (c.beta2_rest * g) * g;
    Pack root = v;
    detail::Pack<Scalar>::square_root(root);
    p = c.kept * p - (c.step_size * m) / (root / c.root_correction + c.epsilon);
  }

  AdamWOptions options_;
  detail::StepCheck<Scalar> check_;
};

}  // namespace lora
