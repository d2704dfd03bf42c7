// SPDX-License-Identifier: MIT
// A linear layer from embeddings to logits, trained whole.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// logits = sqrt(d) E W^T + b, with embeddings E (N x d) of length 1 and W (classes x d). The root gives every feature
/// a mean square of 1, so that W learns at the rates that suit the layers below. W and b start at zero.
struct Head {
  lora::Trainable<float> weight;  ///< classes x d
  lora::Trainable<float> bias;    ///< 1 x classes

  Head(Index classes, Index embedding_size) {
    weight.value = lora::Matrix<float>::Zero(classes, embedding_size);
    bias.value = lora::Matrix<float>::Zero(1, classes);
  }

  [[nodiscard]] Index classes() const noexcept { return weight.value.rows(); }
  [[nodiscard]] float scale() const noexcept { return std::sqrt(static_cast<float>(weight.value.cols())); }

  /// Logits, N x classes.
  void infer(const lora::Matrix<float>& embeddings, lora::Matrix<float>& logits) const {
    logits.resize(embeddings.rows(), classes());
    logits.noalias() = scale() * embeddings * weight.value.transpose();
    logits.rowwise() += lora::RowVector<float>(bias.value);
  }

  /// From the loss's gradient by the logits to those of W and b, which it sets, and of E.
  void backward(const lora::Matrix<float>& embeddings, const lora::Matrix<float>& logits_gradient,
                lora::Matrix<float>& embeddings_gradient) {
    weight_gradient(embeddings, logits_gradient);
    embeddings_gradient.resize(embeddings.rows(), embeddings.cols());
    embeddings_gradient.noalias() = scale() * logits_gradient * weight.value;
  }

  /// The same without the gradient of E.
  void weight_gradient(const lora::Matrix<float>& embeddings, const lora::Matrix<float>& logits_gradient) {
    weight.ensure_gradient();
    bias.ensure_gradient();
    weight.gradient.noalias() = scale() * logits_gradient.transpose() * embeddings;
    bias.gradient = logits_gradient.colwise().sum();
  }

  void zero_grad() {
    weight.ensure_gradient();
    bias.ensure_gradient();
    weight.gradient.setZero();
    bias.gradient.setZero();
  }

  /// "head.weight" and "head.bias". Valid while the head stays where it is.
  [[nodiscard]] std::vector<lora::Parameter<float>> parameters() {
    return {weight.parameter("head.weight", lora::ParameterRole::weight),
            bias.parameter("head.bias", lora::ParameterRole::bias)};
  }
};

}  // namespace examples::sentence_encoder
