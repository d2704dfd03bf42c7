// The low-rank update of a weight, computed line by line so that it is never held whole.
#pragma once

#include <algorithm>

#include "lora/core/types.hpp"

namespace lora::kernels {

/// out (lines x length, contiguous) = coefficients (lines x rank, contiguous) * factor (rank rows, `factor_stride`
/// apart, `length` contiguous scalars each). No allocation; `out` aliases neither operand.
/// Each element sums over the rank in order, from zero, whatever `lines` and `length` are: the same kernel gives the
/// same bits for an element wherever the tile that holds it begins or ends.
template <class Scalar>
using DeltaKernel = void (*)(const Scalar* coefficients, Index lines, const Scalar* factor, Index factor_stride,
                             Index rank, Index length, Scalar* out);

template <class Scalar>
void delta_lines_portable(const Scalar* coefficients, Index lines, const Scalar* factor, Index factor_stride,
                          Index rank, Index length, Scalar* out) {
  for (Index l = 0; l < lines; ++l, coefficients += rank, out += length) {
    std::fill(out, out + length, Scalar(0));
    for (Index p = 0; p < rank; ++p) {
      const Scalar* row = factor + p * factor_stride;
      for (Index j = 0; j < length; ++j) out[j] += coefficients[p] * row[j];
    }
  }
}

/// The kernel for this machine. Kernels differ in rounding (fused or not): what must be undone later has to be undone
/// with the kernel that did it, so keep the pointer.
template <class Scalar>
[[nodiscard]] DeltaKernel<Scalar> delta_kernel() noexcept {
  return &delta_lines_portable<Scalar>;
}

}  // namespace lora::kernels
