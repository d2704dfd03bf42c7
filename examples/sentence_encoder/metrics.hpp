// SPDX-License-Identifier: MIT
// What a classifier's answers are worth: confusion matrix, accuracy, F1 of each class and their mean.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// Counts of (true class, predicted class).
class ConfusionMatrix {
 public:
  explicit ConfusionMatrix(Index classes) : counts_(lora::Matrix<double>::Zero(classes, classes)) {}

  /// @throws lora::ShapeError for a class that there is not
  void add(Index truth, Index predicted) {
    for (const Index label : {truth, predicted}) {
      if (label < 0 || label >= classes()) {
        throw lora::ShapeError("ConfusionMatrix::add", "class", "one below " + std::to_string(classes()),
                               std::to_string(label));
      }
    }
    counts_(truth, predicted) += 1;
  }

  [[nodiscard]] Index classes() const noexcept { return counts_.rows(); }
  [[nodiscard]] Index count(Index truth, Index predicted) const {
    return static_cast<Index>(counts_(truth, predicted));
  }
  [[nodiscard]] Index total() const { return static_cast<Index>(counts_.sum()); }
  /// Rows whose true class this is.
  [[nodiscard]] Index support(Index label) const { return static_cast<Index>(counts_.row(label).sum()); }

  /// Share of right answers, in [0, 1]; 0 of nothing.
  [[nodiscard]] double accuracy() const { return ratio(counts_.trace(), counts_.sum()); }

  /// Of the answers that say this class, the share that is right; 0 where there is none.
  [[nodiscard]] double precision(Index label) const { return ratio(counts_(label, label), counts_.col(label).sum()); }
  /// Of the rows of this class, the share that is found; 0 where there is none.
  [[nodiscard]] double recall(Index label) const { return ratio(counts_(label, label), counts_.row(label).sum()); }

  /// 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; 0 for a class never seen nor answered.
  [[nodiscard]] double f1(Index label) const {
    return ratio(2 * counts_(label, label), counts_.row(label).sum() + counts_.col(label).sum());
  }

  /// Mean of f1 over the classes that occur, in truth or answers. Those that do not say nothing of the classifier, and
  /// are left out, as scikit-learn's f1_score(average="macro") leaves them out; 0 of nothing.
  [[nodiscard]] double macro_f1() const {
    double sum = 0;
    double present = 0;
    for (Index label = 0; label < classes(); ++label) {
      if (counts_.row(label).sum() + counts_.col(label).sum() == 0) continue;
      sum += f1(label);
      present += 1;
    }
    return ratio(sum, present);
  }

 private:
  static double ratio(double part, double whole) { return whole == 0 ? 0 : part / whole; }

  lora::Matrix<double> counts_;
};

/// @throws lora::ShapeError unless both have one size, or for a class not below `classes`
[[nodiscard]] inline ConfusionMatrix confusion(std::span<const std::uint8_t> truth,
                                               std::span<const std::uint8_t> answers, Index classes) {
  if (truth.size() != answers.size()) {
    throw lora::ShapeError("confusion", "answers", std::to_string(truth.size()), std::to_string(answers.size()));
  }
  ConfusionMatrix matrix(classes);
  for (std::size_t i = 0; i < truth.size(); ++i) matrix.add(truth[i], answers[i]);
  return matrix;
}

/// The most frequent label, the smallest of equals: what to answer without looking.
[[nodiscard]] inline std::uint8_t majority_class(std::span<const std::uint8_t> labels) {
  std::vector<Index> counts(256, 0);
  std::uint8_t best = 0;
  for (const std::uint8_t label : labels) ++counts[label];
  for (std::size_t label = 0; label < counts.size(); ++label) {
    if (counts[label] > counts[best]) best = static_cast<std::uint8_t>(label);
  }
  return best;
}

struct MeanAndSpread {
  double mean = 0;
  double spread = 0;  ///< standard deviation of the sample; 0 of one
};

[[nodiscard]] inline MeanAndSpread mean_and_spread(std::span<const double> values) {
  MeanAndSpread result;
  if (values.empty()) return result;
  for (const double value : values) result.mean += value;
  result.mean /= static_cast<double>(values.size());
  if (values.size() < 2) return result;
  double squares = 0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  result.spread = std::sqrt(squares / static_cast<double>(values.size() - 1));
  return result;
}

}  // namespace examples::sentence_encoder
