// SPDX-License-Identifier: MIT
// Doubles are not silently rounded to the floats of a layer.
// expect: the input's scalar type is not the layer's
#include "lora/layers/rows.hpp"

void read(const lora::Matrix<double>& samples) {
  const auto body = [](const lora::MatrixView<const float>& /*rows*/) {};
#ifdef LORA_SHOULD_FAIL
  lora::with_rows<float>(samples, body);
#else
  lora::with_rows<float>(samples.cast<float>(), body);
#endif
}
