// SPDX-License-Identifier: MIT
// Nor is a map of such a tensor an input.
// expect: a tensor's layout must be Eigen::RowMajor
#include <unsupported/Eigen/CXX11/Tensor>

#include "lora/layers/tensor.hpp"

#ifdef LORA_SHOULD_FAIL
using Input = Eigen::TensorMap<const Eigen::Tensor<float, 3>>;
#else
using Input = Eigen::TensorMap<const Eigen::Tensor<float, 3, Eigen::RowMajor>>;
#endif

void read(const Input& samples) {
  lora::with_rows<float>(samples, [](const lora::MatrixView<const float>& /*rows*/) {});
}
