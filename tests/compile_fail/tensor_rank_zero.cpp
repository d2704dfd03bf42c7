// SPDX-License-Identifier: MIT
// A tensor of rank 0 is a number, which has no features.
// expect: a tensor needs a dimension of features
#include <unsupported/Eigen/CXX11/Tensor>

#include "lora/layers/tensor.hpp"

#ifdef LORA_SHOULD_FAIL
using Input = Eigen::Tensor<float, 0, Eigen::RowMajor>;
#else
using Input = Eigen::Tensor<float, 1, Eigen::RowMajor>;
#endif

void read(const Input& samples) {
  lora::with_rows<float>(samples, [](const lora::MatrixView<const float>& /*rows*/) {});
}
