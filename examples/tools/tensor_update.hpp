// SPDX-License-Identifier: MIT
// The update of one tensor of a checkpoint when an adapter is merged, one block of rows at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/safetensors.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"
#include "storage.hpp"

namespace lora::tools {

/// W <- W + sign * s * B * A over the rows of a stored tensor, and with DoRA W <- (m / |W + s B A|) (W + s B A), where
/// each output is a row of the tensor, or a column if the tensor is stored transposed (fan_in_fan_out, embeddings).
/// Computes in Scalar.
template <RealScalar Scalar>
class TensorUpdate {
 public:
  /// `stored` is how the result is stored. @throws ShapeError when the module's factors do not fit the tensor
  TensorUpdate(std::string name, const StoredTensor& tensor, const Storage& stored, const ModuleWeights<float>& module,
               bool transposed, double sign)
      : name_(std::move(name)),
        tensor_(tensor),
        stored_(stored),
        a_(module.A.cast<Scalar>()),
        b_(module.B.cast<Scalar>()),
        magnitude_(module.magnitude.cast<Scalar>()),
        transposed_(transposed),
        scale_(static_cast<Scalar>(sign * module.scaling)) {
    rows_ = tensor.shape.empty() ? 0 : tensor.shape.front();
    cols_ = rows_ == 0 ? 0 : tensor.elements() / rows_;
    const Index outputs = transposed ? cols_ : rows_;
    const Index inputs = transposed ? rows_ : cols_;
    if (module.B.rows() != outputs || module.A.cols() != inputs) {
      throw ShapeError("merge", in_quotes(name_), "a weight for B " + shape(module.B) + " and A " + shape(module.A),
                       std::to_string(rows_) + " x " + std::to_string(cols_));
    }
    if ((!tensor.blocks || tensor.shape.size() > 1) && cols_ % stored.block_size() == 0) return;
    throw ShapeError("merge", in_quotes(name_), "rows of whole blocks of " + std::string(stored.name()),
                     shape_text(tensor.shape));
  }

  /// Passes the bytes of the new tensor to `sink`, and adds the rounding errors of storing to `error`.
  /// @throws StateError for a sum that is not finite as it would be stored, with its row
  void produce(const SafetensorsWriter::Sink& sink, RoundingError& error) const {
    const RowVector<Scalar> column_factors =
        magnitude_.size() > 0 && transposed_ ? dora_columns() : RowVector<Scalar>();
    std::vector<std::byte> stored;
    for_each_block([&](Index first, Matrix<Scalar>& block) {
      const Matrix<Scalar> before = block;
      add_delta(first, block);
      if (column_factors.size() > 0) {
        block.array().rowwise() *= column_factors.array();
      } else if (magnitude_.size() > 0) {
        scale_rows(first, block);
      }
      store(first, before, block, stored, error);
      sink(stored);
    });
  }

 private:
  static std::string shape(const Matrix<float>& m) {
    return std::to_string(m.rows()) + " x " + std::to_string(m.cols());
  }

  template <class Body>
  void for_each_block(const Body& body) const {
    for_each_row_block<Scalar>(tensor_, body);
  }

  void add_delta(Index first, Matrix<Scalar>& block) const {
    if (transposed_) {
      block.noalias() += scale_ * (a_.middleCols(first, block.rows()).transpose() * b_.transpose());
    } else {
      block.noalias() += scale_ * (b_.middleRows(first, block.rows()) * a_);
    }
  }

  static Scalar dora_factor(Scalar magnitude, double norm) {
    return norm > 0 ? static_cast<Scalar>(static_cast<double>(magnitude) / norm) : Scalar(1);
  }
  void scale_rows(Index first, Matrix<Scalar>& block) const {
    for (Index i = 0; i < block.rows(); ++i) {
      block.row(i) *= dora_factor(magnitude_[first + i], std::sqrt(block.row(i).template cast<double>().squaredNorm()));
    }
  }
  [[nodiscard]] RowVector<Scalar> dora_columns() const {
    RowVector<double> squares = RowVector<double>::Zero(cols_);
    for_each_block([&](Index first, Matrix<Scalar>& block) {
      add_delta(first, block);
      squares += block.template cast<double>().cwiseAbs2().colwise().sum();
    });
    RowVector<Scalar> factors(cols_);
    for (Index j = 0; j < cols_; ++j) factors[j] = dora_factor(magnitude_[j], std::sqrt(squares[j]));
    return factors;
  }

  void store(Index first, const Matrix<Scalar>& before, const Matrix<Scalar>& block, std::vector<std::byte>& bytes,
             RoundingError& error) const {
    const Matrix<Scalar> after = encode_finite(name_, stored_, block, bytes, first);
    if (after.size() == 0) return;
    const Matrix<double> delta = (block - before).template cast<double>();
    error.delta_squares += delta.squaredNorm();
    error.kept += (after - before).template cast<double>().cwiseProduct(delta).sum();
    const Matrix<double> difference = (after - block).template cast<double>();
    error.largest = std::max(error.largest, difference.cwiseAbs().maxCoeff());
    error.squares += difference.squaredNorm();
  }

  std::string name_;
  StoredTensor tensor_;
  Storage stored_;
  Matrix<Scalar> a_;
  Matrix<Scalar> b_;
  RowVector<Scalar> magnitude_;
  bool transposed_;
  Scalar scale_;
  Index rows_ = 0;
  Index cols_ = 0;
};

}  // namespace lora::tools
