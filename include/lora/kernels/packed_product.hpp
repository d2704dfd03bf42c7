// SPDX-License-Identifier: MIT
// Products with panels stored one after the other: one packed copy of W serves both products.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

/// Rows of X that pass through a panel before the next panel: their part of Y and a part of the panel share the
/// second-level cache, and X stays in the third.
inline constexpr Index rows_per_pass = 320;

/// The same if a panel is packed again for each pass, which more rows amortise.
inline constexpr Index rows_per_packing_pass = 1024;

/// Y += U F for rows [begin, end) and panel `b`: continues the chains of multiply-adds that a product has stored.
/// `scratch` has
/// call.up.rows * panel_width scalars.
template <class Scalar>
void add_panel_terms(const PanelCall<Scalar>& call, Index b, Index begin, Index end, Scalar* scratch) {
  PanelProduct<Scalar> product;
  product.rows = end - begin;
  product.width = call.layout.width(b);
  product.columns = call.layout.columns(b);
  product.extra = gather_panel_terms(call, b, begin, product.rows, scratch);
  product.accumulate = true;
  product.out = &call.y(begin, call.layout.first_output(b));
  product.out_stride = call.y.row_stride;
  call.multiply(product);
}

/// The part of `panels` whole panels from `b` on of Y = X W^T + bias + U F for a single row of X, or of Y += U F if the
/// call has no inputs and Y is to be continued. Rows of F, if any, are contiguous.
template <class Scalar>
void multiply_row(const PanelCall<Scalar>& call, Index b, Index panels, const Scalar* weight, bool continues) {
  const Index first = call.layout.first_output(b);
  PanelProduct<Scalar> product;
  product.rows = 1;
  product.width = panel_width<Scalar>;
  product.columns = panel_width<Scalar>;
  product.panels = panels;
  product.accumulate = continues;
  if (!continues) {
    product.terms = {call.x.data, call.x.row_stride, call.x.col_stride, weight + call.layout.offset(b),
                     call.layout.inputs};
    product.initial = call.bias != nullptr ? call.bias + first : nullptr;
  }
  if (call.up.rows > 0) {
    product.extra = {call.down.data,     call.down.row_stride, call.down.col_stride,
                     &call.up(0, first), call.up.rows,         call.up.row_stride};
  }
  product.out = &call.y(0, first);
  product.out_stride = call.y.row_stride;
  call.multiply(product);
}

/// Y = X W^T + bias + U F for a single row of X: several neighbouring panels at a time.
template <class Scalar>
void packed_row_product(const PanelCall<Scalar>& call, const Scalar* panels, const MatrixView<Scalar>& scratch,
                        Executor& executor) {
  const Index whole = call.layout.outputs / panel_width<Scalar>;
  const bool rides = call.up.rows == 0 || call.up.col_stride == 1;
  PanelCall<Scalar> base = call;
  if (!rides) base.up = {};
  parallel_ranges(executor, call.layout.panels(), 2, [&](Index first, Index last, int worker) {
    Scalar* const own = &scratch(worker, 0);
    const Index end = std::min(last, whole);
    if (end - first > 1) {
      multiply_row(base, first, end - first, panels, false);
      for (Index b = first; b < end && !rides; ++b) add_panel_terms(call, b, 0, 1, own);
      first = end;
    }
    for (Index b = first; b < last; ++b) {
      multiply_panel(call, b, PackedPanel<Scalar>{panels + call.layout.offset(b), call.layout.width(b)}, 0, 1, own);
    }
  });
}

/// Y = X W^T + bias + U F, with W packed at `panels`. Allocates only to grow the workspace (1 + r lines of a panel per
/// worker). The result of a row depends neither on the other rows nor on the number of workers.
template <class Scalar>
void packed_product(const PanelCall<Scalar>& call, const Scalar* panels, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const auto scratch = worker_scratch<Scalar>(workspace, call.scratch());
  if (call.x.rows == 1) return packed_row_product<Scalar>(call, panels, scratch, executor);
  for_each_panel(call, rows_per_pass, executor, [&](Index b, Index begin, Index end, int worker) {
    const PackedPanel<Scalar> panel{panels + call.layout.offset(b), call.layout.width(b)};
    multiply_panel(call, b, panel, begin, end, &scratch(worker, 0));
  });
}

