// Products with panels that lie in memory one after the other: one packed copy of W serves both.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

/// Rows of X that go through a panel before the next one: their part of Y and a part of the panel share the
/// second-level cache, and X stays in the third.
inline constexpr Index rows_per_pass = 320;

/// The same where a panel is laid out anew for each pass, which more rows pay for.
inline constexpr Index rows_per_packing_pass = 1024;

/// The part of `panels` whole panels from `b` on in Y = X W^T + bias, for a single row of X.
template <class Scalar>
void multiply_row(const PanelCall<Scalar>& call, Index b, Index panels, const Scalar* weight) {
  const Index first = call.layout.first_output(b);
  PanelProduct<Scalar> product;
  product.rows = 1;
  product.width = panel_width<Scalar>;
  product.columns = panel_width<Scalar>;
  product.panels = panels;
  product.terms = {call.x.data, call.x.row_stride, call.x.col_stride, weight + call.layout.offset(b),
                   call.layout.inputs};
  product.initial = call.bias != nullptr ? call.bias + first : nullptr;
  product.out = &call.y(0, first);
  product.out_stride = call.y.row_stride;
  call.multiply(product);
}

/// Y += U F for a single row and panel `b`.
template <class Scalar>
void add_row_term(const PanelCall<Scalar>& call, Index b, Scalar* scratch) {
  PanelCall<Scalar> term = call;
  term.bias = nullptr;
  PanelProduct<Scalar> product;
  product.rows = 1;
  product.width = call.layout.width(b);
  product.columns = call.layout.columns(b);
  product.extra = {call.down.data, call.down.row_stride, call.down.col_stride, gather_panel_terms(term, b, scratch),
                   call.up.rows};
  product.accumulate = true;
  product.out = &call.y(0, call.layout.first_output(b));
  product.out_stride = call.y.row_stride;
  call.multiply(product);
}

/// Y = X W^T + bias + U F for a single row of X: neighbouring panels at a time.
template <class Scalar>
void packed_row_product(const PanelCall<Scalar>& call, const Scalar* panels, Scalar* scratch, Index per_worker,
                        Executor& executor) {
  const Index whole = call.layout.outputs / panel_width<Scalar>;
  parallel_ranges(executor, call.layout.panels(), 2, [&](Index first, Index last, int worker) {
    Scalar* const own = scratch + worker * per_worker;
    const Index end = std::min(last, whole);
    if (end - first > 1) {
      multiply_row(call, first, end - first, panels);
      for (Index b = first; b < end && call.up.rows > 0; ++b) add_row_term(call, b, own);
      first = end;
    }
    for (Index b = first; b < last; ++b) {
      multiply_panel(call, b, PackedPanel<Scalar>{panels + call.layout.offset(b), call.layout.width(b)}, 0, 1, own);
    }
  });
}

/// Y = X W^T + bias + U F, W packed at `panels`. Allocates only to grow the workspace (slot weight_panel: 1 + r lines
/// of a panel per worker). The result of a row depends neither on the other rows nor on the number of workers.
template <class Scalar>
void packed_product(const PanelCall<Scalar>& call, const Scalar* panels, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const Index per_worker = separate_lines<Scalar>(call.scratch());
  Scalar* const scratch = workspace.reserve<Scalar>(Workspace::Slot::weight_panel, per_worker * executor.workers());
  if (call.x.rows == 1) return packed_row_product(call, panels, scratch, per_worker, executor);
  for_each_panel(call, rows_per_pass, executor, [&](Index b, Index begin, Index end, int worker) {
    const PackedPanel<Scalar> panel{panels + call.layout.offset(b), call.layout.width(b)};
    multiply_panel(call, b, panel, begin, end, scratch + worker * per_worker);
  });
}

/// A panel of W^T, laid out from the panels of W by transposing one square after the other.
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

  /// The runs of the next part of this panel or of the next panel's first.
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

/// dX = dY W + V F, W packed at `panels` by `layout`; `call` is that of the product of dY with W^T. Allocates only to
/// grow the workspace (slot weight_panel: a part of a panel, and 1 + r lines, per worker). The result of a row depends
/// neither on the other rows nor on the number of workers.
template <class Scalar>
void packed_product_transposed(const PanelCall<Scalar>& call, const PanelLayout<Scalar>& layout, const Scalar* panels,
                               Isa isa, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const Index part = panel_width<Scalar> * TransposedPanel<Scalar>::block(layout.outputs);
  const Index per_worker = separate_lines<Scalar>(part + call.scratch());
  Scalar* const scratch = workspace.reserve<Scalar>(Workspace::Slot::weight_panel, per_worker * executor.workers());
  for_each_panel(call, rows_per_packing_pass, executor, [&](Index b, Index begin, Index end, int worker) {
    Scalar* const own = scratch + worker * per_worker;
    const TransposedPanel<Scalar> panel{
        layout, panels, call.layout.first_output(b), call.layout.columns(b), call.layout.width(b), isa, own};
    multiply_panel(call, b, panel, begin, end, own + part);
  });
}

}  // namespace lora::kernels
