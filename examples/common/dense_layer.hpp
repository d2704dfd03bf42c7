// SPDX-License-Identifier: MIT
// A linear layer all of whose weights train: for pretraining, and as the baseline that LoRA is compared with.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "lora/core/parameter.hpp"
#include "lora/core/random.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/dense_product.hpp"

namespace examples {

using lora::Index;

/// Gradients of a DenseLayer.
template <class Scalar>
struct DenseGradients {
  lora::Matrix<Scalar> weight;   ///< out_features x in_features
  lora::RowVector<Scalar> bias;  ///< out_features

  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(weight.size() + bias.size()) * sizeof(Scalar);
  }
};

/// What backward needs beside X and dY: nothing.
struct DenseTape {
  [[nodiscard]] static constexpr std::size_t bytes() noexcept { return 0; }
};

/// Y (N x d) = X (N x k) W^T + bias; dW = dY^T X, dbias = sum of dY over rows, dX = dY W.
/// The calls are those of lora::LoraLinear's explicit form, so that one network serves both. Products run on the
/// library's kernels; a steady step allocates nothing. Const functions are reentrant.
template <lora::RealScalar ScalarType>
class DenseLayer {
 public:
  using Scalar = ScalarType;
  using Tape = DenseTape;
  using Gradients = DenseGradients<Scalar>;

  /// @throws lora::ShapeError unless bias has one element per row of weight.
  DenseLayer(lora::Matrix<Scalar> weight, lora::RowVector<Scalar> bias)
      : weight_(std::move(weight)), bias_(std::move(bias)) {
    lora::check_shape("DenseLayer", "bias", bias_, 1, weight_.rows());
  }

  /// Weights and bias from U(-1/sqrt(k), 1/sqrt(k)), as PyTorch starts a Linear.
  [[nodiscard]] static DenseLayer random(Index in_features, Index out_features, std::uint64_t seed) {
    lora::Matrix<Scalar> weight(out_features, in_features);
    lora::RowVector<Scalar> bias(out_features);
    const double bound = 1.0 / std::sqrt(static_cast<double>(in_features));
    lora::fill_uniform(lora::view_of(weight), bound, lora::RandomStream(seed, 0));
    lora::fill_uniform(lora::view_of(bias), bound, lora::RandomStream(seed, 1));
    return {std::move(weight), std::move(bias)};
  }

  [[nodiscard]] Index in_features() const noexcept { return weight_.cols(); }
  [[nodiscard]] Index out_features() const noexcept { return weight_.rows(); }
  [[nodiscard]] const lora::Matrix<Scalar>& weight() const noexcept { return weight_; }
  [[nodiscard]] const lora::RowVector<Scalar>& bias() const noexcept { return bias_; }

  void infer(const lora::Matrix<Scalar>& x, lora::Matrix<Scalar>& y, lora::Workspace& workspace) const {
    lora::check_shape("DenseLayer", "x", x, -1, in_features());
    lora::check_shape("DenseLayer", "y", y, x.rows(), out_features());
    multiply(lora::view_of(weight_), lora::view_of(x), bias_.data(), lora::view_of(y), workspace);
  }

  void forward(const lora::Matrix<Scalar>& x, Tape& /*tape*/, lora::Matrix<Scalar>& y,
               lora::Workspace& workspace) const {
    infer(x, y, workspace);
  }

  /// Writes (does not add to) the gradients of this batch.
  void backward(const lora::Matrix<Scalar>& x, const Tape& /*tape*/, const lora::Matrix<Scalar>& dy,
                Gradients& gradients, lora::Workspace& workspace) const {
    lora::check_shape("DenseLayer::backward", "dy", dy, x.rows(), out_features());
    multiply(lora::view_of(x).transpose(), lora::view_of(dy).transpose(), nullptr, lora::view_of(gradients.weight),
             workspace);
    gradients.bias.noalias() = dy.colwise().sum();
  }

  /// The same, and dX.
  void backward(const lora::Matrix<Scalar>& x, const Tape& tape, const lora::Matrix<Scalar>& dy, Gradients& gradients,
                lora::Matrix<Scalar>& dx, lora::Workspace& workspace) const {
    backward(x, tape, dy, gradients, workspace);
    multiply(lora::view_of(weight_).transpose(), lora::view_of(dy), nullptr, lora::view_of(dx), workspace);
  }

  /// Memory comes with the first use.
  [[nodiscard]] Gradients& gradients() {
    if (gradients_.weight.size() != weight_.size()) {
      gradients_ = {lora::Matrix<Scalar>::Zero(out_features(), in_features()),
                    lora::RowVector<Scalar>::Zero(out_features())};
    }
    return gradients_;
  }

  /// Nothing to do: backward writes.
  void zero_grad() const noexcept {}

  /// "weight" and "bias". Valid while the layer stays where it is.
  [[nodiscard]] std::vector<lora::Parameter<Scalar>> parameters() {
    Gradients& g = gradients();
    return {{"weight", lora::ParameterRole::weight, weight_.data(), g.weight.data(), weight_.rows(), weight_.cols(),
             states_[0]},
            {"bias", lora::ParameterRole::bias, bias_.data(), g.bias.data(), 1, bias_.size(), states_[1]}};
  }

  [[nodiscard]] std::size_t parameter_bytes() const noexcept {
    return static_cast<std::size_t>(weight_.size() + bias_.size()) * sizeof(Scalar);
  }

 private:
  using View = lora::MatrixView<Scalar>;
  using ConstView = lora::MatrixView<const Scalar>;

  // out = x weight^T + bias
  static void multiply(const ConstView& weight, const ConstView& x, const Scalar* bias, const View& out,
                       lora::Workspace& workspace) {
    lora::kernels::dense_product<Scalar>(weight, x, bias, ConstView{}, ConstView{}, out, workspace);
  }

  lora::Matrix<Scalar> weight_;
  lora::RowVector<Scalar> bias_;
  Gradients gradients_;
  std::array<lora::Moments<Scalar>, 2> states_;
};

}  // namespace examples
