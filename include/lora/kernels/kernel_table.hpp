// SPDX-License-Identifier: MIT
// The kernels of an instruction set, and the only place that chooses among them.
//
// With LORA_COMPILED this header only declares: the vector code is in lora/kernels/kernel_table_definition.inc, which a
// compiled library includes once and instantiates for float and double.
#pragma once

#include <cstdint>

#include "lora/kernels/isa.hpp"
#include "lora/kernels/kernel_calls.hpp"

namespace lora::kernels {

template <class Scalar>
using MultiplyKernel = void (*)(const PanelProduct<Scalar>&);

/// target (columns x target_columns) = source (rows x columns) transposed, then zeros where target_columns > rows.
/// The rows of both are contiguous; strides count scalars. No allocation; no aliasing.
template <class Scalar>
using TransposeKernel = void (*)(const Scalar* source, Index source_stride, Index rows, Index columns, Scalar* target,
                                 Index target_stride, Index target_columns);

/// out (lines x length, contiguous) = coefficients (lines x rank, contiguous) * factor (rank rows, `factor_stride`
/// apart, `length` contiguous scalars each). No allocation; `out` aliases neither operand.
/// Each element is summed over the rank in order, from zero, whatever `lines` and `length` are: one kernel gives an
/// element the same bits wherever its tile begins or ends, and whichever operand is the line. The kernels of AVX2 and
/// AVX-512 give the same bits; the portable one may round differently. An update must therefore be undone with the
/// kernel that applied it: keep the pointer.
template <class Scalar>
using DeltaKernel = void (*)(const Scalar* coefficients, Index lines, const Scalar* factor, Index factor_stride,
                             Index rank, Index length, Scalar* out);

/// weights <- weights + delta, with the delta of a DeltaKernel and a record for undoing it, or the undoing
/// (exact_update.hpp). `codes`: lines x length, contiguous. `originals`: room for as many when applying. The kernel
/// chooses the order of exceptions; restoring a tile of the same shape uses the same order.
/// Applying always runs to the end: it reports if something was not finite, and restoring undoes it.
/// No allocation; the arrays do not overlap. One function does all steps, so that all compute the same delta whatever
/// the compiler's rounding options: keep the pointer.
template <class Scalar>
using FusedKernel = ExactUpdate (*)(const UpdateTile<Scalar>& tile, UpdateStep step, std::int8_t* codes,
                                    Scalar* originals);

/// A function of a run of contiguous elements, whose mask bits begin at bit `first` of `row`, written to `out`.
template <class Scalar>
using RunKernel = void (*)(const Scalar* source, Index count, const std::uint8_t* row, Index first, Scalar scale,
                           Scalar* out);

/// A kernel that works on a range of rows or columns of its call.
template <class Call>
using RangeKernel = void (*)(const Call&, Index begin, Index end);

/// All kernels of one instruction set. A pair is indexed by whether there is a mask.
template <class Scalar>
struct KernelTable {
  MultiplyKernel<Scalar> multiply;
  RangeKernel<DownCall<Scalar>> project_down[2];  ///< rows of U
  RangeKernel<UpCall<Scalar>> project_up;         ///< rows of Y
  RangeKernel<OuterCall<Scalar>> add_outer[2];    ///< columns of G; the first is a multiple of panel_width
  TransposeKernel<Scalar> transpose;
  DeltaKernel<Scalar> delta;
  FusedKernel<Scalar> fused_update;
  RunKernel<Scalar> keep_run;                             ///< out = scale * keep(source)
  RunKernel<Scalar> rest_run;                             ///< out = source - scale * keep(source), rounded once
  RunKernel<Scalar> add_run[2];                           ///< out += scale * keep(source); unmasked: out += source
  void (*scale_columns)(const ColumnPass<Scalar>&);       ///< y = factors * z + bias, row by row
  void (*add_scaled_columns)(const ColumnPass<Scalar>&);  ///< y += factors * z, row by row
  void (*add_column_products)(const ColumnSum<Scalar>&);  ///< sums += dy * z
  void (*add_column_sums)(const ColumnSum<Scalar>&);      ///< sums += dy
  /// Columns [begin, end); `scratch` has room for rank * norm_block doubles.
  void (*row_norms)(const RowNormsCall<Scalar>&, Index begin, Index end, double* scratch);
};

/// The kernels for `isa`. Pre: this machine supports it. Constant for the whole program: a pointer to the table may be
/// kept. Not an inline function: nothing else instantiates kernels, so a program with LORA_COMPILED compiles none.
template <class Scalar>
[[nodiscard]] const KernelTable<Scalar>& kernel_table(Isa isa = active_isa()) noexcept;

#if defined(LORA_COMPILED)
extern template const KernelTable<float>& kernel_table<float>(Isa) noexcept;
extern template const KernelTable<double>& kernel_table<double>(Isa) noexcept;
#endif

}  // namespace lora::kernels

#if !defined(LORA_COMPILED)
#include "lora/kernels/kernel_table_definition.inc"  // IWYU pragma: export
#endif
