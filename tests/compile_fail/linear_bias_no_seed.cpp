// SPDX-License-Identifier: MIT
// The same with a bias.
// expect: error: static.assert.*lora: LoraLinear wants .W0, config, seed. or .W0, bias, config, seed.
#include "lora/layers/linear.hpp"

lora::LoraLinear<float> wrap(const lora::Matrix<float>& w0, const Eigen::VectorXf& bias,
                             const lora::LoraConfig& config) {
#ifdef LORA_SHOULD_FAIL
  return lora::LoraLinear<float>(w0, bias, config);
#else
  return lora::LoraLinear<float>(w0, bias, config, 1);
#endif
}
