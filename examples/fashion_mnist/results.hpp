// SPDX-License-Identifier: MIT
// All that a run of fashion_mnist finds out, and the tables made of it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/text_table.hpp"
#include "common/trainer.hpp"
#include "fashion_mnist/checks.hpp"
#include "fashion_mnist/measurement.hpp"
#include "fashion_mnist/options.hpp"
#include "fashion_mnist/selection.hpp"

namespace examples {

struct Results {
  Scale scale;
  TrainingOptions training;    ///< what all methods share; its learning rate is that of pretraining
  double accuracy_before = 0;  ///< base network on test images as shipped
  double frozen_accuracy = 0;  ///< base network on changed test images
  MemoryUse frozen_memory;
  std::vector<Candidates> candidates;   ///< in the order of `methods`
  std::vector<double> test_accuracies;  ///< of each method's best run
  std::vector<StepCost> costs;
  std::vector<Check> checks;
  double seconds = 0;

  [[nodiscard]] std::size_t full_method() const noexcept { return methods.size() - 1; }
  [[nodiscard]] double full_accuracy() const { return test_accuracies.at(full_method()); }
  /// How far the shown method stays behind full fine-tuning, in points (hundredths); negative when ahead.
  [[nodiscard]] double gap_in_points() const { return (full_accuracy() - test_accuracies.at(shown_method)) * 100; }
};

/// The gap that LoRA at rank 8 is asked to stay within.
inline constexpr double wanted_gap_in_points = 2.0;

[[nodiscard]] inline std::string verdict(const Results& results) {
  const double gap = results.gap_in_points();
  const std::string where = methods.at(shown_method).name() + ", is " + fixed_text(std::abs(gap), 2) + " points " +
                            (gap > 0 ? "below" : "above") + " full fine-tuning on the test set";
  return where +
         (gap <= wanted_gap_in_points ? ", within the 2 points asked for." : ", NOT within the 2 points asked for.");
}

[[nodiscard]] inline std::string bytes_text(std::size_t bytes) { return grouped_text(static_cast<long long>(bytes)); }

[[nodiscard]] inline Table main_table(const Results& results) {
  Table table{{"method", "trainable parameters", "gradients, bytes", "optimiser state, bytes", "step, ms (median)",
               "test accuracy"},
              {{"frozen", "0", "0", "0", "-", percent_text(results.frozen_accuracy)}},
              {shown_method + 1}};
  for (std::size_t m = 0; m < methods.size(); ++m) {
    const StepCost& cost = results.costs[m];
    table.rows.push_back({methods[m].name(), grouped_text(cost.trainable_parameters), bytes_text(cost.memory.gradients),
                          bytes_text(cost.memory.optimizer_state), fixed_text(cost.median_seconds * 1e3, 2),
                          percent_text(results.test_accuracies[m])});
  }
  return table;
}

/// Validation accuracy of every run; the chosen one in brackets.
[[nodiscard]] inline Table selection_table(const Results& results) {
  Table table{{"validation accuracy at a learning rate of"}, {}};
  for (const double rate : results.scale.learning_rates) table.header.push_back(fixed_text(rate, 3));
  for (const auto& candidates : results.candidates) {
    table.rows.push_back({candidates.method.name()});
    for (std::size_t i = 0; i < candidates.runs.size(); ++i) {
      const std::string text = percent_text(candidates.runs[i].validation_accuracy);
      table.rows.back().push_back(i == candidates.best ? "[" + text + "]" : text);
    }
  }
  return table;
}

[[nodiscard]] inline Table check_table(const Results& results) {
  Table table{{"claim", "holds", "evidence"}, {}, {}, true};
  for (const auto& check : results.checks) {
    table.rows.push_back({check.claim, check.passed ? "yes" : "NO", check.evidence});
  }
  return table;
}

[[nodiscard]] inline bool all_passed(const std::vector<Check>& checks) {
  return std::all_of(checks.begin(), checks.end(), [](const Check& check) { return check.passed; });
}

}  // namespace examples
