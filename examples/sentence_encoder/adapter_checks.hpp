// SPDX-License-Identifier: MIT
// The chosen adapter as files: saved, loaded into a new model, merged, compared; and what it gets wrong.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/progress.hpp"
#include "common/softmax_loss.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "sentence_encoder/comparison.hpp"
#include "sentence_encoder/text_classifier.hpp"

namespace examples::sentence_encoder {

namespace detail {

/// Equal in every bit, so -0 differs from 0 and a NaN equals itself.
[[nodiscard]] inline bool same_bits(const lora::Matrix<float>& a, const lora::Matrix<float>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

[[nodiscard]] inline std::string scientific_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  return text;
}

[[nodiscard]] inline Check check_merged(const lora::Matrix<float>& unmerged, const lora::Matrix<float>& merged,
                                        double tolerance) {
  const double difference = (merged - unmerged).cwiseAbs().maxCoeff();
  return {"The merged model answers the same within rounding", difference <= tolerance,
          "largest difference of " + grouped_text(unmerged.size()) + " logits " + scientific_text(difference) +
              ", tolerance " + scientific_text(tolerance)};
}

/// Classes may only change where two logits are closer than what rounding moves them.
[[nodiscard]] inline Check check_classes(const lora::Matrix<float>& unmerged, const lora::Matrix<float>& merged,
                                         double tolerance) {
  Index different = 0;
  Index unexplained = 0;
  for (Index i = 0; i < unmerged.rows(); ++i) {
    const Index before = predicted_class(unmerged, i);
    const Index after = predicted_class(merged, i);
    if (before == after) continue;
    ++different;
    if (static_cast<double>(unmerged(i, before) - unmerged(i, after)) > 2 * tolerance) ++unexplained;
  }
  return {"The merged model predicts the same classes", unexplained == 0,
          grouped_text(unmerged.rows() - different) + " of " + grouped_text(unmerged.rows()) + " test texts" +
              (different > 0 ? "; the others are ties within the tolerance" : "")};
}

inline void find_mistakes(const Inputs& inputs, const lora::Matrix<float>& logits, Results& results) {
  constexpr std::size_t shown = 20;
  const Task& task = inputs.task;
  for (Index i = 0; i < logits.rows(); ++i) {
    const auto truth = task.test.labels[static_cast<std::size_t>(i)];
    const Index answer = predicted_class(logits, i);
    if (answer == static_cast<Index>(truth)) continue;
    const auto row = static_cast<std::size_t>(task.test.rows[static_cast<std::size_t>(i)]);
    results.mistakes.push_back({inputs.table.rows[row].text, task.classes[truth],
                                task.classes[static_cast<std::size_t>(answer)], softmax_of_answer(logits, i)});
  }
  std::stable_sort(results.mistakes.begin(), results.mistakes.end(),
                   [](const Mistake& a, const Mistake& b) { return a.confidence > b.confidence; });
  if (results.mistakes.size() > shown) results.mistakes.resize(shown);
}

/// An adapter over weights of fewer bits, loaded into a new model and, where that can be, merged and unmerged.
[[nodiscard]] inline Check check_format(const Inputs& inputs, const RunResult& run, const Adapter& adapter) {
  const WeightFormat format = run.method.weights;
  const auto classifier = make_text_classifier(inputs.weights, adapter, format);
  const auto& texts = inputs.task.test.texts;
  const lora::Matrix<float> unmerged = classifier->logits(texts);
  Check check{run.method.name() + ", loaded into a new model, predicts what the trained one did",
              predictions(unmerged) == run.test_answers, grouped_text(unmerged.rows()) + " test texts, "};
  if (!can_be_merged_into(format)) {
    check.evidence += "served unmerged: blocks cannot be merged into";
    return check;
  }
  classifier->merge();
  const auto merged = predictions(classifier->logits(texts));
  classifier->unmerge();
  check.claim += ", and again once merged and unmerged";
  check.passed = check.passed && same_bits(unmerged, classifier->logits(texts));
  const auto same = std::inner_product(merged.begin(), merged.end(), run.test_answers.begin(), Index{0}, std::plus{},
                                       std::equal_to{});
  check.evidence += grouped_text(same) + " answered the same while merged, rounded to the format";
  return check;
}

}  // namespace detail

/// Checks the adapters over weights of fewer bits; `runs` is the folder of all runs. @throws lora::Error
inline void check_formats(const Inputs& inputs, const std::filesystem::path& runs, Results& results) {
  for (const MethodResult& one : results.methods) {
    if (one.method.weights == WeightFormat::scalar) continue;
    const RunResult& run = one.best_run();
    const auto folder = runs / detail::run_folder_name(run.method, run.learning_rate, run.seed);
    results.checks.push_back(detail::check_format(inputs, run, lora::read_peft_directory<float>(folder / "adapter")));
  }
}

/// Puts the adapter of the best LoRA run into `folder`, loads it into a new model, and compares.
/// @throws lora::Error
inline void check_adapter(const Inputs& inputs, const std::filesystem::path& run_folder,
                          const std::filesystem::path& folder, Results& results) {
  constexpr std::size_t texts_for_tolerance = 64;
  Progress progress("Loading, merging and comparing the adapter", 4);
  const RunResult& run = results.adapter().best_run();
  const Adapter trained = lora::read_peft_directory<float>(run_folder / "adapter");
  lora::write_peft_directory(folder, trained, {.overwrite = true});
  write_labels(folder, results.classes);
  const auto classifier = make_text_classifier(inputs.weights, lora::read_peft_directory<float>(folder));
  const auto& texts = inputs.task.test.texts;
  const lora::Matrix<float> unmerged = classifier->logits(texts);
  progress.advance();
  const double tolerance =
      merge_tolerance(inputs.weights, trained, std::span(texts).first(std::min(texts.size(), texts_for_tolerance)));
  progress.advance();
  classifier->merge();
  const lora::Matrix<float> merged = classifier->logits(texts);
  progress.advance();
  classifier->unmerge();
  const lora::Matrix<float> again = classifier->logits(texts);
  progress.advance();

  results.checks.push_back({"The saved adapter, loaded into a new model, predicts what the trained one did",
                            predictions(unmerged) == run.test_answers,
                            grouped_text(unmerged.rows()) + " test texts; adapter_model.safetensors has " +
                                grouped_text(static_cast<long long>(run.stored_bytes)) + " bytes"});
  results.checks.push_back(detail::check_merged(unmerged, merged, tolerance));
  results.checks.push_back(detail::check_classes(unmerged, merged, tolerance));
  results.checks.push_back({"The unmerged model answers as before, bit for bit", detail::same_bits(unmerged, again),
                            grouped_text(unmerged.size()) + " logits compared"});
  detail::find_mistakes(inputs, unmerged, results);
}

}  // namespace examples::sentence_encoder
