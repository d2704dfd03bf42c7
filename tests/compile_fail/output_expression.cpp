// SPDX-License-Identifier: MIT
// An expression cannot be filled.
// expect: an output needs storage of its own
#include "lora/layers/rows.hpp"

lora::Index rows_of(lora::Matrix<float>& y) {
#ifdef LORA_SHOULD_FAIL
  auto output = 2 * y;
#else
  auto output = y.topRows(2);
#endif
  return lora::output_rows<float>({"Layer", "call"}, "y", output, 2, 3).rows;
}
