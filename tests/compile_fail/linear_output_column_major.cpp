// SPDX-License-Identifier: MIT
// A layer fills row-major matrices.
// expect: an output matrix is row-major
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Output = Eigen::MatrixXf;
#else
using Output = lora::Matrix<float>;
#endif

void answer(const lora::LoraLinear<float>& layer, const Eigen::MatrixXf& x, Output& y, lora::Workspace& workspace) {
  layer.infer(x, y, workspace);
}
