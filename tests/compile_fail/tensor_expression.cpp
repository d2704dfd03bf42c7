// SPDX-License-Identifier: MIT
// Tensor expressions are evaluated by their user, who decides where.
// expect: this type is no input of a layer
#include <unsupported/Eigen/CXX11/Tensor>

#include "lora/layers/tensor.hpp"

using Tensor = Eigen::Tensor<float, 2, Eigen::RowMajor>;

void read(const Tensor& samples) {
  const auto body = [](const lora::MatrixView<const float>& /*rows*/) {};
#ifdef LORA_SHOULD_FAIL
  lora::with_rows<float>(samples + samples, body);
#else
  const Tensor sum = samples + samples;
  lora::with_rows<float>(sum, body);
#endif
}
