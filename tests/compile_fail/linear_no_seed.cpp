// SPDX-License-Identifier: MIT
// A layer needs a seed; without one the first error says so.
// expect: error: static.assert.*lora: LoraLinear wants .W0, config, seed. or .W0, bias, config, seed.
#include "lora/layers/linear.hpp"

lora::LoraLinear<float> wrap(const lora::Matrix<float>& w0, const lora::LoraConfig& config) {
#ifdef LORA_SHOULD_FAIL
  return lora::LoraLinear<float>(w0, config);
#else
  return lora::LoraLinear<float>(w0, config, 1);
#endif
}
