// SPDX-License-Identifier: MIT
// Layer normalisation over the last dimension, with its backward pass.
#pragma once

#include <cmath>
#include <utility>

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "sentence_encoder/encoder_weights.hpp"

namespace examples::sentence_encoder {

/// What a forward pass leaves for backward, beside x: mean and 1 / sqrt(variance + epsilon) of every row.
template <class Scalar>
struct NormRecord {
  lora::RowVector<Scalar> mean;
  lora::RowVector<Scalar> inverse_deviation;
};

/// y = scale x^ + shift with x^ = (x - mean) / sqrt(variance + 1e-6), over each row of N x size.
/// Backward, with g = dy scale: dx = (g - mean(g) - x^ mean(g x^)) / sqrt(variance + 1e-6); dscale = sum of dy x^ and
/// dshift = sum of dy over rows. Source: Ba et al., arXiv 1607.06450.
template <lora::RealScalar ScalarType>
class LayerNorm {
 public:
  using Scalar = ScalarType;

  explicit LayerNorm(NormWeights<Scalar> weights) {
    scale_.value = std::move(weights.scale);
    shift_.value = std::move(weights.shift);
  }

  [[nodiscard]] lora::Trainable<Scalar>& scale() noexcept { return scale_; }
  [[nodiscard]] lora::Trainable<Scalar>& shift() noexcept { return shift_; }

  /// Resizes `record` and `y`.
  void forward(const lora::Matrix<Scalar>& x, NormRecord<Scalar>& record, lora::Matrix<Scalar>& y) const {
    record.mean.resize(x.rows());
    record.inverse_deviation.resize(x.rows());
    y.resize(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i) {
      const Scalar mean = x.row(i).mean();
      const Scalar variance = (x.row(i).array() - mean).square().mean();
      const Scalar inverse = Scalar(1) / std::sqrt(variance + Scalar(1e-6));
      record.mean[i] = mean;
      record.inverse_deviation[i] = inverse;
      y.row(i).array() =
          (x.row(i).array() - mean) * inverse * scale_.value.row(0).array() + shift_.value.row(0).array();
    }
  }

  /// Adds dX to `dx`. `dy` is overwritten.
  void backward(const lora::Matrix<Scalar>& x, const NormRecord<Scalar>& record, lora::Matrix<Scalar>& dy,
                lora::Matrix<Scalar>& dx) const {
    for (Index i = 0; i < x.rows(); ++i) {
      const auto normal = (x.row(i).array() - record.mean[i]) * record.inverse_deviation[i];
      auto g = dy.row(i).array();
      g *= scale_.value.row(0).array();
      const Scalar mean = g.mean();
      const Scalar along = (g * normal).mean();
      dx.row(i).array() += (g - mean - normal * along) * record.inverse_deviation[i];
    }
  }

  /// Writes the gradients of scale and shift. Call it before backward(), which overwrites `dy`.
  void parameter_gradients(const lora::Matrix<Scalar>& x, const NormRecord<Scalar>& record,
                           const lora::Matrix<Scalar>& dy) {
    scale_.ensure_gradient();
    shift_.ensure_gradient();
    scale_.gradient.setZero();
    shift_.gradient.noalias() = dy.colwise().sum();
    for (Index i = 0; i < x.rows(); ++i) {
      scale_.gradient.row(0).array() +=
          dy.row(i).array() * (x.row(i).array() - record.mean[i]) * record.inverse_deviation[i];
    }
  }

 private:
  lora::Trainable<Scalar> scale_;  // 1 x size
  lora::Trainable<Scalar> shift_;
};

}  // namespace examples::sentence_encoder
