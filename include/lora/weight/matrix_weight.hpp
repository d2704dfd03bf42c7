// SPDX-License-Identifier: MIT
// A frozen weight that owns a plain matrix.
#pragma once

#include <cstddef>
#include <utility>

#include "lora/weight/dense.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// Models MergeableWeight over its own row-major matrix, which is read in place: for weights that are looked up more
/// often than multiplied (a table of embeddings) or whose layout is fixed (kernels of a convolution). A product packs W
/// panel by panel like DenseWeight, and gives the same bits as PackedWeight.
///
/// Copying copies the matrix; a moved-from object must not be used. The const functions are safe to call from many
/// threads at once, each with its own workspace.
template <RealScalar Scalar_>
class MatrixWeight : public DenseProducts<MatrixWeight<Scalar_>, Scalar_> {
 public:
  using Scalar = Scalar_;

  MatrixWeight() = default;

  /// Keeps `matrix` as W (out_features x in_features), or, when `transposed`, as W^T (in_features x out_features): a
  /// table of num_embeddings x embedding_dim is a weight of embedding_dim x num_embeddings, each of whose columns is a
  /// contiguous row of the table.
  explicit MatrixWeight(Matrix<Scalar> matrix, bool transposed = false) noexcept
      : matrix_(std::move(matrix)), transposed_(transposed) {}

  /// Copies `weight` (out_features x in_features, any strides).
  explicit MatrixWeight(const MatrixView<const Scalar>& weight) : matrix_(weight.rows, weight.cols) {
    copy_elements(weight, view_of(matrix_));
  }

  [[nodiscard]] Index out_features() const noexcept { return transposed_ ? matrix_.cols() : matrix_.rows(); }
  [[nodiscard]] Index in_features() const noexcept { return transposed_ ? matrix_.rows() : matrix_.cols(); }
  /// Memory of the matrix.
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(matrix_.size()) * sizeof(Scalar); }

  /// The matrix as it is stored.
  [[nodiscard]] const Matrix<Scalar>& matrix() const noexcept { return matrix_; }
  /// Whether the matrix is the transpose of W.
  [[nodiscard]] bool transposed() const noexcept { return transposed_; }
  /// W, out_features x in_features.
  [[nodiscard]] MatrixView<const Scalar> view() const noexcept { return view_of_w(matrix_.data()); }

  /// See ReadableWeight. @throws ShapeError
  void read(Index first_output, Index first_input, const MatrixView<Scalar>& out) const {
    detail::read_dense("MatrixWeight::read", view(), first_output, first_input, out);
  }

  /// Always true: the matrix is this object's own.
  [[nodiscard]] bool writable() const noexcept { return true; }

  [[nodiscard]] WeightTile<Scalar> tile(Index t) noexcept {
    return detail::DenseTiling<Scalar>{view_of_w(matrix_.data())}.tile(t);
  }
  [[nodiscard]] WeightTile<const Scalar> tile(Index t) const noexcept {
    return detail::DenseTiling<const Scalar>{view()}.tile(t);
  }

 private:
  template <class Element>
  [[nodiscard]] MatrixView<Element> view_of_w(Element* data) const noexcept {
    const MatrixView<Element> stored{data, matrix_.rows(), matrix_.cols()};
    return transposed_ ? stored.transpose() : stored;
  }

  Matrix<Scalar> matrix_;
  bool transposed_ = false;
};

#if defined(LORA_COMPILED)
extern template class MatrixWeight<float>;
extern template class MatrixWeight<double>;
#endif

}  // namespace lora
