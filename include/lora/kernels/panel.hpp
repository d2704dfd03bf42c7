// Panels: a weight W (out_features x in_features) cut into strips of outputs, laid out as tiles read them.
//
// Panel b holds outputs [b * panel_width, ...); its element (q, j) is W(b * panel_width + j, q), rows q contiguous.
// All panels but the last are panel_width wide; the last is as narrow as width_unit allows, padded with zeros.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/workspace.hpp"
#include "lora/kernels/tile.hpp"
#include "lora/kernels/transpose.hpp"

namespace lora::kernels {

inline constexpr Index cache_line_bytes = 64;

[[nodiscard]] constexpr Index ceil_div(Index n, Index unit) noexcept { return (n + unit - 1) / unit; }
[[nodiscard]] constexpr Index round_up(Index n, Index unit) noexcept { return ceil_div(n, unit) * unit; }

/// Length of the blocks that cut `total` into as few parts of at most `limit` as it takes, all about equal.
[[nodiscard]] constexpr Index even_block(Index total, Index limit) noexcept {
  return total > 0 ? ceil_div(total, ceil_div(total, limit)) : 1;
}

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

/// Lays out panel `b` of `weight` (any strides) at `panel`, which has room for inputs * width(b).
template <class Scalar>
void pack_panel(Isa isa, const MatrixView<const Scalar>& weight, Index b, Scalar* panel) {
  const PanelLayout<Scalar> layout{weight.rows, weight.cols};
  pack_transposed(isa, weight.middle_rows(layout.first_output(b), layout.columns(b)), layout.width(b), panel);
}

/// What every panel of one product Y = X W^T + bias + U F shares.
template <class Scalar>
struct PanelCall {
  PanelLayout<Scalar> layout;
  MatrixView<const Scalar> x;
  const Scalar* bias = nullptr;
  MatrixView<const Scalar> down;  ///< U, N x r
  MatrixView<const Scalar> up;    ///< F, r x out_features
  MatrixView<Scalar> y;
  MultiplyKernel<Scalar> multiply = nullptr;

  /// Scalars of scratch per worker: the bias and F cut to one panel.
  [[nodiscard]] Index scratch() const noexcept { return (1 + up.rows) * panel_width<Scalar>; }
};

/// Terms summed between two visits of the output: 8 rows of X of this depth fit the first-level cache beside a stream of
/// the panel, and the panel's part fits the second-level cache.
template <class Scalar>
inline constexpr Index inner_block = static_cast<Index>(4096 / sizeof(Scalar));

/// Copies bias and F for panel `b` to `scratch`, padded to the panel's width. Returns where F starts.
template <class Scalar>
const Scalar* gather_panel_terms(const PanelCall<Scalar>& call, Index b, Scalar* scratch) {
  const Index first = call.layout.first_output(b);
  const Index columns = call.layout.columns(b);
  const Index width = call.layout.width(b);
  const auto line = [&](const Scalar* from, Scalar* to) {
    std::copy(from, from + columns, to);
    std::fill(to + columns, to + width, Scalar(0));
  };
  if (call.bias != nullptr) line(call.bias + first, scratch);
  Scalar* const up = scratch + panel_width<Scalar>;
  for (Index p = 0; p < call.up.rows; ++p) line(&call.up(p, first), up + p * width);
  return up;
}

/// Rows [begin, end) of Y, columns of panel `b`, which lies at `panel`. `scratch` has call.scratch() scalars.
/// No allocation. Rows and panels may be split in any way without a change in the result.
template <class Scalar>
void multiply_panel(const PanelCall<Scalar>& call, Index b, const Scalar* panel, Index begin, Index end,
                    Scalar* scratch) {
  if (begin == end) return;
  const Index inputs = call.layout.inputs;
  const Index width = call.layout.width(b);
  const Index block = even_block(inputs, inner_block<Scalar>);
  PanelProduct<Scalar> product;
  product.rows = end - begin;
  product.width = width;
  product.columns = call.layout.columns(b);
  const Scalar* const up = gather_panel_terms(call, b, scratch);
  product.initial = call.bias != nullptr ? scratch : nullptr;
  product.out = &call.y(begin, call.layout.first_output(b));
  product.out_stride = call.y.row_stride;
  const Index term_bytes = width * static_cast<Index>(sizeof(Scalar));
  product.prefetch.row = static_cast<std::uintptr_t>(ceil_div(term_bytes * block, product.rows));
  product.prefetch.step = static_cast<std::uintptr_t>(
      std::min(cache_line_bytes, ceil_div(term_bytes * tallest_tile, product.rows)));
  Index q = 0;
  do {  // once even without inputs: bias and U F remain
    const Index depth = std::min(block, inputs - q);
    const bool last = q + depth == inputs;
    product.terms = {call.x.data + begin * call.x.row_stride + q * call.x.col_stride,
                     call.x.row_stride,
                     call.x.col_stride,
                     0,
                     panel + q * width,
                     depth,
                     1};
    if (last && call.up.rows > 0) {
      product.extra = {call.down.data + begin * call.down.row_stride,
                       call.down.row_stride,
                       call.down.col_stride,
                       0,
                       up,
                       call.up.rows,
                       1};
    }
    product.prefetch.address = reinterpret_cast<std::uintptr_t>(panel + (q + depth) * width);
    call.multiply(product);
    product.accumulate = true;
    q += depth;
  } while (q < inputs);
}

}  // namespace lora::kernels
