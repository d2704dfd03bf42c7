// SPDX-License-Identifier: MIT
// PEFT's option names as this library's configuration.
#pragma once

#include "conformance/golden_case.hpp"
#include "lora/adapter/config.hpp"

namespace lora::conformance {

/// Reads the options common to all kinds of layers. Strict: `options` must have no others.
inline LoraConfig layer_config(Options options) {
  LoraConfig config;
  config.rank = options.get<Index>("r");
  config.alpha = options.get<double>("lora_alpha");
  config.dropout = options.get<double>("lora_dropout", 0.0);
  config.fan_in_fan_out = options.get<bool>("fan_in_fan_out", false);
  config.use_rslora = options.get<bool>("use_rslora", false);
  config.lora_bias = options.get<bool>("lora_bias", false);
  config.use_dora = options.get<bool>("use_dora", false);
  options.finish();
  return config;
}

/// Calls `check` with a zero of the case's scalar type.
template <class Check>
void with_scalar(GoldenCase& golden, const Check& check) {
  const auto dtype = golden.options().get<std::string>("dtype");
  if (dtype == "float64") return check(double{});
  if (dtype == "float32") return check(float{});
  throw UnknownCase("unknown dtype " + dtype);
}

}  // namespace lora::conformance
