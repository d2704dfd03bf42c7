// SPDX-License-Identifier: MIT
// A sum has no elements in memory, so nothing can view it.
// expect: view_of needs an Eigen object that has storage
#include "lora/core/view.hpp"

lora::Index rows_of_sum(const lora::Matrix<float>& a, const lora::Matrix<float>& b) {
#ifdef LORA_SHOULD_FAIL
  return lora::view_of(a + b).rows;
#else
  const lora::Matrix<float> sum = a + b;
  return lora::view_of(sum).rows;
#endif
}
