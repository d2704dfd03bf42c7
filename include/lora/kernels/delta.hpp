// The low-rank update of a weight, computed line by line so that it is never held whole.
#pragma once

#include <algorithm>

#include "lora/core/types.hpp"
#include "lora/kernels/simd.hpp"

#define LORA_KERNEL_SOURCE "lora/kernels/delta.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

/// out (lines x length, contiguous) = coefficients (lines x rank, contiguous) * factor (rank rows, `factor_stride`
/// apart, `length` contiguous scalars each). No allocation; `out` aliases neither operand.
/// Each element sums over the rank in order, from zero, whatever `lines` and `length` are: the same kernel gives the
/// same bits for an element wherever the tile that holds it begins or ends, and whichever operand is the line.
template <class Scalar>
using DeltaKernel = void (*)(const Scalar* coefficients, Index lines, const Scalar* factor, Index factor_stride,
                             Index rank, Index length, Scalar* out);

/// The kernel for `isa`. Those of AVX2 and AVX-512 give the same bits; the portable one may round differently, so what
/// must be undone later has to be undone with the kernel that did it: keep the pointer.
template <class Scalar>
[[nodiscard]] DeltaKernel<Scalar> delta_kernel(Isa isa = active_isa()) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return &avx512::delta_lines<Scalar>;
  if (isa == Isa::avx2) return &avx2::delta_lines<Scalar>;
#endif
  return &portable::delta_lines<Scalar>;
}

}  // namespace lora::kernels
