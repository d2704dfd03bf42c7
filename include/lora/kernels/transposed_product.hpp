// dX = dY W + V F from the panels that serve the forward product.
//
// A panel's element (q, j) is W(j, q), so a row q of a panel is a row of scalars for the tile, and the samples are its
// columns: dY is packed by groups of samples, the product comes out as dX^T, block by block, and each block is
// transposed into dX while it is in cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/executor.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

template <class Scalar>
struct TransposedCall {
  PanelLayout<Scalar> layout;
  const Scalar* panels = nullptr;  ///< all panels, one after the other
  MatrixView<const Scalar> dy;
  MatrixView<const Scalar> down;  ///< V, N x r
  MatrixView<const Scalar> up;    ///< F, r x in_features
  MatrixView<Scalar> dx;
  Isa isa = Isa::portable;

  /// Lines of packed dY and V.
  [[nodiscard]] Index lines() const noexcept { return layout.outputs + up.rows; }
};

/// Samples per pass over W, inputs per block of dX^T, panels per visit of a block: the visited part of W, the block and
/// a group of samples share the second-level cache.
template <class Scalar>
inline constexpr Index transposed_samples = 6 * panel_width<Scalar>;
inline constexpr Index transposed_inputs = 128;
inline constexpr Index transposed_panels = 8;

/// A part of the samples, packed: group after group of panel_width samples, each with one line per output, then one per
/// rank, padded to width_unit.
template <class Scalar>
struct PackedSamples {
  Scalar* data = nullptr;
  Index first = 0;
  Index count = 0;

  [[nodiscard]] Index padded() const noexcept { return round_up(count, width_unit<Scalar>); }
  [[nodiscard]] Index group_width(Index s) const noexcept { return std::min(panel_width<Scalar>, padded() - s); }
};

template <class Scalar>
void pack_samples(const TransposedCall<Scalar>& call, const PackedSamples<Scalar>& samples, Executor& executor) {
  parallel_ranges(executor, samples.count, panel_width<Scalar>, [&](Index begin, Index end, int /*worker*/) {
    for (Index s = begin; s < end; s += panel_width<Scalar>) {
      const Index count = std::min(panel_width<Scalar>, samples.count - s);
      const Index width = samples.group_width(s);
      Scalar* const group = samples.data + s * call.lines();
      pack_transposed(call.isa, call.dy.middle_rows(samples.first + s, count), width, group);
      if (call.up.rows == 0) continue;
      pack_transposed(call.isa, call.down.middle_rows(samples.first + s, count), width,
                      group + call.layout.outputs * width);
    }
  });
}

/// Inputs [q, q + inputs) of dX^T (inputs x samples.padded()) += panels [b, b + panels), and V F if `last`.
template <class Scalar>
void visit_panels(const TransposedCall<Scalar>& call, const PackedSamples<Scalar>& samples, Index q, Index inputs,
                  Index b, Index panels, bool last, Scalar* block) {
  const PanelLayout<Scalar>& layout = call.layout;
  const Index panel_row = layout.width(b);
  PanelProduct<Scalar> product;
  product.rows = inputs;
  product.accumulate = b > 0;
  product.out_stride = samples.padded();
  product.terms.left = call.panels + layout.offset(b) + q * panel_row;
  product.terms.left_row = panel_row;
  product.terms.left_step = 1;
  product.terms.left_block = layout.inputs * panel_row;
  product.terms.depth = layout.columns(b);
  product.terms.blocks = panels;
  if (last && call.up.rows > 0) {
    product.extra.left = call.up.data + q;
    product.extra.left_row = 1;
    product.extra.left_step = call.up.row_stride;
    product.extra.depth = call.up.rows;
  }
  constexpr std::uintptr_t row_bytes = panel_width<Scalar> * sizeof(Scalar);
  const Index next = last ? (q + inputs) * panel_width<Scalar>
                          : layout.offset(b + panels) + q * layout.width(b + panels);
  const auto address = reinterpret_cast<std::uintptr_t>(call.panels) + static_cast<std::uintptr_t>(next) * sizeof(Scalar);
  product.prefetch = {.address = address,
                      .row = row_bytes,
                      .block = row_bytes * static_cast<std::uintptr_t>(layout.inputs),
                      .step = row_bytes * tallest_tile / panel_width<Scalar>};
  for (Index s = 0; s < samples.count; s += panel_width<Scalar>) {
    const Scalar* const group = samples.data + s * call.lines();
    product.width = samples.group_width(s);
    product.columns = product.width;
    product.terms.right = group + layout.first_output(b) * product.width;
    product.extra.right = group + layout.outputs * product.width;
    product.out = block + s;
    multiply_kernel<Scalar>(call.isa)(product);
  }
}

/// Inputs [begin, end) of dX for the packed samples. `block` has transposed_inputs * samples.padded() scalars.
template <class Scalar>
void multiply_inputs(const TransposedCall<Scalar>& call, const PackedSamples<Scalar>& samples, Index begin, Index end,
                     Scalar* block) {
  const Index whole_panels = call.layout.outputs / panel_width<Scalar>;
  for (Index q = begin; q < end; q += transposed_inputs) {
    const Index inputs = std::min(transposed_inputs, end - q);
    Index b = 0;
    bool last = false;
    while (!last) {  // once even without outputs: V F remains
      const Index panels = b < whole_panels ? std::min(transposed_panels, whole_panels - b) : 1;
      last = b + panels >= call.layout.panels();
      visit_panels(call, samples, q, inputs, b, panels, last, block);
      b += panels;
    }
    transpose_kernel<Scalar>(call.isa)(block, samples.padded(), inputs, samples.count, &call.dx(samples.first, q),
                                       call.dx.row_stride, inputs);
  }
}

/// dX = dY W + V F; shapes and aliasing as FrozenWeight::product_transposed. Allocates only to grow the workspace (slot
/// weight_input: dY and V of one pass; slot weight_output: one block per worker). Every element is one chain of fused
/// multiply-adds over the outputs in order, then over the rank: the result of a row depends neither on the other rows
/// nor on the number of workers.
template <class Scalar>
void transposed_product(const TransposedCall<Scalar>& call, Workspace& workspace) {
  Executor& executor = workspace.executor();
  const Index rows = call.dy.rows;
  const Index pass = std::min(rows, round_up(even_block(rows, transposed_samples<Scalar>), panel_width<Scalar>));
  const Index padded = round_up(pass, width_unit<Scalar>);
  Scalar* const packed = workspace.reserve<Scalar>(Workspace::Slot::weight_input, call.lines() * padded);
  const Index block_size = transposed_inputs * padded;
  Scalar* const blocks =
      workspace.reserve<Scalar>(Workspace::Slot::weight_output, block_size * executor.workers());
  for (Index first = 0; first < rows; first += pass) {
    const PackedSamples<Scalar> samples{packed, first, std::min(pass, rows - first)};
    pack_samples(call, samples, executor);
    parallel_ranges(executor, call.layout.inputs, tallest_tile, [&](Index begin, Index end, int worker) {
      multiply_inputs(call, samples, begin, end, blocks + worker * block_size);
    });
  }
}

}  // namespace lora::kernels
