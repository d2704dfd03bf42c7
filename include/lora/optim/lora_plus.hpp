// SPDX-License-Identifier: MIT
// LoRA+: a higher learning rate for B than for A.
#pragma once

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/parameter.hpp"
#include "lora/optim/moments.hpp"

namespace lora {

/// LoRA+'s factor on the learning rate of a parameter with this role: `ratio` for B, its bias, the magnitude, the
/// layer's bias and any other tensor of one dimension; 1 for A and for a weight that trains.
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

/// Sets the learning-rate scale of every parameter by its role; the paper suggests a ratio near 16. The scale is stored
/// with the parameter and stays with it:
///
///     lora::lora_plus(layer, 16.0);
///     optimizer.step(layer);
///
/// Groups as create_loraplus_optimizer of huggingface/peft does (lora_B and tensors of one dimension), with two
/// differences: B of an embedding also has the ratio, and biases decay like every other parameter.
/// @throws ConfigError unless `ratio` is finite and positive; no scale is changed then.
/// Source: Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv 2402.12354.
template <ParameterSource Source>
void lora_plus(Source&& source, double ratio) {
  if (!is_finite(ratio) || !(ratio > 0)) {
    throw ConfigError("lora_plus", "ratio", "a finite positive number", detail::number_text(ratio));
  }
  const auto& parameters = detail::parameter_range(source);
  for (const auto& parameter : detail::span_of(parameters)) {
    parameter.set_learning_rate_scale(lora_plus_scale(parameter.role(), ratio));
  }
}

}  // namespace lora
