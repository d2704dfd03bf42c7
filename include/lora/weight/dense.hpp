// SPDX-License-Identifier: MIT
// A frozen weight that stays in the caller's memory.
#pragma once

#include <cstddef>
#include <string>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/kernels/dense_product.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

namespace detail {

/// Tiles of a weight stored by rows or by columns: each is several whole lines, or part of one.
template <class Element>
struct DenseTiling {
  MatrixView<Element> w;

  [[nodiscard]] Index count() const noexcept {
    if (lines() == 0 || line_length() == 0) return 0;
    return tile_columns() * ((lines() + lines_per_tile() - 1) / lines_per_tile());
  }

  [[nodiscard]] WeightTile<Element> tile(Index t) const noexcept {
    const Index line = t / tile_columns() * lines_per_tile();
    const Index position = t % tile_columns() * tile_length();
    const Index stride = by_output() ? w.row_stride : w.col_stride;
    return {.data = w.data + line * stride + position,
            .lines = least(lines_per_tile(), lines() - line),
            .length = least(tile_length(), line_length() - position),
            .line_stride = stride,
            .first_line = line,
            .first_position = position,
            .lines_are_outputs = by_output()};
  }

 private:
  [[nodiscard]] static Index least(Index a, Index b) noexcept { return a < b ? a : b; }
  [[nodiscard]] bool by_output() const noexcept { return w.row_major(); }
  [[nodiscard]] Index lines() const noexcept { return by_output() ? w.rows : w.cols; }
  [[nodiscard]] Index line_length() const noexcept { return by_output() ? w.cols : w.rows; }
  [[nodiscard]] Index tile_length() const noexcept { return least(line_length(), max_tile_size); }
  [[nodiscard]] Index tile_columns() const noexcept { return (line_length() + tile_length() - 1) / tile_length(); }
  [[nodiscard]] Index lines_per_tile() const noexcept { return max_tile_size / tile_length(); }
};

/// Reads a block of a weight in memory; see ReadableWeight.
template <class Scalar>
void read_dense(std::string_view operation, const MatrixView<const Scalar>& w, Index first_output, Index first_input,
                const MatrixView<Scalar>& out) {
  check_block(operation, w.rows, w.cols, first_output, first_input, out.rows, out.cols);
  if (out.rows == 0 || out.cols == 0) return;
  copy_elements(w.middle_rows(first_output, out.rows).middle_cols(first_input, out.cols), out);
}

/// @throws ShapeError unless the lines of a weight are contiguous and do not overlap.
inline void check_dense(const void* data, Index rows, Index cols, Index row_stride, Index col_stride) {
  if (rows < 1 || cols < 1) throw ShapeError("DenseWeight", "weight", "at least 1 x 1", shape_text(rows, cols));
  if (data == nullptr) throw ShapeError("DenseWeight", "weight", "memory", "a null pointer");
  const auto strides = [&] { return "strides " + std::to_string(row_stride) + " and " + std::to_string(col_stride); };
  if (col_stride != 1 && row_stride != 1) {
    throw ShapeError("DenseWeight", "weight", "contiguous rows or columns (one stride of 1)", strides());
  }
  const Index lines = col_stride == 1 ? rows : cols;
  const Index length = col_stride == 1 ? cols : rows;
  const Index stride = col_stride == 1 ? row_stride : col_stride;
  if (lines > 1 && stride < length) {
    throw ShapeError("DenseWeight", "weight", "a stride of at least " + std::to_string(length) + ", the line's length",
                     strides());
  }
}

}  // namespace detail

/// The products of a weight in plain memory, in either orientation; `Weight` derives from this and has a view() of W.
template <class Weight, RealScalar Scalar>
class DenseProducts {
 public:
  /// Y = X W^T + bias + U F; see FrozenWeight. Packs W panel by panel into the workspace.
  void product(const MatrixView<const Scalar>& x, const Scalar* bias, const LowRankTerm<Scalar>& term,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    kernels::dense_product(w(), x, bias, term.down, term.up, y, workspace);
  }
  /// dX = dY W + V F; see FrozenWeight.
  void product_transposed(const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    kernels::dense_product_transposed(w(), dy, term.down, term.up, dx, workspace);
  }
  [[nodiscard]] Index tile_count() const noexcept { return detail::DenseTiling<const Scalar>{w()}.count(); }

 private:
  [[nodiscard]] MatrixView<const Scalar> w() const noexcept { return static_cast<const Weight&>(*this).view(); }
};

/// A view of a weight in memory that the caller owns and keeps alive: an Eigen matrix, map or block, a raw buffer, a
/// mapped file. Nothing is copied; merging writes into that memory; if it is const, merging is refused. A weight that
/// is still merged when this object is destroyed stays merged. Movable but not copyable, since two layers must not
/// merge into the same memory.
template <RealScalar ScalarType>
class DenseWeight : public DenseProducts<DenseWeight<ScalarType>, ScalarType> {
 public:
  using Scalar = ScalarType;

  /// Views W (out_features x in_features); pass `w.transpose()` for a weight stored in_features x out_features.
  /// @throws ShapeError when W is empty, when neither its rows nor its columns are contiguous, or when they overlap (a
  /// stride below their length, or a negative one).
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

  /// See ReadableWeight. @throws ShapeError
  void read(Index first_output, Index first_input, const MatrixView<Scalar>& out) const {
    detail::read_dense("DenseWeight::read", view(), first_output, first_input, out);
  }

  /// @throws StateError when the memory is const.
  [[nodiscard]] WeightTile<Scalar> tile(Index t) {
    if (!writable_) throw StateError("DenseWeight::tile", "weight", "memory that may be written", "a const view");
    return detail::DenseTiling<Scalar>{w_}.tile(t);
  }
  [[nodiscard]] WeightTile<const Scalar> tile(Index t) const noexcept {
    return detail::DenseTiling<const Scalar>{w_}.tile(t);
  }

  /// False for a view of const memory.
  [[nodiscard]] bool writable() const noexcept { return writable_; }

  /// 0: the memory is the caller's.
  [[nodiscard]] std::size_t bytes() const noexcept { return 0; }

 private:
  DenseWeight(const MatrixView<Scalar>& w, bool writable) : w_(w), writable_(writable) {
    detail::check_dense(w.data, w.rows, w.cols, w.row_stride, w.col_stride);
  }

  MatrixView<Scalar> w_;
  bool writable_;
};

#if defined(LORA_COMPILED)
extern template class DenseWeight<float>;
extern template class DenseWeight<double>;
#endif

}  // namespace lora
