// SPDX-License-Identifier: MIT
// Products with the thin factors of an adapter. r is small: loops run along in_features or out_features, never along r.
//
// For all of them: outputs alias nothing, only growing the workspace allocates, and the result depends neither on the
// number of workers nor, for a row of U or Y, on the other rows. X may have any strides: it is copied in blocks to
// contiguous rows, so the bits are the same as for contiguous rows.
#pragma once

#include <algorithm>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/packed_product.hpp"  // IWYU pragma: export
#include "lora/kernels/row_blocks.hpp"
#include "lora/kernels/transpose.hpp"

namespace lora::kernels {

/// U (N x r) = scale * drop(X) (N x k) * F^T, with F (r x k). Rows of F and U are contiguous.
template <class Scalar>
void project_down(const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask, const MatrixView<const Scalar>& f,
                  Scalar scale, const MatrixView<Scalar>& u, Workspace& workspace, Isa isa = active_isa()) {
  const auto kernel = kernel_table<Scalar>(isa).project_down[mask.active() ? 1 : 0];
  for_each_row_block(x, workspace, isa, [&](const MatrixView<const Scalar>& block, Index first) {
    const DownCall<Scalar> call{block, mask.from_row(first), f, scale * mask.scale, u.middle_rows(first, block.rows)};
    kernel(call, 0, block.rows);
  });
}

/// Y (N x m) += drop(U (N x r) * F), with F (r x m); rows of F and Y are contiguous.
template <class Scalar>
void add_project_up(const MatrixView<const Scalar>& u, const MatrixView<const Scalar>& f,
                    const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& y, Workspace& workspace,
                    Isa isa = active_isa()) {
  const UpCall<Scalar> call{u, f, mask, y};
  const auto kernel = kernel_table<Scalar>(isa).project_up;
  parallel_ranges(workspace.executor(), y.rows, tallest_tile,
                  [&](Index begin, Index end, int /*worker*/) { kernel(call, begin, end); });
}

/// G (r x m) += scale * V^T * drop(X), with V (N x r) of any strides and X (N x m). Rows of G are contiguous.
/// Each element sums over N in order, in blocks of outer_block.
template <class Scalar>
void add_outer(const MatrixView<const Scalar>& v, const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask,
               Scalar scale, const MatrixView<Scalar>& g, Workspace& workspace, Isa isa = active_isa()) {
  constexpr Index width = panel_width<Scalar>;
  const OuterCall<Scalar> call{v, x, mask, scale * mask.scale, g};
  const auto kernel = kernel_table<Scalar>(isa).add_outer[mask.active() ? 1 : 0];
  Executor& executor = workspace.executor();
  if (x.row_major()) {
    parallel_ranges(executor, g.cols, width, [&](Index begin, Index end, int /*worker*/) { kernel(call, begin, end); });
    return;
  }
  const auto scratch = worker_scratch<Scalar>(workspace, outer_block * width);
  parallel_ranges(executor, g.cols, width, [&](Index begin, Index end, int worker) {
    Scalar* const own = &scratch(worker, 0);
    for (Index j = begin; j < end; j += width) {
      OuterCall<Scalar> part = call;
      const Index columns = std::min(width, end - j);
      part.g = g.middle_cols(j, columns);
      for (Index i = 0; i < x.rows; i += outer_block) {
        const Index rows = std::min(outer_block, x.rows - i);
        pack_rows(isa, x.middle_rows(i, rows).middle_cols(j, columns), own, width);
        part.x = {own, rows, columns, width, 1};
        part.v = v.middle_rows(i, rows);
        part.mask = mask.from_row(i);
        if (mask.active()) part.mask.bits += j / 8;  // panels start on whole bytes
        kernel(part, 0, columns);
      }
    }
  });
}

}  // namespace lora::kernels
