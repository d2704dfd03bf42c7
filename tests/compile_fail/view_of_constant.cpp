// SPDX-License-Identifier: MIT
// A view of a constant does not become a view that writes.
// expect: convert|conversion
#include "lora/core/view.hpp"

lora::MatrixView<float> writable(
#ifdef LORA_SHOULD_FAIL
    const
#endif
    lora::Matrix<float>& matrix) {
  return lora::view_of(matrix);
}
