// SPDX-License-Identifier: MIT
// The implementation of text_classifier.hpp for one kind of layers; included by the source that instantiates it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "sentence_encoder/classifier.hpp"
#include "sentence_encoder/text_classifier.hpp"

namespace examples::sentence_encoder {

namespace detail {

template <class Layers>
class LoadedClassifier final : public TextClassifier {
 public:
  LoadedClassifier(const EncoderWeights<float>& weights, const Adapter& adapter, Index classes, const Layers& layers)
      : classifier_(weights, classes, layers) {
    classifier_.model().load(adapter.config, adapter.weights);
    classifier_.model().train();
  }

  [[nodiscard]] lora::Matrix<float> logits(std::span<const TokenIds> texts) override {
    return classifier_.logits(texts, pass_);
  }
  [[nodiscard]] Index classes() const noexcept override { return classifier_.head().classes(); }
  void merge() override { classifier_.model().merge(); }
  void unmerge() override { classifier_.model().unmerge(); }

 private:
  Classifier<Layers> classifier_;
  EncoderPass<Layers> pass_;
};

}  // namespace detail

template <class Layers>
std::unique_ptr<TextClassifier> make_text_classifier_with(const EncoderWeights<float>& weights, const Adapter& adapter,
                                                          const Layers& layers) {
  const auto bias = adapter.weights.saved.find("head.bias");
  if (bias == adapter.weights.saved.end() || !adapter.weights.saved.contains("head.weight")) {
    throw lora::FormatError("make_text_classifier", "adapter", "a head (modules_to_save) beside the factors", "none");
  }
  return std::make_unique<detail::LoadedClassifier<Layers>>(weights, adapter,
                                                            static_cast<Index>(bias->second.values.size()), layers);
}

}  // namespace examples::sentence_encoder
