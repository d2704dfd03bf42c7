// SPDX-License-Identifier: MIT
// A dense weight would view the memory of a temporary.
// expect: a weight that views memory cannot view an expression
#include "lora/layers/linear.hpp"
#include "lora/weight/dense.hpp"

using Layer = lora::LoraLinear<float, lora::DenseWeight<float>>;

Layer wrap(const lora::Matrix<float>& w0) {
#ifdef LORA_SHOULD_FAIL
  return {2 * w0, lora::LoraConfig{}, 1};
#else
  return {w0.topRows(2), lora::LoraConfig{}, 1};
#endif
}
