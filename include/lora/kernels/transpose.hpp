// SPDX-License-Identifier: MIT
// Transposition of a block of memory, and copies of strided blocks with contiguous rows.
#pragma once

#include <algorithm>

#include "lora/core/view.hpp"
#include "lora/kernels/kernel_table.hpp"

namespace lora::kernels {

template <class Scalar>
[[nodiscard]] TransposeKernel<Scalar> transpose_kernel(Isa isa = active_isa()) noexcept {
  return kernel_table<Scalar>(isa).transpose;
}

/// Copies `source` (rows x columns, any strides) transposed to target (columns x width, lines `target_stride` apart),
/// rows <= width; the rest of each line is zero. No allocation.
template <class Scalar>
void pack_transposed(Isa isa, const MatrixView<const Scalar>& source, Index width, Scalar* target,
                     Index target_stride) {
  if (source.col_stride == 1) {
    kernel_table<Scalar>(isa).transpose(source.data, source.row_stride, source.rows, source.cols, target, target_stride,
                                        width);
    return;
  }
  for (Index j = 0; j < source.cols; ++j, target += target_stride) {
    const Scalar* column = source.data + j * source.col_stride;
    if (source.row_stride == 1) {
      std::copy(column, column + source.rows, target);
    } else {
      for (Index i = 0; i < source.rows; ++i) target[i] = column[i * source.row_stride];
    }
    std::fill(target + source.rows, target + width, Scalar(0));
  }
}

/// The same with contiguous lines.
template <class Scalar>
void pack_transposed(Isa isa, const MatrixView<const Scalar>& source, Index width, Scalar* target) {
  pack_transposed(isa, source, width, target, width);
}

/// Copies `source` (any strides) to `target` (rows contiguous, `target_stride` apart). No allocation.
template <class Scalar>
void pack_rows(Isa isa, const MatrixView<const Scalar>& source, Scalar* target, Index target_stride) {
  constexpr Index lines = 256;  // their parts stay in the first-level cache until the next columns need them
  for (Index j = 0; j < source.cols; j += lines) {
    const auto part = source.middle_cols(j, std::min(lines, source.cols - j)).transpose();
    pack_transposed(isa, part, part.rows, target + j, target_stride);
  }
}

}  // namespace lora::kernels
