// SPDX-License-Identifier: MIT
// Passes over the rows of a matrix with one factor per column, sums over rows, and splitting inputs by their dropout
// mask: what DoRA adds to a layer's passes.
//
// For all of them: inputs may have any strides; outputs have contiguous rows and alias no input unless stated
// otherwise. They allocate only to grow the workspace. Results do not depend on the number of workers; among
// instruction sets only the portable one may round differently.
#pragma once

#include <algorithm>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/row_blocks.hpp"

namespace lora::kernels {

/// y(i, j) = factors[j] * z(i, j) + (bias ? bias[j] : 0). Y may be Z itself.
template <class Scalar>
void scale_columns(const MatrixView<const Scalar>& z, const Scalar* factors, const Scalar* bias,
                   const MatrixView<Scalar>& y, Workspace& workspace, Isa isa = active_isa()) {
  const auto kernel = kernel_table<Scalar>(isa).scale_columns;
  for_each_row_block(z, workspace, isa, [&](const MatrixView<const Scalar>& block, Index first) {
    const auto target = y.middle_rows(first, block.rows);
    kernel({block.data, block.row_stride, factors, bias, target.data, target.row_stride, block.rows, block.cols});
  });
}

/// y(i, j) += factors[j] * z(i, j).
template <class Scalar>
void add_scaled_columns(const MatrixView<const Scalar>& z, const Scalar* factors, const MatrixView<Scalar>& y,
                        Workspace& workspace, Isa isa = active_isa()) {
  const auto kernel = kernel_table<Scalar>(isa).add_scaled_columns;
  for_each_row_block(z, workspace, isa, [&](const MatrixView<const Scalar>& block, Index first) {
    const auto target = y.middle_rows(first, block.rows);
    kernel({block.data, block.row_stride, factors, nullptr, target.data, target.row_stride, block.rows, block.cols});
  });
}

namespace detail {

/// sums[j] = sum over i in order, from zero, of dy(i, j) * z(i, j), or of dy(i, j) if z is a null view; then calls
/// finish(begin, end) for ranges of columns.
template <class Scalar, class Finish>
void sum_columns(const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& z, Scalar* sums,
                 Workspace& workspace, Isa isa, const Finish& finish) {
  const KernelTable<Scalar>& table = kernel_table<Scalar>(isa);
  const auto kernel = z.data != nullptr ? table.add_column_products : table.add_column_sums;
  const bool copies = !dy.row_major() || !z.row_major();
  const Index most_rows = copies ? copied_rows : dy.rows;
  const Index stride = copied_stride<Scalar>(dy.cols);
  const auto scratch = worker_scratch<Scalar>(workspace, copies ? 2 * copied_rows * stride : 0);
  parallel_ranges(workspace.executor(), dy.cols, 64, [&](Index begin, Index end, int worker) {
    std::fill(sums + begin, sums + end, Scalar(0));
    const auto contiguous = [&](const MatrixView<const Scalar>& part, Index place) -> MatrixView<const Scalar> {
      if (part.row_major()) return part;
      Scalar* const own = &scratch(worker, 0) + place * copied_rows * stride;
      pack_rows(isa, part, own, stride);
      return {own, part.rows, part.cols, stride, 1};
    };
    for (Index i = 0; i < dy.rows; i += most_rows) {
      const Index rows = std::min(most_rows, dy.rows - i);
      const auto a = contiguous(dy.middle_rows(i, rows).middle_cols(begin, end - begin), 0);
      const auto b = contiguous(z.middle_rows(i, rows).middle_cols(begin, end - begin), 1);
      kernel({a.data, a.row_stride, b.data, b.row_stride, rows, end - begin, sums + begin});
    }
    finish(begin, end);
  });
}

}  // namespace detail

/// sums[j] += sum over i, in order, of dy(i, j) * z(i, j).
template <class Scalar>
void add_column_products(const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& z, Scalar* sums,
                         Workspace& workspace, Isa isa = active_isa()) {
  const auto added = workspace.row<Scalar>(dy.cols);
  const auto add = kernel_table<Scalar>(isa).add_run[0];
  detail::sum_columns(dy, z, added.data, workspace, isa, [&](Index begin, Index end) {
    add(added.data + begin, end - begin, nullptr, 0, Scalar(1), sums + begin);
  });
}

/// target[j] += scale * (sum over i, in order, of dy(i, j)).
template <class Scalar>
void add_column_sums(const MatrixView<const Scalar>& dy, Scalar scale, Scalar* target, Workspace& workspace,
                     Isa isa = active_isa()) {
  const auto added = workspace.row<Scalar>(dy.cols);
  const auto scales = workspace.row<Scalar>(dy.cols);
  const auto add = kernel_table<Scalar>(isa).add_scaled_columns;
  detail::sum_columns(dy, MatrixView<const Scalar>{}, added.data, workspace, isa, [&](Index begin, Index end) {
    std::fill(scales.data + begin, scales.data + end, scale);
    add({added.data + begin, 0, scales.data + begin, nullptr, target + begin, 0, 1, end - begin});
  });
}

/// out = drop(x): kept elements times the mask's scale, zeros elsewhere. Without a mask, a copy of x. `out` may be x.
template <class Scalar>
void keep_inputs(const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& out,
                 Workspace& workspace, Isa isa = active_isa()) {
  const auto kernel = kernel_table<Scalar>(isa).keep_run;
  for_each_row_block(x, workspace, isa, [&](const MatrixView<const Scalar>& block, Index first) {
    for (Index i = 0; i < block.rows; ++i) {
      const Scalar* const row = &block(i, 0);
      Scalar* const target = &out(first + i, 0);
      if (mask.active()) {
        kernel(row, block.cols, mask.row(first + i), 0, mask.scale, target);
      } else if (row != target) {
        std::copy(row, row + block.cols, target);
      }
    }
  });
}

/// out = x - drop(x), rounded once. Without a mask, zeros. `out` may be x.
template <class Scalar>
void rest_inputs(const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& out,
                 Workspace& workspace, Isa isa = active_isa()) {
  const auto kernel = kernel_table<Scalar>(isa).rest_run;
  for_each_row_block(x, workspace, isa, [&](const MatrixView<const Scalar>& block, Index first) {
    for (Index i = 0; i < block.rows; ++i) {
      Scalar* const target = &out(first + i, 0);
      if (mask.active()) {
        kernel(&block(i, 0), block.cols, mask.row(first + i), 0, mask.scale, target);
      } else {
        std::fill(target, target + block.cols, Scalar(0));
      }
    }
  });
}

}  // namespace lora::kernels
