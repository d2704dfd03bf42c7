// SPDX-License-Identifier: MIT
// Panels: a weight W (out_features x in_features) cut into strips of outputs, stored in the order in which tiles read
// it.
//
// Panel b holds outputs [b * panel_width, ...); its element (q, j) is W(b * panel_width + j, q), rows q contiguous.
// All panels but the last are panel_width wide; the last is as narrow as width_unit allows, padded with zeros.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/workspace.hpp"
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/transpose.hpp"

namespace lora::kernels {

inline constexpr Index cache_line_bytes = 64;

[[nodiscard]] constexpr Index ceil_div(Index n, Index unit) noexcept { return (n + unit - 1) / unit; }
[[nodiscard]] constexpr Index round_up(Index n, Index unit) noexcept { return ceil_div(n, unit) * unit; }

/// Block length that cuts `total` into the fewest parts of at most `limit`, all about equal.
[[nodiscard]] constexpr Index even_block(Index total, Index limit) noexcept {
  return total > 0 ? ceil_div(total, ceil_div(total, limit)) : 1;
}

/// Terms summed between two visits of the output: 8 rows of X of this depth fit the first-level cache beside a stream
/// of the panel, and the panel's part fits the second-level cache.
template <class Scalar>
inline constexpr Index inner_block = static_cast<Index>(4096 / sizeof(Scalar));

/// How many outputs panel `b` holds and how wide its rows are.
template <class Scalar>
struct PanelLayout {
  Index outputs = 0;
  Index inputs = 0;

  [[nodiscard]] Index panels() const noexcept { return ceil_div(outputs, panel_width<Scalar>); }
  [[nodiscard]] Index first_output(Index b) const noexcept { return b * panel_width<Scalar>; }
  [[nodiscard]] Index columns(Index b) const noexcept {
    return std::min(panel_width<Scalar>, outputs - first_output(b));
  }
  [[nodiscard]] Index width(Index b) const noexcept { return round_up(columns(b), width_unit<Scalar>); }
  [[nodiscard]] Index offset(Index b) const noexcept { return first_output(b) * inputs; }
  /// Scalars of all panels.
  [[nodiscard]] Index size() const noexcept { return round_up(outputs, width_unit<Scalar>) * inputs; }
};

/// Packs panel `b` of `weight` (any strides) at `panel`, which has room for inputs * width(b) scalars.
template <class Scalar>
void pack_panel(Isa isa, const MatrixView<const Scalar>& weight, Index b, Scalar* panel) {
  const PanelLayout<Scalar> layout{weight.rows, weight.cols};
  pack_transposed(isa, weight.middle_rows(layout.first_output(b), layout.columns(b)), layout.width(b), panel);
}

/// A panel in memory, as `multiply_panel` reads it: part of its rows at a time.
template <class Scalar>
struct PackedPanel {
  const Scalar* data = nullptr;
  Index width = 0;

  [[nodiscard]] static constexpr Index block(Index inputs) noexcept { return even_block(inputs, inner_block<Scalar>); }

  [[nodiscard]] const Scalar* rows(Index q, Index /*depth*/) const noexcept { return data + q * width; }

  /// The next part; after this panel's last part, the first part of the next panel. A single tile reads every line from
  /// memory itself, so it prefetches its own lines, a page ahead.
  [[nodiscard]] Prefetch next(Index q, Index depth, Index samples) const noexcept {
    const auto row_bytes = static_cast<std::uintptr_t>(width) * sizeof(Scalar);
    if (samples <= tallest_tile) {
      Prefetch own;
      own.address = reinterpret_cast<std::uintptr_t>(rows(q, depth)) + 4096;
      own.step = row_bytes;
      return own;
    }
    const auto end = static_cast<std::uintptr_t>(q + depth);
    Prefetch prefetch;
    prefetch.address = reinterpret_cast<std::uintptr_t>(data) + end * row_bytes;
    prefetch.spread(row_bytes * static_cast<std::uintptr_t>(depth), depth, samples);
    return prefetch;
  }
};

template <class Scalar>
[[nodiscard]] MultiplyKernel<Scalar> multiply_kernel(Isa isa = active_isa()) noexcept {
  return kernel_table<Scalar>(isa).multiply;
}

/// What all panels of one product Y = X W^T + bias + U F share.
template <class Scalar>
struct PanelCall {
  PanelLayout<Scalar> layout;
  MatrixView<const Scalar> x;
  const Scalar* bias = nullptr;
  MatrixView<const Scalar> down;  ///< U, N x r
  MatrixView<const Scalar> up;    ///< F, r x out_features; rows contiguous, or columns (B, transposed by its strides)
  MatrixView<Scalar> y;
  MultiplyKernel<Scalar> multiply = nullptr;

