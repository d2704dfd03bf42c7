// SPDX-License-Identifier: MIT
// A weight of doubles is not silently rounded to the floats of a layer.
// expect: the weight's scalar type is not the layer's
#include "lora/layers/linear.hpp"

lora::LoraLinear<float> wrap(const lora::Matrix<double>& w0) {
#ifdef LORA_SHOULD_FAIL
  return {w0, lora::LoraConfig{}, 1};
#else
  return {w0.cast<float>(), lora::LoraConfig{}, 1};
#endif
}
