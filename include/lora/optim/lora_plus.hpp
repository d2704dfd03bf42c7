// LoRA+: a higher learning rate for B than for A.
#pragma once

#include <cmath>
#include <ranges>
#include <type_traits>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/optim/hyperparameter.hpp"
#include "lora/optim/moments.hpp"

namespace lora {

/// The factor LoRA+ puts on the learning rate of a parameter of this role: `ratio` for B, its bias, the magnitude and
/// the layer's bias; 1 for A and for a weight that trains.
[[nodiscard]] constexpr double lora_plus_scale(ParameterRole role, double ratio) noexcept {
  switch (role) {
    case ParameterRole::lora_B:
    case ParameterRole::lora_bias:
    case ParameterRole::magnitude:
    case ParameterRole::bias:
      return ratio;
    case ParameterRole::lora_A:
    case ParameterRole::weight:
      break;
  }
  return 1.0;
}

/// Sets Parameter::learning_rate_scale of every handle by its role; the paper suggests a ratio near 16. The scale lives
/// in the handles, so pass the same ones to the optimiser:
///
///     auto parameters = layer.parameters();
///     lora::lora_plus(parameters, 16.0);
///     optimizer.step(parameters);
///
/// Groups as create_loraplus_optimizer of huggingface/peft does (lora_B and tensors of one dimension), with two
/// differences: B of an embedding has the ratio too, and biases decay like every other parameter.
/// @throws ConfigError unless `ratio` is finite and positive; no handle is changed then. No allocation.
/// Source: Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv 2402.12354.
template <ParameterRange Range>
  requires(!std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Range&>>>)
void lora_plus(Range& parameters, double ratio) {
  if (!(ratio > 0) || !std::isfinite(ratio)) {
    throw ConfigError("lora_plus", "ratio", "a finite positive number", detail::number_text(ratio));
  }
  for (auto& parameter : parameters) parameter.learning_rate_scale = lora_plus_scale(parameter.role(), ratio);
}

}  // namespace lora
