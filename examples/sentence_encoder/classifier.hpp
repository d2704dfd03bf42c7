// SPDX-License-Identifier: MIT
// A sentence encoder with a linear head, of any kind of layers, as training takes it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "common/softmax_loss.hpp"
#include "lora/model/lora_model.hpp"
#include "sentence_encoder/encoder.hpp"
#include "sentence_encoder/fine_tuning.hpp"
#include "sentence_encoder/head.hpp"
#include "sentence_encoder/head_on_embeddings.hpp"
#include "sentence_encoder/metrics.hpp"
#include "sentence_encoder/task.hpp"

namespace examples::sentence_encoder {

/// An encoder with a head. With adapted layers it is a lora::LoraModel: adapters and head are loaded, merged and saved
/// through model(). It must stay where it is.
template <class LayersType>
class Classifier {
 public:
  using Layers = LayersType;
  using Pass = EncoderPass<Layers>;
  static constexpr bool adapted = !Layers::trains_norms;

  Classifier(const EncoderWeights<float>& weights, Index classes, const Layers& layers = {})
      : encoder_(weights, layers), head_(classes, encoder_.embedding_size()) {
    if constexpr (adapted) {
      encoder_.add_to(model_);
      model_.add("head.weight", head_.weight);
      model_.add("head.bias", head_.bias, {classes});
    }
  }
  Classifier(const Classifier&) = delete;
  Classifier& operator=(const Classifier&) = delete;

  [[nodiscard]] lora::LoraModel<float>& model() noexcept requires(adapted) { return model_; }
  [[nodiscard]] const SentenceEncoder<Layers>& encoder() const noexcept { return encoder_; }
  [[nodiscard]] SentenceEncoder<Layers>& encoder() noexcept { return encoder_; }
  [[nodiscard]] Head& head() noexcept { return head_; }
  [[nodiscard]] const Head& head() const noexcept { return head_; }

  /// All that trains, head included.
  [[nodiscard]] std::vector<lora::Parameter<float>> parameters() {
    if constexpr (adapted) {
      return model_.trainable_parameters();
    } else {
      auto all = encoder_.parameters();
      for (auto& parameter : head_.parameters()) all.push_back(std::move(parameter));
      return all;
    }
  }

  /// Logits of a batch, texts x classes, into `logits`. Reentrant.
  void infer(const PackedTexts& texts, Pass& pass, lora::Matrix<float>& logits) const {
    head_.infer(encoder_.infer(texts, pass), logits);
  }

  /// Logits of any number of texts, in batches. Reentrant.
  [[nodiscard]] lora::Matrix<float> logits(std::span<const TokenIds> texts, Pass& pass) const {
    lora::Matrix<float> all(static_cast<Index>(texts.size()), head_.classes());
    lora::Matrix<float> part;
    PackedTexts batch;
    constexpr std::size_t texts_at_once = 64;
    for (std::size_t first = 0; first < texts.size(); first += texts_at_once) {
      batch.clear();
      const auto some = texts.subspan(first, std::min(texts_at_once, texts.size() - first));
      for (const TokenIds& text : some) batch.add(text);
      infer(batch, pass, part);
      all.middleRows(static_cast<Index>(first), part.rows()) = part;
    }
    return all;
  }

 private:
  SentenceEncoder<Layers> encoder_;
  Head head_;
  lora::LoraModel<float> model_;
};

/// A classifier on a task, which must outlive it: what FineTuning trains.
template <class Layers>
class ClassifierOnTask {
 public:
  ClassifierOnTask(Classifier<Layers>& classifier, const Task& task) : classifier_(&classifier), task_(&task) {}

  double loss_and_gradients(std::span<const Index> batch, Shard part) {
    classifier_->encoder().zero_grad();
    classifier_->head().zero_grad();
    const BatchPosition position{
        dropout_step_++, task_->train.token_count(batch.first(static_cast<std::size_t>(part.begin))), part.begin};
    if (part.count == 0) return 0;
    task_->train.pack_rows(rows_of(batch, part), batch_, labels_);
    const auto& embeddings = classifier_->encoder().forward(batch_, position, pass_);
    classifier_->head().infer(embeddings, logits_);
    logits_gradient_.resize(logits_.rows(), logits_.cols());
    const double loss = softmax_cross_entropy(logits_, labels_, logits_gradient_);
    classifier_->head().backward(embeddings, logits_gradient_, embeddings_gradient_);
    classifier_->encoder().backward(embeddings_gradient_, pass_);
    return loss;
  }

  /// Macro-F1 on the validation texts.
  double validation_score() { return score(task_->validation); }

  [[nodiscard]] double score(const EncodedTexts& part) {
    return confusion(part.labels, answers(part), task_->class_count()).macro_f1();
  }
  [[nodiscard]] std::vector<std::uint8_t> answers(const EncodedTexts& part) {
    return predictions(classifier_->logits(part.texts, pass_));
  }

  [[nodiscard]] std::vector<lora::Parameter<float>> parameters() { return classifier_->parameters(); }
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

 private:
  Classifier<Layers>* classifier_;
  const Task* task_;
  std::uint64_t dropout_step_ = 0;
  EncoderPass<Layers> pass_;
  PackedTexts batch_;
  std::vector<std::uint8_t> labels_;
  lora::Matrix<float> logits_;
  lora::Matrix<float> logits_gradient_;
  lora::Matrix<float> embeddings_gradient_;
};

}  // namespace examples::sentence_encoder
