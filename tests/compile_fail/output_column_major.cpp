// SPDX-License-Identifier: MIT
// Kernels write rows, which a column-major matrix does not hold in one piece.
// expect: an output matrix is row-major
#include "lora/layers/rows.hpp"

#ifdef LORA_SHOULD_FAIL
using Output = Eigen::MatrixXf;
#else
using Output = lora::Matrix<float>;
#endif

lora::Index rows_of(Output& y) { return lora::output_rows<float>({"Layer", "call"}, "y", y, 2, 3).rows; }
