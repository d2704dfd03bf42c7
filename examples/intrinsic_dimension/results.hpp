// SPDX-License-Identifier: MIT
// What a run found: accuracies over d, and where d90 lies.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "common/text_table.hpp"
#include "intrinsic_dimension/options.hpp"
#include "intrinsic_dimension/sweep.hpp"

namespace examples::intrinsic_dimension {

/// Share of full fine-tuning's gain that defines d90.
inline constexpr double wanted_share = 0.9;

struct Results {
  Scale scale;
  TrainingOptions training;
  Index parameters = 0;        ///< D
  double accuracy_before = 0;  ///< of the pretrained network, on test images as shipped
  double frozen_accuracy = 0;  ///< and on changed ones
  MethodRuns full;
  std::vector<MethodRuns> subspaces;  ///< by ascending d
  std::vector<MethodRuns> lora;
  double seconds = 0;

  [[nodiscard]] double full_accuracy() const { return full.best().test_accuracy; }

  /// Whether full fine-tuning is better than nothing; if not, there is no d90.
  [[nodiscard]] bool full_gains() const { return full_accuracy() > frozen_accuracy; }

  /// frozen + 90 % of (full - frozen).
  [[nodiscard]] double threshold() const {
    return frozen_accuracy + wanted_share * (full_accuracy() - frozen_accuracy);
  }
  /// (accuracy - frozen) / (full - frozen), where that is a gain.
  [[nodiscard]] std::optional<double> share_of_gain(double accuracy) const {
    if (!full_gains()) return std::nullopt;
    return (accuracy - frozen_accuracy) / (full_accuracy() - frozen_accuracy);
  }
  /// The smallest d of the sweep at or above the threshold, as a position in `subspaces`.
  [[nodiscard]] std::optional<std::size_t> first_sufficient() const {
    if (!full_gains()) return std::nullopt;
    for (std::size_t i = 0; i < subspaces.size(); ++i) {
      if (subspaces[i].best().test_accuracy >= threshold()) return i;
    }
    return std::nullopt;
  }
};

/// Where d90 lies, no more precisely than the sweep tells.
[[nodiscard]] inline std::string d90_text(const Results& results) {
  if (!results.full_gains()) return "none";
  const auto found = results.first_sufficient();
  const auto d = [&](std::size_t i) { return grouped_text(results.subspaces[i].method.size); };
  if (!found) return "above " + d(results.subspaces.size() - 1);
  return *found == 0 ? "at most " + d(0) : "between " + d(*found - 1) + " and " + d(*found);
}

[[nodiscard]] inline std::string verdict(const Results& results) {
  if (!results.full_gains()) {
    return "Full fine-tuning gained nothing over the frozen network, so there is no d90.";
  }
  std::string text = "d90, the smallest dimension with " + fixed_text(wanted_share * 100, 0) +
                     " % of full fine-tuning's gain (" + percent_text(results.threshold()) + " accuracy), is " +
                     d90_text(results) + " of D = " + grouped_text(results.parameters) + " parameters.";
  if (const auto found = results.first_sufficient()) {
    for (std::size_t i = *found + 1; i < results.subspaces.size(); ++i) {
      if (results.subspaces[i].best().test_accuracy >= results.threshold()) continue;
      text += " At d = " + grouped_text(results.subspaces[i].method.size) +
              " accuracy is below that again, so the value is uncertain.";
    }
  }
  return text;
}

/// "93.1 %", or "-" where there is no gain to have a share of.
[[nodiscard]] inline std::string gain_text(const Results& results, double accuracy) {
  const auto share = results.share_of_gain(accuracy);
  return share ? fixed_text(*share * 100, 1) + " %" : "-";
}

[[nodiscard]] inline Table results_table(const Results& results) {
  Table table{{"what trains", "parameters", "of D", "test accuracy", "of the gain", "learning rate"}, {}, {}};
  table.rows.push_back({"nothing (frozen)", "0", "0 %", percent_text(results.frozen_accuracy),
                        gain_text(results, results.frozen_accuracy), ""});
  const auto add = [&](const MethodRuns& runs) {
    const Run& best = runs.best();
    const double share = static_cast<double>(runs.trainable) / static_cast<double>(results.parameters);
    table.rows.push_back({runs.method.name(), grouped_text(runs.trainable), fixed_text(share * 100, 3) + " %",
                          percent_text(best.test_accuracy), gain_text(results, best.test_accuracy),
                          fixed_text(best.learning_rate, 4)});
  };
  for (const auto& runs : results.subspaces) add(runs);
  if (const auto found = results.first_sufficient()) table.emphasized.push_back(*found + 1);
  for (const auto& runs : results.lora) add(runs);
  add(results.full);
  return table;
}

/// Every run's accuracy on the validation images, the chosen one's in brackets.
[[nodiscard]] inline Table selection_table(const Results& results) {
  Table table{{"what trains", "validation accuracy by learning rate"}, {}, {}};
  const auto add = [&](const MethodRuns& runs) {
    std::string text;
    for (const Run& run : runs.runs) {
      std::string one = fixed_text(run.learning_rate, 4) + ": " + percent_text(run.validation_accuracy);
      if (&run == &runs.best()) one = "[" + one + "]";
      text.append(text.empty() ? "" : "  ").append(one);
    }
    table.rows.push_back({runs.method.name(), text});
  };
  for (const auto& runs : results.subspaces) add(runs);
  for (const auto& runs : results.lora) add(runs);
  add(results.full);
  return table;
}

/// LoRA's count of parameters at every usual rank, beside the d it compares with.
[[nodiscard]] inline Table lora_count_table(const DenseNetwork& network) {
  Table table{{"LoRA's rank r", "parameters, the sum of r (d + k) over the layers"}, {}, {}};
  for (const Index rank : {1, 2, 4, 8, 16}) {
    table.rows.push_back({std::to_string(rank), grouped_text(lora_parameter_count(network, rank))});
  }
  return table;
}

}  // namespace examples::intrinsic_dimension
