// SPDX-License-Identifier: MIT
// A head trained on embeddings that are computed once: the frozen encoder's classifier.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/softmax_loss.hpp"
#include "sentence_encoder/fine_tuning.hpp"
#include "sentence_encoder/head.hpp"
#include "sentence_encoder/metrics.hpp"
#include "sentence_encoder/task.hpp"

namespace examples::sentence_encoder {

/// The class of each row's largest logit.
[[nodiscard]] inline std::vector<std::uint8_t> predictions(const lora::Matrix<float>& logits) {
  std::vector<std::uint8_t> answers;
  for (Index i = 0; i < logits.rows(); ++i) answers.push_back(static_cast<std::uint8_t>(predicted_class(logits, i)));
  return answers;
}

/// What FineTuning trains when the encoder is frozen.
class HeadOnEmbeddings {
 public:
  /// Row i of each matrix embeds text i of the task's part. All must outlive this object.
  HeadOnEmbeddings(Head& head, const lora::Matrix<float>& train, const lora::Matrix<float>& validation,
                   const Task& task)
      : head_(&head), train_(&train), validation_(&validation), task_(&task) {}

  double loss_and_gradients(std::span<const Index> batch, Shard part) {
    const auto rows = rows_of(batch, part);
    head_->zero_grad();
    if (rows.empty()) return 0;
    embeddings_.resize(static_cast<Index>(rows.size()), train_->cols());
    labels_.clear();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      embeddings_.row(static_cast<Index>(i)) = train_->row(rows[i]);
      labels_.push_back(task_->train.labels[static_cast<std::size_t>(rows[i])]);
    }
    head_->infer(embeddings_, logits_);
    logits_gradient_.resize(logits_.rows(), logits_.cols());
    const double loss = softmax_cross_entropy(logits_, labels_, logits_gradient_);
    head_->weight_gradient(embeddings_, logits_gradient_);
    return loss;
  }

  double validation_score() {
    return confusion(task_->validation.labels, answers(*validation_), task_->class_count()).macro_f1();
  }
  [[nodiscard]] std::vector<std::uint8_t> answers(const lora::Matrix<float>& embeddings) {
    head_->infer(embeddings, logits_);
    return predictions(logits_);
  }

  [[nodiscard]] std::vector<lora::Parameter<float>> parameters() { return head_->parameters(); }
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return 0; }
  void set_dropout_step(std::uint64_t /*step*/) noexcept {}

 private:
  Head* head_;
  const lora::Matrix<float>* train_;
  const lora::Matrix<float>* validation_;
  const Task* task_;
  lora::Matrix<float> embeddings_;
  std::vector<std::uint8_t> labels_;
  lora::Matrix<float> logits_;
  lora::Matrix<float> logits_gradient_;
};

}  // namespace examples::sentence_encoder
