// Transposition of a block of memory.
#pragma once

#include <algorithm>

#include "lora/core/view.hpp"
#include "lora/kernels/simd.hpp"

#define LORA_KERNEL_SOURCE "lora/kernels/transpose.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

/// target (columns x target_columns) = source (rows x columns) transposed, then zeros where target_columns > rows.
/// Rows of either are contiguous and their strides count scalars. No allocation; no aliasing.
template <class Scalar>
using TransposeKernel = void (*)(const Scalar* source, Index source_stride, Index rows, Index columns, Scalar* target,
                                 Index target_stride, Index target_columns);

template <class Scalar>
[[nodiscard]] TransposeKernel<Scalar> transpose_kernel(Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return &avx512::transpose<Scalar>;
  if (isa == Isa::avx2) return &avx2::transpose<Scalar>;
#endif
  return &portable::transpose<Scalar>;
}

/// Copies `source` (rows x columns, any strides) transposed to target (columns x width, contiguous), rows <= width;
/// the rest of each line is zero. No allocation.
template <class Scalar>
void pack_transposed(Isa isa, const MatrixView<const Scalar>& source, Index width, Scalar* target) {
  if (source.col_stride == 1) {
    transpose_kernel<Scalar>(isa)(source.data, source.row_stride, source.rows, source.cols, target, width, width);
    return;
  }
  for (Index j = 0; j < source.cols; ++j, target += width) {
    const Scalar* column = source.data + j * source.col_stride;
    if (source.row_stride == 1) {
      std::copy(column, column + source.rows, target);
    } else {
      for (Index i = 0; i < source.rows; ++i) target[i] = column[i * source.row_stride];
    }
    std::fill(target + source.rows, target + width, Scalar(0));
  }
}

}  // namespace lora::kernels
