// SPDX-License-Identifier: MIT
// A classifier small enough for tests of training: softmax over a linear map of made points, with noise that follows
// from the dropout position.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/softmax_loss.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/random.hpp"
#include "sentence_encoder/fine_tuning.hpp"

namespace examples::sentence_encoder::testing {

class ToyClassifier {
 public:
  static constexpr Index points = 90;
  static constexpr Index features = 6;
  static constexpr Index classes = 3;

  ToyClassifier() : x_(points, features), labels_(points) {
    weight_.value = lora::Matrix<float>::Zero(classes, features);
    bias_.value = lora::Matrix<float>::Zero(1, classes);
    lora::fill_normal(lora::view_of(x_), 1.0, lora::RandomStream(7, 0));
    for (Index i = 0; i < points; ++i) {
      labels_[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(i % classes);
      x_(i, i % classes) += 3.0F;
    }
  }

  double loss_and_gradients(std::span<const Index> batch, Shard part) {
    const auto rows = rows_of(batch, part);
    weight_.ensure_gradient();
    bias_.ensure_gradient();
    weight_.gradient.setZero();
    bias_.gradient.setZero();
    if (rows.empty()) {
      ++dropout_step_;
      return 0;
    }
    const lora::Matrix<float> x = noisy(batch).middleRows(part.begin, part.count);
    std::vector<std::uint8_t> labels;
    for (const Index row : rows) labels.push_back(labels_[static_cast<std::size_t>(row)]);
    const lora::Matrix<float> logits = logits_of(x);
    lora::Matrix<float> gradient(logits.rows(), logits.cols());
    const double loss = softmax_cross_entropy(logits, labels, gradient);
    weight_.gradient = gradient.transpose() * x;
    bias_.gradient = gradient.colwise().sum();
    return loss;
  }

  double validation_score() {
    ++evaluations_;
    if (!scores.empty()) return scores.at(static_cast<std::size_t>(evaluations_ - 1));
    return accuracy(lora::Matrix<float>(logits_of(x_)), labels_);
  }

  std::vector<lora::Parameter<float>> parameters() {
    return {weight_.parameter("head.weight", lora::ParameterRole::weight),
            bias_.parameter("head.bias", lora::ParameterRole::bias)};
  }

  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

  std::vector<double> scores;  ///< answers of validation_score() in turn, where there are any

 private:
  lora::Matrix<float> noisy(std::span<const Index> rows) {
    lora::Matrix<float> x(static_cast<Index>(rows.size()), features);
    lora::fill_normal(lora::view_of(x), 0.1, lora::RandomStream(11, dropout_step_++));
    for (std::size_t i = 0; i < rows.size(); ++i) x.row(static_cast<Index>(i)) += x_.row(rows[i]);
    return x;
  }
  [[nodiscard]] lora::Matrix<float> logits_of(const lora::Matrix<float>& x) const {
    return (x * weight_.value.transpose()).rowwise() + lora::RowVector<float>(bias_.value);
  }

  lora::Matrix<float> x_;
  std::vector<std::uint8_t> labels_;
  lora::Trainable<float> weight_;
  lora::Trainable<float> bias_;
  std::uint64_t dropout_step_ = 0;
  int evaluations_ = 0;
};

}  // namespace examples::sentence_encoder::testing
