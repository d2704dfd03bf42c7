// SPDX-License-Identifier: MIT
// Softmax cross-entropy, and what a row of logits predicts.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"

namespace examples {

using lora::Index;

/// Mean over the rows of -log softmax(logits)[label], and its gradient (softmax(logits) - onehot(label)) / N into
/// `gradient`. Logits and gradient are N x classes. No allocation. @throws lora::ShapeError
template <class Scalar>
[[nodiscard]] double softmax_cross_entropy(const lora::Matrix<Scalar>& logits, std::span<const std::uint8_t> labels,
                                           lora::Matrix<Scalar>& gradient) {
  lora::check_shape("softmax_cross_entropy", "logits", logits, static_cast<Index>(labels.size()), -1);
  lora::check_shape("softmax_cross_entropy", "gradient", gradient, logits.rows(), logits.cols());
  double loss = 0;
  for (Index i = 0; i < logits.rows(); ++i) {
    const auto label = static_cast<Index>(labels[static_cast<std::size_t>(i)]);
    const Scalar largest = logits.row(i).maxCoeff();
    gradient.row(i) = (logits.row(i).array() - largest).exp();
    const Scalar sum = gradient.row(i).sum();
    loss += std::log(static_cast<double>(sum)) - static_cast<double>(logits(i, label) - largest);
    gradient.row(i) /= sum * static_cast<Scalar>(logits.rows());
    gradient(i, label) -= Scalar(1) / static_cast<Scalar>(logits.rows());
  }
  return loss / static_cast<double>(logits.rows());
}

/// The class of the largest logit, the first of equals.
template <class Scalar>
[[nodiscard]] Index predicted_class(const lora::Matrix<Scalar>& logits, Index row) {
  Index best = 0;
  logits.row(row).maxCoeff(&best);
  return best;
}

/// Share of rows whose largest logit is the label's, in [0, 1].
template <class Scalar>
[[nodiscard]] double accuracy(const lora::Matrix<Scalar>& logits, std::span<const std::uint8_t> labels) {
  Index right = 0;
  for (Index i = 0; i < logits.rows(); ++i) {
    right += predicted_class(logits, i) == static_cast<Index>(labels[static_cast<std::size_t>(i)]) ? 1 : 0;
  }
  return static_cast<double>(right) / static_cast<double>(logits.rows());
}

}  // namespace examples
