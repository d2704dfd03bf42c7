// Products with a weight that stays in the caller's memory: each panel is laid out in scratch just before its use.
#pragma once

#include "lora/core/executor.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

/// Y = X W^T + bias + U F with W (out_features x in_features) of any strides; shapes and aliasing as
/// FrozenWeight::product. Costs one pass of packing over W per call. Allocates only to grow the workspace
/// (slot weight_panel: one panel of W per worker). The result does not depend on the number of workers.
template <class Scalar>
void dense_product(const MatrixView<const Scalar>& weight, const MatrixView<const Scalar>& x, const Scalar* bias,
                   const MatrixView<const Scalar>& down, const MatrixView<const Scalar>& up,
                   const MatrixView<Scalar>& y, Workspace& workspace, Isa isa = active_isa()) {
  const PanelCall<Scalar> call{{weight.rows, weight.cols}, x, bias, down, up, y, multiply_kernel<Scalar>(isa)};
  if (x.rows == 0) return;
  Executor& executor = workspace.executor();
  const Index panel_size = panel_width<Scalar> * weight.cols;
  const Index per_worker = round_up(panel_size + call.scratch(), width_unit<Scalar>);
  Scalar* const scratch = workspace.reserve<Scalar>(Workspace::Slot::weight_panel, per_worker * executor.workers());
  parallel_ranges(executor, call.layout.panels(), 1, [&](Index begin, Index end, int worker) {
    Scalar* const panel = scratch + worker * per_worker;
    for (Index b = begin; b < end; ++b) {
      pack_panel(isa, weight, b, panel);
      multiply_panel(call, b, panel, 0, x.rows, panel + panel_size);
    }
  });
}

/// dX = dY W + V F. The rest as `dense_product`.
template <class Scalar>
void dense_product_transposed(const MatrixView<const Scalar>& weight, const MatrixView<const Scalar>& dy,
                              const MatrixView<const Scalar>& down, const MatrixView<const Scalar>& up,
                              const MatrixView<Scalar>& dx, Workspace& workspace, Isa isa = active_isa()) {
  dense_product(weight.transpose(), dy, static_cast<const Scalar*>(nullptr), down, up, dx, workspace, isa);
}

}  // namespace lora::kernels
