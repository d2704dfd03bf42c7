// SPDX-License-Identifier: MIT
// A matrix of one row only at run time may be meant as something else.
// expect: the bias is a vector
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Bias = lora::Matrix<float>;
#else
using Bias = Eigen::VectorXf;
#endif

lora::LoraLinear<float> wrap(const lora::Matrix<float>& w0, const Bias& bias) {
  return {w0, bias, lora::LoraConfig{}, 1};
}
