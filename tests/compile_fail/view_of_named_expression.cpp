// SPDX-License-Identifier: MIT
// Nor does an expression get storage by having a name.
// expect: view_of needs an Eigen object that has storage
#include "lora/core/view.hpp"

lora::Index rows_of_sum(const lora::Matrix<float>& a, const lora::Matrix<float>& b) {
#ifdef LORA_SHOULD_FAIL
  auto sum = a + b;
#else
  lora::Matrix<float> sum = a + b;
#endif
  return lora::view_of(sum).rows;
}