  /// Scalars of scratch per worker: the bias and F cut to one panel.
  [[nodiscard]] Index scratch() const noexcept { return (1 + up.rows) * panel_width<Scalar>; }
};

/// Prefetches the `scalars` that follow the `scalars` at `block`: a transposition reads them in an order that the
/// hardware prefetcher does not follow.
template <class Scalar>
void prefetch_next_block(const Scalar* block, Index scalars) {
  constexpr std::uintptr_t most = 32768;
  const auto bytes = static_cast<std::uintptr_t>(scalars) * sizeof(Scalar);
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(block) + bytes;
  for (std::uintptr_t line = begin; line < begin + std::min(bytes, most); line += cache_line_bytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
  }
}

/// Copies the bias for panel `b` to `scratch`, padded to the panel's width, and sets the product's start.
template <class Scalar>
void gather_panel_bias(const PanelCall<Scalar>& call, Index b, Scalar* scratch, PanelProduct<Scalar>& product) {
  product.initial = nullptr;
  if (call.bias == nullptr) return;
  const Scalar* const bias = call.bias + call.layout.first_output(b);
  const Index columns = call.layout.columns(b);
  std::copy(bias, bias + columns, scratch);
  std::fill(scratch + columns, scratch + call.layout.width(b), Scalar(0));
  product.initial = scratch;
}

/// The terms U F of rows from `begin` on and panel `b`. F is read in place if its rows are contiguous and only a single
/// tile reads them. Otherwise it is copied to `scratch` (rank lines of panel_width), padded to the panel's width: rows
/// that are a power of two apart would evict one another from the first-level cache.
template <class Scalar>
[[nodiscard]] ProductTerms<Scalar> gather_panel_terms(const PanelCall<Scalar>& call, Index b, Index begin, Index rows,
                                                      Scalar* scratch) {
  const Index rank = call.up.rows;
  if (rank == 0) return {};
  const Index first = call.layout.first_output(b);
  const Index columns = call.layout.columns(b);
  const Index width = call.layout.width(b);
  ProductTerms<Scalar> terms{&call.down(begin, 0), call.down.row_stride, call.down.col_stride, scratch, rank, width};
  if (call.up.col_stride != 1) {
    prefetch_next_block(&call.up(0, first), columns * call.up.col_stride);
    pack_transposed(active_isa(), call.up.transpose().middle_rows(first, columns), width, scratch);
  } else if (rows <= tallest_tile && columns == width) {
    terms.right = &call.up(0, first);
    terms.right_row = call.up.row_stride;
  } else {
    for (Index p = 0; p < rank; ++p) {
      const Scalar* const line = &call.up(p, first);
      std::copy(line, line + columns, scratch + p * width);
      std::fill(scratch + p * width + columns, scratch + (p + 1) * width, Scalar(0));
    }
  }
  return terms;
}

/// Rows [begin, end) of Y, columns of panel `b`. `panel` provides it: block(inputs) rows at a time, rows(q, depth) for
/// the part from row q on, and next(q, depth, samples) for what to prefetch. `scratch` has call.scratch() scalars. No
/// allocation. The result does not depend on how rows and panels are split.
template <class Scalar, class Panel>
void multiply_panel(const PanelCall<Scalar>& call, Index b, const Panel& panel, Index begin, Index end,
                    Scalar* scratch) {
  if (begin == end) return;
  const Index inputs = call.layout.inputs;
  const Index block = panel.block(inputs);
  PanelProduct<Scalar> product;
  product.rows = end - begin;
  product.width = call.layout.width(b);
  product.columns = call.layout.columns(b);
  gather_panel_bias(call, b, scratch, product);
  product.out = &call.y(begin, call.layout.first_output(b));
  product.out_stride = call.y.row_stride;
  Index q = 0;
  do {  // once even without inputs: bias and U F remain
    const Index depth = std::min(block, inputs - q);
    product.terms = {call.x.data + begin * call.x.row_stride + q * call.x.col_stride, call.x.row_stride,
                     call.x.col_stride, panel.rows(q, depth), depth};
    product.prefetch = panel.next(q, depth, product.rows);
    if (q + depth == inputs) {
      product.extra = gather_panel_terms(call, b, begin, product.rows, scratch + panel_width<Scalar>);
    }
    call.multiply(product);
    product.accumulate = true;
    q += depth;
  } while (q < inputs);
}

/// One row of at least `scalars` for each worker of the workspace's executor; no two share a cache line.
template <class Scalar>
[[nodiscard]] ScratchMatrix<Scalar> worker_scratch(Workspace& workspace, Index scalars) {
  return workspace.matrix<Scalar>(workspace.executor().workers(), round_up(scalars, width_unit<Scalar>));
}

/// Runs multiply(b, begin, end, worker) over all panels b and rows [begin, end) of `call`, `pass` rows at a time, split
/// over panels if there are enough of them, and otherwise over rows.
template <class Scalar, class Multiply>
void for_each_panel(const PanelCall<Scalar>& call, Index pass, Executor& executor, const Multiply& multiply) {
  const Index panels = call.layout.panels();
  const auto part = [&](Index first, Index last, Index begin, Index end, int worker) {
    const Index step = round_up(even_block(end - begin, pass), tallest_tile);
    for (Index i = begin; i < end; i += step) {
      for (Index b = first; b < last; ++b) multiply(b, i, std::min(end, i + step), worker);
    }
  };
  if (panels >= 2 * executor.workers()) {
    parallel_ranges(executor, panels, 1,
                    [&](Index first, Index last, int worker) { part(first, last, 0, call.x.rows, worker); });
  } else {
    parallel_ranges(executor, call.x.rows, tallest_tile,
                    [&](Index begin, Index end, int worker) { part(0, panels, begin, end, worker); });
  }
}

}  // namespace lora::kernels
