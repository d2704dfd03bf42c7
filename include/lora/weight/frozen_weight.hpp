// What a frozen weight is: an operator that multiplies, lets itself be updated in place by tiles, and can be read back.
#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"

namespace lora {

/// The low-rank term that rides along with a product: U (N x r) times F (r x m). Rank 0 stands for no term.
template <class Scalar>
struct LowRankTerm {
  MatrixView<const Scalar> down;  ///< U or V, N x r
  /// (s*B)^T (r x out_features) or A (r x in_features). Rows are contiguous; in product(), columns may be instead.
  MatrixView<const Scalar> up;

  [[nodiscard]] Index rank() const noexcept { return up.rows; }
};

/// A piece of a weight's memory: `lines` runs of `length` contiguous scalars, `line_stride` apart.
/// Line l, position p is W(first_line + l, first_position + p) when lines are outputs,
/// W(first_position + p, first_line + l) when lines are inputs; W is out_features x in_features.
template <class Scalar>
struct WeightTile {
  Scalar* data = nullptr;
  Index lines = 0;
  Index length = 0;
  Index line_stride = 0;
  Index first_line = 0;
  Index first_position = 0;
  bool lines_are_outputs = true;
};

/// No tile holds more scalars than this, so that scratch for a tile has a fixed size.
inline constexpr Index max_tile_size = 16384;

/// A frozen weight W (out_features x in_features) behind which any storage may stand. A new kind is one new file.
///
/// - `product(X, bias, term, Y, workspace)`: Y = X W^T + bias + U F. `bias` has out_features scalars or is null.
/// - `product_transposed(dY, term, dX, workspace)`: dX = dY W + V F.
/// - `tile_count()` and `tile(t)`: every element of W exactly once, in a fixed order; padding never shows.
/// - `bytes()`: memory this object owns.
///
/// Inputs may have any strides, outputs have contiguous rows and alias no input. The const functions are reentrant:
/// they write to the output and the workspace only, and allocate only to grow the workspace. Results do not depend on
/// the number of workers.
template <class W>
concept FrozenWeight = RealScalar<typename W::Scalar> && std::movable<W> &&
    requires(W& target, const W& source, MatrixView<const typename W::Scalar> in, const typename W::Scalar* bias,
             LowRankTerm<typename W::Scalar> term, MatrixView<typename W::Scalar> out, Workspace& workspace, Index t) {
  { source.out_features() } -> std::same_as<Index>;
  { source.in_features() } -> std::same_as<Index>;
  { source.product(in, bias, term, out, workspace) } -> std::same_as<void>;
  { source.product_transposed(in, term, out, workspace) } -> std::same_as<void>;
  { source.tile_count() } -> std::same_as<Index>;
  { target.tile(t) } -> std::same_as<WeightTile<typename W::Scalar>>;
  { source.tile(t) } -> std::same_as<WeightTile<const typename W::Scalar>>;
  { source.bytes() } -> std::same_as<std::size_t>;
};

/// Copies W into `out` (out_features x in_features, any strides). No allocation.
template <FrozenWeight W>
void read_back(const W& weight, const MatrixView<typename W::Scalar>& out) {
  for (Index t = 0; t < weight.tile_count(); ++t) {
    const auto tile = weight.tile(t);
    const auto target = tile.lines_are_outputs ? out : out.transpose();
    for (Index l = 0; l < tile.lines; ++l) {
      for (Index p = 0; p < tile.length; ++p) {
        target(tile.first_line + l, tile.first_position + p) = tile.data[l * tile.line_stride + p];
      }
    }
  }
}

}  // namespace lora
