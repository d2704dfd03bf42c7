// SPDX-License-Identifier: MIT
// Blocks of contiguous rows, whatever the strides of the matrix they come from.
#pragma once

#include <algorithm>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/panel.hpp"
#include "lora/kernels/transpose.hpp"

namespace lora::kernels {

/// Rows copied at a time if they are not contiguous: a cache line of a column-major matrix of floats.
inline constexpr Index copied_rows = 16;

/// Stride of copied rows: an odd number of cache lines, so that they do not fall into the same sets of a cache.
template <class Scalar>
[[nodiscard]] constexpr Index copied_stride(Index columns) noexcept {
  return (ceil_div(columns, width_unit<Scalar>) | 1) * width_unit<Scalar>;
}

/// Calls body(block, first) for blocks of rows of `x`; rows are contiguous in `block`, and `first` is its first row in
/// `x`. Blocks run in parallel. If the rows of `x` are contiguous nothing is copied; otherwise allocates only to grow
/// the workspace: copied_rows rows per worker.
template <class Scalar, class Body>
void for_each_row_block(const MatrixView<const Scalar>& x, Workspace& workspace, Isa isa, const Body& body) {
  Executor& executor = workspace.executor();
  if (x.row_major()) {
    parallel_ranges(executor, x.rows, 4,
                    [&](Index begin, Index end, int /*worker*/) { body(x.middle_rows(begin, end - begin), begin); });
    return;
  }
  const Index stride = copied_stride<Scalar>(x.cols);
  const auto scratch = worker_scratch<Scalar>(workspace, copied_rows * stride);
  parallel_ranges(executor, x.rows, copied_rows, [&](Index begin, Index end, int worker) {
    Scalar* const own = &scratch(worker, 0);
    for (Index i = begin; i < end; i += copied_rows) {
      const auto rows = x.middle_rows(i, std::min(copied_rows, end - i));
      pack_rows(isa, rows, own, stride);
      body(MatrixView<const Scalar>{own, rows.rows, x.cols, stride, 1}, i);
    }
  });
}

}  // namespace lora::kernels
