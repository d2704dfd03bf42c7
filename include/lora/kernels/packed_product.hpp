// Y = X W^T + bias + U F over panels that lie in memory one after the other.
#pragma once

#include <algorithm>

#include "lora/core/executor.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

/// Rows of X that go through a panel before the next one: their outputs and a block of the panel share the second-level
/// cache, and X stays in the third.
inline constexpr Index rows_per_pass = 320;

/// Panels [first, last) of rows [begin, end).
template <class Scalar>
void multiply_panels(const PanelCall<Scalar>& call, const Scalar* panels, Index first, Index last, Index begin,
                     Index end, Scalar* scratch) {
  const Index pass = round_up(even_block(end - begin, rows_per_pass), tallest_tile);
  for (Index i = begin; i < end; i += pass) {
    for (Index b = first; b < last; ++b) {
      multiply_panel(call, b, panels + call.layout.offset(b), i, std::min(end, i + pass), scratch);
    }
  }
}

/// Allocates only to grow the workspace (slot weight_panel: 1 + r lines of a panel per worker). The result of a row
/// depends neither on the other rows nor on the number of workers.
template <class Scalar>
void packed_product(const PanelCall<Scalar>& call, const Scalar* panels, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const Index count = call.layout.panels();
  Scalar* const scratch =
      workspace.reserve<Scalar>(Workspace::Slot::weight_panel, call.scratch() * executor.workers());
  if (count >= 2 * executor.workers()) {
    parallel_ranges(executor, count, 1, [&](Index first, Index last, int worker) {
      multiply_panels(call, panels, first, last, 0, call.x.rows, scratch + worker * call.scratch());
    });
  } else {
    parallel_ranges(executor, call.x.rows, tallest_tile, [&](Index begin, Index end, int worker) {
      multiply_panels(call, panels, 0, count, begin, end, scratch + worker * call.scratch());
    });
  }
}

}  // namespace lora::kernels