/// Y (N x m) continues each element's chain of fused multiply-adds from the stored Y with u(i, p) f(p, j), p in order:
/// after a product without a low-rank term this gives, bit for bit, the product with it. Rows or columns of F (r x m)
/// are contiguous, as are rows of Y. Allocates only to grow the workspace (r lines of a panel per worker). The result
/// of a row depends neither on the other rows nor on the number of workers.
template <class Scalar>
void add_low_rank(const MatrixView<const Scalar>& u, const MatrixView<const Scalar>& f, const MatrixView<Scalar>& y,
                  Workspace& workspace, Isa isa = active_isa()) {
  if (f.rows == 0) return;
  const PanelCall<Scalar> call{{y.cols, 0}, u, nullptr, u, f, y, multiply_kernel<Scalar>(isa)};
  Executor& executor = workspace.executor();
  const auto scratch = worker_scratch<Scalar>(workspace, f.rows * panel_width<Scalar>);
  if (y.rows != 1) {
    for_each_panel(call, rows_per_packing_pass, executor, [&](Index b, Index begin, Index end, int worker) {
      add_panel_terms(call, b, begin, end, &scratch(worker, 0));
    });
    return;
  }
  const Index whole = f.col_stride == 1 ? call.layout.outputs / panel_width<Scalar> : 0;
  parallel_ranges(executor, call.layout.panels(), 2, [&](Index first, Index last, int worker) {
    const Index end = std::min(last, whole);
    if (end - first > 1) {
      multiply_row<Scalar>(call, first, end - first, nullptr, true);
      first = end;
    }
    for (Index b = first; b < last; ++b) add_panel_terms(call, b, 0, 1, &scratch(worker, 0));
  });
}

/// A panel of W^T, built from the panels of W by transposing one square after the other.
template <class Scalar>
struct TransposedPanel {
  PanelLayout<Scalar> layout;  ///< of W
  const Scalar* panels = nullptr;
  Index first_input = 0;
  Index inputs = 0;
  Index width = 0;
  Isa isa = Isa::portable;
  Scalar* scratch = nullptr;

  /// Whole panels of W, so that each is read in one run.
  [[nodiscard]] static constexpr Index block(Index outputs) noexcept {
    return round_up(even_block(outputs, inner_block<Scalar>), panel_width<Scalar>);
  }

  [[nodiscard]] const Scalar* run(Index j) const noexcept {
    const Index b = j / panel_width<Scalar>;
    return panels + layout.offset(b) + first_input * layout.width(b);
  }

  const Scalar* rows(Index j, Index depth) const {
    Scalar* target = scratch;
    for (Index done = 0; done < depth; done += panel_width<Scalar>, target += panel_width<Scalar> * width) {
      const Index b = (j + done) / panel_width<Scalar>;
      transpose_kernel<Scalar>(isa)(run(j + done), layout.width(b), inputs, layout.columns(b), target, width, width);
    }
    return scratch;
  }

  /// The runs of the next part of this panel, or of the first part of the next panel.
  [[nodiscard]] Prefetch next(Index j, Index depth, Index samples) const noexcept {
    constexpr auto row_bytes = static_cast<std::uintptr_t>(panel_width<Scalar>) * sizeof(Scalar);
    Prefetch prefetch;
    prefetch.address = j + depth < layout.outputs ? reinterpret_cast<std::uintptr_t>(run(j + depth))
                                                  : reinterpret_cast<std::uintptr_t>(panels) +
                                                        static_cast<std::uintptr_t>(first_input + inputs) * row_bytes;
    prefetch.run_stride = row_bytes * static_cast<std::uintptr_t>(layout.inputs);
    prefetch.run_terms = panel_width<Scalar>;
    prefetch.spread(row_bytes * static_cast<std::uintptr_t>(inputs), panel_width<Scalar>, samples);
    return prefetch;
  }
};

/// dX = dY W + V F, with W packed at `panels` by `layout`; `call` describes the product of dY with W^T. Allocates only
/// to grow the workspace (a part of a panel, and 1 + r lines, per worker). The result of a row depends
/// neither on the other rows nor on the number of workers.
template <class Scalar>
void packed_product_transposed(const PanelCall<Scalar>& call, const PanelLayout<Scalar>& layout, const Scalar* panels,
                               Isa isa, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const Index part = panel_width<Scalar> * TransposedPanel<Scalar>::block(layout.outputs);
  const auto scratch = worker_scratch<Scalar>(workspace, part + call.scratch());
  for_each_panel(call, rows_per_packing_pass, executor, [&](Index b, Index begin, Index end, int worker) {
    Scalar* const own = &scratch(worker, 0);
    const TransposedPanel<Scalar> panel{
        layout, panels, call.layout.first_output(b), call.layout.columns(b), call.layout.width(b), isa, own};
    multiply_panel(call, b, panel, begin, end, own + part);
  });
}

}  // namespace lora::kernels
