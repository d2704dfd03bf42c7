// SPDX-License-Identifier: MIT
// The command "classify": labels texts with an adapter from a folder.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <istream>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "common/softmax_loss.hpp"
#include "common/text_table.hpp"
#include "sentence_encoder/encoder_reader.hpp"
#include "sentence_encoder/text_classifier.hpp"
#include "sentence_encoder/tokenizer.hpp"

namespace examples::sentence_encoder {

struct ClassifyOptions {
  std::filesystem::path model_dir = "build/models/universal-sentence-encoder-lite";
  std::filesystem::path adapter = "sentence_encoder_output/adapter";
  bool merged = false;
  std::vector<std::string> texts;  ///< from the command line; standard input's lines when there are none
};

/// Answers "label, tab, confidence, tab, text" for each text.
class LineClassifier {
 public:
  /// @throws lora::Error when model, adapter and labels do not fit
  explicit LineClassifier(const ClassifyOptions& options)
      : tokenizer_(read_vocabulary(options.model_dir / "vocab.json")),
        classifier_(make_text_classifier(read_encoder_weights(options.model_dir),
                                         lora::read_peft_directory<float>(options.adapter))),
        labels_(read_labels(options.adapter)) {
    if (static_cast<Index>(labels_.size()) != classifier_->classes()) {
      throw lora::FormatError("classify", (options.adapter / labels_file).string(),
                              std::to_string(classifier_->classes()) + " labels", std::to_string(labels_.size()));
    }
    if (options.merged) classifier_->merge();
  }

  void answer(const std::string& text, std::ostream& out) {
    const auto begin = Clock::now();
    const std::vector<TokenIds> ids = {tokenizer_.encode(text)};
    const lora::Matrix<float> logits = classifier_->logits(ids);
    milliseconds_.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    const Index label = predicted_class(logits, 0);
    const double confidence = 1 / static_cast<double>((logits.row(0).array() - logits(0, label)).exp().sum());
    out << labels_[static_cast<std::size_t>(label)] << '\t' << fixed_text(confidence, 3) << '\t' << text << std::endl;
    if (!out) throw lora::IoError("classify", "output", "room for an answer", "a failed write");
  }

  /// "3 texts, 1.9 ms each (median), merged"; empty of no texts.
  [[nodiscard]] std::string latency_text(bool merged) const {
    if (milliseconds_.empty()) return {};
    auto sorted = milliseconds_;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return std::to_string(sorted.size()) + (sorted.size() == 1 ? " text, " : " texts, ") + fixed_text(*middle, 2) +
           " ms each (median), " + (merged ? "merged" : "unmerged");
  }

 private:
  using Clock = std::chrono::steady_clock;

  Tokenizer tokenizer_;
  std::unique_ptr<TextClassifier> classifier_;
  std::vector<std::string> labels_;
  std::vector<double> milliseconds_;
};

/// Labels go to `out`, the latency to `log`. @throws lora::Error
inline void run_classify_command(const ClassifyOptions& options, std::istream& in, std::ostream& out,
                                 std::ostream& log) {
  LineClassifier classifier(options);
  for (const auto& text : options.texts) classifier.answer(text, out);
  std::string line;
  while (options.texts.empty() && std::getline(in, line)) {
    if (line.ends_with('\r')) line.pop_back();
    classifier.answer(line, out);
  }
  const std::string latency = classifier.latency_text(options.merged);
  if (!latency.empty()) log << latency << std::endl;
}

}  // namespace examples::sentence_encoder
