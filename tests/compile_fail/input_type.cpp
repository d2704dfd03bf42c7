// SPDX-License-Identifier: MIT
// A container of the standard library says nothing of rows and features.
// expect: this type is no input of a layer
#include <vector>

#include "lora/layers/rows.hpp"

void read(const std::vector<float>& samples) {
  const auto body = [](const lora::MatrixView<const float>& /*rows*/) {};
#ifdef LORA_SHOULD_FAIL
  lora::with_rows<float>(samples, body);
#else
  lora::with_rows<float>(Eigen::Map<const lora::Matrix<float>>(samples.data(), 1, 1), body);
#endif
}
