// SPDX-License-Identifier: MIT
// Products with a weight that stays in the caller's memory: each part of a panel is packed just before its use.
#pragma once

#include <algorithm>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/packed_product.hpp"

namespace lora::kernels {

/// A panel of a weight of any strides, packed part by part.
template <class Scalar>
struct DensePanel {
  MatrixView<const Scalar> outputs;  ///< the panel's rows of W
  Index width = 0;
  Isa isa = Isa::portable;
  Scalar* scratch = nullptr;

  [[nodiscard]] static constexpr Index block(Index inputs) noexcept { return even_block(inputs, inner_block<Scalar>); }

  const Scalar* rows(Index q, Index depth) const {
    pack_transposed(isa, outputs.middle_cols(q, depth), width, scratch);
    return scratch;
  }

  /// W is read in place, in an order that the hardware prefetcher follows.
  [[nodiscard]] static Prefetch next(Index /*q*/, Index /*depth*/, Index /*samples*/) noexcept { return {}; }
};

/// Y = X W^T + bias + U F with W (out_features x in_features) of any strides; shapes and aliasing as in
/// FrozenWeight::product. Packs W once for every rows_per_packing_pass rows of X. Allocates only to grow the workspace
/// (a part of a panel, and 1 + r lines, per worker). The result of a row depends
/// neither on the other rows nor on the number of workers.
template <class Scalar>
void dense_product(const MatrixView<const Scalar>& weight, const MatrixView<const Scalar>& x, const Scalar* bias,
                   const MatrixView<const Scalar>& down, const MatrixView<const Scalar>& up,
                   const MatrixView<Scalar>& y, Workspace& workspace, Isa isa = active_isa()) {
  const PanelCall<Scalar> call{{weight.rows, weight.cols}, x, bias, down, up, y, multiply_kernel<Scalar>(isa)};
  Executor& executor = workspace.executor();
  const Index part = panel_width<Scalar> * DensePanel<Scalar>::block(weight.cols);
  const auto scratch = worker_scratch<Scalar>(workspace, part + call.scratch());
  for_each_panel(call, rows_per_packing_pass, executor, [&](Index b, Index begin, Index end, int worker) {
    Scalar* const own = &scratch(worker, 0);
    const DensePanel<Scalar> panel{weight.middle_rows(call.layout.first_output(b), call.layout.columns(b)),
                                   call.layout.width(b), isa, own};
    multiply_panel(call, b, panel, begin, end, own + part);
  });
}

/// dX = dY W + V F. Otherwise like `dense_product`.
template <class Scalar>
void dense_product_transposed(const MatrixView<const Scalar>& weight, const MatrixView<const Scalar>& dy,
                              const MatrixView<const Scalar>& down, const MatrixView<const Scalar>& up,
                              const MatrixView<Scalar>& dx, Workspace& workspace, Isa isa = active_isa()) {
  dense_product(weight.transpose(), dy, static_cast<const Scalar*>(nullptr), down, up, dx, workspace, isa);
}

}  // namespace lora::kernels
