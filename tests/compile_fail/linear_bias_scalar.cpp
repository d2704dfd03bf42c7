// SPDX-License-Identifier: MIT
// A bias of doubles is not silently rounded to the floats of a layer.
// expect: the bias' scalar type is not the layer's
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Bias = Eigen::VectorXd;
#else
using Bias = Eigen::VectorXf;
#endif

lora::LoraLinear<float> wrap(const lora::Matrix<float>& w0, const Bias& bias) {
  return {w0, bias, lora::LoraConfig{}, 1};
}
