// The frozen weight that stays in the caller's memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/kernels/dense_product.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// A view of a weight in memory that the caller owns and keeps alive: an Eigen matrix, map or block, a raw buffer, a
/// mapped file. Nothing is copied; merging writes into that memory, unless it is const, in which case merging is
/// refused. A weight that is still merged when this object goes stays merged. Moves, and does not copy, since two
/// layers must not merge into one memory.
template <RealScalar ScalarType>
class DenseWeight {
 public:
  using Scalar = ScalarType;

  /// Views W (out_features x in_features); pass `w.transpose()` for a weight stored in_features x out_features.
  /// @throws ShapeError when W is empty, or neither its rows nor its columns are contiguous.
  explicit DenseWeight(const MatrixView<Scalar>& w) : DenseWeight(w, true) {}

  /// A read-only view. LoraLinear::merge on it throws StateError.
  explicit DenseWeight(const MatrixView<const Scalar>& w)
      : DenseWeight(MatrixView<Scalar>{const_cast<Scalar*>(w.data), w.rows, w.cols, w.row_stride, w.col_stride},
                    false) {}

  DenseWeight(const DenseWeight&) = delete;
  DenseWeight& operator=(const DenseWeight&) = delete;
  DenseWeight(DenseWeight&&) noexcept = default;
  DenseWeight& operator=(DenseWeight&&) noexcept = default;
  ~DenseWeight() = default;

  [[nodiscard]] Index out_features() const noexcept { return w_.rows; }
  [[nodiscard]] Index in_features() const noexcept { return w_.cols; }

  /// The viewed memory, out_features x in_features.
  [[nodiscard]] MatrixView<const Scalar> view() const noexcept { return w_; }

  /// Y = X W^T + bias + U F; see FrozenWeight. Packs W panel by panel into the workspace.
  void product(const MatrixView<const Scalar>& x, const Scalar* bias, const LowRankTerm<Scalar>& term,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    kernels::dense_product(view(), x, bias, term.down, term.up, y, workspace);
  }

  /// dX = dY W + V F; see FrozenWeight.
  void product_transposed(const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    kernels::dense_product_transposed(view(), dy, term.down, term.up, dx, workspace);
  }

  [[nodiscard]] Index tile_count() const noexcept {
    return tile_columns() * ((lines() + lines_per_tile() - 1) / lines_per_tile());
  }

  /// @throws StateError when the memory is const.
  [[nodiscard]] WeightTile<Scalar> tile(Index t) {
    if (!writable_) throw StateError("DenseWeight::tile", "weight", "memory that may be written", "a const view");
    return tile_of(t);
  }
  [[nodiscard]] WeightTile<const Scalar> tile(Index t) const noexcept {
    const auto tile = tile_of(t);
    return {tile.data,       tile.lines,          tile.length,           tile.line_stride,
            tile.first_line, tile.first_position, tile.lines_are_outputs};
  }

  /// 0: the memory is the caller's.
  [[nodiscard]] std::size_t bytes() const noexcept { return 0; }

 private:
  DenseWeight(const MatrixView<Scalar>& w, bool writable) : w_(w), writable_(writable) {
    if (w.rows < 1 || w.cols < 1) {
      throw ShapeError("DenseWeight", "weight", "at least 1 x 1", shape_text(w.rows, w.cols));
    }
    if (w.col_stride != 1 && w.row_stride != 1) {
      throw ShapeError("DenseWeight", "weight", "contiguous rows or columns",
                       "strides " + std::to_string(w.row_stride) + " and " + std::to_string(w.col_stride));
    }
  }

  [[nodiscard]] bool by_output() const noexcept { return w_.row_major(); }
  [[nodiscard]] Index lines() const noexcept { return by_output() ? w_.rows : w_.cols; }
  [[nodiscard]] Index line_length() const noexcept { return by_output() ? w_.cols : w_.rows; }
  [[nodiscard]] Index tile_length() const noexcept { return std::min(line_length(), max_tile_size); }
  [[nodiscard]] Index tile_columns() const noexcept { return (line_length() + tile_length() - 1) / tile_length(); }
  [[nodiscard]] Index lines_per_tile() const noexcept { return max_tile_size / tile_length(); }

  [[nodiscard]] WeightTile<Scalar> tile_of(Index t) const noexcept {
    const Index first_line = t / tile_columns() * lines_per_tile();
    const Index first_position = t % tile_columns() * tile_length();
    const Index stride = by_output() ? w_.row_stride : w_.col_stride;
    return {w_.data + first_line * stride + first_position,
            std::min(lines_per_tile(), lines() - first_line),
            std::min(tile_length(), line_length() - first_position),
            stride,
            first_line,
            first_position,
            by_output()};
  }

  MatrixView<Scalar> w_;
  bool writable_;
};

}  // namespace lora
