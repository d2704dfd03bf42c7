// SPDX-License-Identifier: MIT
// What is const cannot be filled.
// expect: this type is no input of a layer
#include "lora/layers/rows.hpp"

lora::Index rows_of(
#ifdef LORA_SHOULD_FAIL
    const
#endif
    lora::Matrix<float>& y) {
  return lora::output_rows<float>({"Layer", "call"}, "y", y, 2, 3).rows;
}
