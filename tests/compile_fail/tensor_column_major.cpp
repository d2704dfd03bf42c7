// SPDX-License-Identifier: MIT
// The default layout of an Eigen tensor has features as its slowest dimension.
// expect: a tensor's layout must be Eigen::RowMajor
#include <unsupported/Eigen/CXX11/Tensor>

#include "lora/layers/tensor.hpp"

#ifdef LORA_SHOULD_FAIL
using Input = Eigen::Tensor<float, 3>;
#else
using Input = Eigen::Tensor<float, 3, Eigen::RowMajor>;
#endif

void read(const Input& samples) {
  lora::with_rows<float>(samples, [](const lora::MatrixView<const float>& /*rows*/) {});
}
