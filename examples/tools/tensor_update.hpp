// The update of one tensor of a checkpoint when an adapter is merged, one block of rows at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/safetensors.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora::tools {

/// The distance of stored values from those computed in float.
struct RoundingError {
  double largest = 0;
  double squares = 0;        ///< of the errors
  double delta_squares = 0;  ///< of what was added

  RoundingError& operator+=(const RoundingError& other) {
    largest = std::max(largest, other.largest);
    squares += other.squares;
    delta_squares += other.delta_squares;
    return *this;
  }
  /// Root of the squares, as a share of what was added.
  [[nodiscard]] double relative() const { return delta_squares > 0 ? std::sqrt(squares / delta_squares) : 0.0; }
};

/// Encodes values whose first row is row `first` of the tensor `name`, and returns them as they are stored.
/// @throws StateError naming the tensor and the row when one is not finite in `dtype`
template <RealScalar Scalar>
Matrix<Scalar> encode_finite(const std::string& name, Dtype dtype, const Matrix<Scalar>& values,
                             std::vector<std::byte>& bytes, Index first = 0) {
  const auto count = static_cast<std::size_t>(values.size());
  bytes.resize(count * bits_of(dtype) / 8);
  encode(dtype, std::span<const Scalar>(values.data(), count), bytes.data());
  Matrix<Scalar> back(values.rows(), values.cols());
  decode(dtype, bytes.data(), std::span<Scalar>(back.data(), count));
  for (Index row = 0; row < back.rows(); ++row) {
    if (back.row(row).allFinite()) continue;
    throw StateError("write tensor", in_quotes(name) + ", row " + std::to_string(first + row),
                     "values that are finite in " + std::string(name_of(dtype)),
                     values.row(row).allFinite() ? "one beyond its range" : "an infinity or NaN");
  }
  return back;
}

/// W <- W + sign * s * B * A over the rows of a stored tensor, and with DoRA W <- (m / |W + s B A|) (W + s B A), where
/// each output is a row of the tensor, or a column if the tensor is stored transposed (fan_in_fan_out, embeddings).
/// Computes in Scalar.
template <RealScalar Scalar>
class TensorUpdate {
 public:
  /// `stored` is the dtype of the result. @throws ShapeError when the module's factors do not fit the tensor
  TensorUpdate(std::string name, const TensorView& tensor, Dtype stored, const ModuleWeights<float>& module,
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
    cols_ = rows_ == 0 ? 0 : tensor.size() / rows_;
    const Index outputs = transposed ? cols_ : rows_;
    const Index inputs = transposed ? rows_ : cols_;
    if (module.B.rows() != outputs || module.A.cols() != inputs) {
      throw ShapeError("merge", in_quotes(name_), "a weight for B " + shape(module.B) + " and A " + shape(module.A),
                       std::to_string(rows_) + " x " + std::to_string(cols_));
    }
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
      error.delta_squares += (block - before).template cast<double>().squaredNorm();
      store(first, block, stored, error);
      sink(stored);
    });
  }

 private:
  static constexpr Index block_elements = Index{1} << 18;

  static std::string shape(const Matrix<float>& m) {
    return std::to_string(m.rows()) + " x " + std::to_string(m.cols());
  }

  template <class Body>
  void for_each_block(const Body& body) const {
    const Index step = std::max<Index>(1, block_elements / std::max<Index>(cols_, 1));
    const std::size_t row_bytes = rows_ == 0 ? 0 : tensor_.bytes.size() / static_cast<std::size_t>(rows_);
    Matrix<Scalar> block;
    for (Index first = 0; first < rows_; first += step) {
      const Index count = std::min(step, rows_ - first);
      block.resize(count, cols_);
      TensorView part = tensor_;
      part.shape = {count, cols_};
      part.bytes = tensor_.bytes.subspan(static_cast<std::size_t>(first) * row_bytes,
                                         static_cast<std::size_t>(count) * row_bytes);
      part.copy_to(std::span<Scalar>(block.data(), static_cast<std::size_t>(block.size())));
      body(first, block);
    }
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

  void store(Index first, const Matrix<Scalar>& block, std::vector<std::byte>& bytes, RoundingError& error) const {
    const Matrix<Scalar> difference = encode_finite(name_, stored_, block, bytes, first) - block;
    if (difference.size() == 0) return;
    error.largest = std::max(error.largest, static_cast<double>(difference.cwiseAbs().maxCoeff()));
    error.squares += difference.template cast<double>().squaredNorm();
  }

  std::string name_;
  TensorView tensor_;
  Dtype stored_;
  Matrix<Scalar> a_;
  Matrix<Scalar> b_;
  RowVector<Scalar> magnitude_;
  bool transposed_;
  Scalar scale_;
  Index rows_ = 0;
  Index cols_ = 0;
};

}  // namespace lora::tools
