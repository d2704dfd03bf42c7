// SPDX-License-Identifier: MIT
// All that a comparison finds out, and the tables made of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/text_table.hpp"
#include "sentence_encoder/labelled_texts.hpp"
#include "sentence_encoder/method_run.hpp"
#include "sentence_encoder/metrics.hpp"
#include "sentence_encoder/options.hpp"
#include "sentence_encoder/probe.hpp"
#include "sentence_encoder/step_cost.hpp"
#include "sentence_encoder/traffic.hpp"

namespace examples::sentence_encoder {

/// Macro-F1 and accuracy on the test texts.
struct Scores {
  double macro_f1 = 0;
  double accuracy = 0;
};

/// A learning rate with the seeds it was tried with: the first alone, or all.
struct TriedRate {
  std::vector<RunResult> seeds;

  [[nodiscard]] double learning_rate() const { return seeds.at(0).learning_rate; }
  /// Mean over the seeds.
  [[nodiscard]] double validation_score() const {
    double sum = 0;
    for (const auto& run : seeds) sum += run.validation_score();
    return sum / static_cast<double>(seeds.size());
  }
};

/// A method at the learning rate that validation chose.
struct MethodResult {
  Method method;
  std::vector<TriedRate> tried;
  std::size_t chosen = 0;      ///< the highest validation score, the first of equals
  std::vector<Scores> scores;  ///< of seeds()
  StepCost cost;

  /// At the chosen rate, one a seed.
  [[nodiscard]] const std::vector<RunResult>& seeds() const { return tried.at(chosen).seeds; }
  [[nodiscard]] const RunResult& best_run() const { return seeds().at(0); }
  [[nodiscard]] double validation_score() const { return tried.at(chosen).validation_score(); }
};

struct Check {
  std::string claim;
  bool passed = false;
  std::string evidence;
};

/// A test text that the best adapter got wrong.
struct Mistake {
  std::string text;
  std::string truth;
  std::string answer;
  double confidence = 0;  ///< softmax of the answer
};

struct Results {
  Scale scale;
  std::vector<std::string> classes;
  std::uint64_t table_hash = 0;
  Index train_texts = 0;
  Index validation_texts = 0;
  Index test_texts = 0;
  std::vector<Index> class_counts;  ///< of the whole table
  Scores majority;
  std::vector<ProbeRun> probes;
  std::size_t chosen_probe = 0;
  Scores frozen;
  StepCost frozen_cost;
  std::vector<MethodResult> methods;  ///< in the scale's order, full fine-tuning last
  std::size_t best_adapter = 0;       ///< of LoRA's ranks, by validation
  ConfusionMatrix confusion{0};       ///< of the best adapter
  Scores without_own_name;            ///< of the best adapter, on texts that do not say their label's name
  double share_with_own_name = 0;
  std::vector<Mistake> mistakes;
  std::vector<Check> checks;
  int ranks = 1;
  std::vector<ReductionTime> reductions;  ///< between the ranks of the job; none when there is one
  double seconds = 0;

  [[nodiscard]] const MethodResult& full() const { return methods.back(); }
  [[nodiscard]] const MethodResult& adapter() const { return methods.at(best_adapter); }
};

[[nodiscard]] inline Scores scores_of(const ConfusionMatrix& matrix) { return {matrix.macro_f1(), matrix.accuracy()}; }

[[nodiscard]] inline MeanAndSpread macro_f1_over_seeds(const MethodResult& result) {
  std::vector<double> values;
  for (const auto& scores : result.scores) values.push_back(scores.macro_f1);
  return mean_and_spread(values);
}
[[nodiscard]] inline MeanAndSpread accuracy_over_seeds(const MethodResult& result) {
  std::vector<double> values;
  for (const auto& scores : result.scores) values.push_back(scores.accuracy);
  return mean_and_spread(values);
}

/// "56.31", or "56.31 +- 0.40" of several seeds; in points.
[[nodiscard]] inline std::string points_text(const MeanAndSpread& value, std::size_t seeds) {
  const std::string mean = fixed_text(value.mean * 100, 2);
  return seeds > 1 ? mean + " +- " + fixed_text(value.spread * 100, 2) : mean;
}

[[nodiscard]] inline std::string megabytes_text(double bytes) { return fixed_text(bytes * 1e-6, bytes < 1e7 ? 2 : 0); }

/// Megabytes of the frozen kernels; full fine-tuning has none.
[[nodiscard]] inline std::string frozen_text(const MethodResult& one) {
  return one.method.full() ? "-" : fixed_text(static_cast<double>(one.cost.frozen_bytes) * 1e-6, 2);
}

[[nodiscard]] inline Table main_table(const Results& results) {
  Table table{
      {"method", "macro-F1, %", "accuracy, %", "trainable", "frozen, MB", "step, ms", "peak memory, MB", "stored, MB"},
      {}};
  const auto points = [](double share) { return fixed_text(share * 100, 2); };
  table.rows.push_back({"majority class", points(results.majority.macro_f1), points(results.majority.accuracy), "0",
                        "-", "-", "-", "-"});
  const StepCost& frozen = results.frozen_cost;
  const double head_bytes = 4.0 * static_cast<double>(frozen.trainable_parameters);
  table.rows.push_back({"frozen encoder, linear head", points(results.frozen.macro_f1), points(results.frozen.accuracy),
                        grouped_text(frozen.trainable_parameters), "-", fixed_text(frozen.median_seconds * 1e3, 2),
                        megabytes_text(static_cast<double>(frozen.peak_bytes)), megabytes_text(head_bytes)});
  for (std::size_t m = 0; m < results.methods.size(); ++m) {
    const MethodResult& one = results.methods[m];
    if (m == results.best_adapter) table.emphasized.push_back(table.rows.size());
    table.rows.push_back({one.method.name(), points_text(macro_f1_over_seeds(one), one.seeds().size()),
                          points_text(accuracy_over_seeds(one), one.seeds().size()),
                          grouped_text(one.cost.trainable_parameters), frozen_text(one),
                          fixed_text(one.cost.median_seconds * 1e3, 1),
                          megabytes_text(static_cast<double>(one.cost.peak_bytes)),
                          megabytes_text(static_cast<double>(one.best_run().stored_bytes))});
  }
  return table;
}

/// LoRA at one rank over every format of frozen weights: float alone unless others were asked for.
[[nodiscard]] inline std::vector<const MethodResult*> lora_by_format(const Results& results) {
  std::vector<const MethodResult*> all;
  for (const auto& one : results.methods) {
    if (one.method.kind == MethodKind::lora && one.method.rank == rank_of_formats) all.push_back(&one);
  }
  return all;
}

/// Quality, bytes and time of each format, and how adapters over it are served.
[[nodiscard]] inline Table format_table(const Results& results) {
  Table table{{"frozen weights", "macro-F1, %", "frozen, MB", "step, ms", "served"}, {}};
  for (const MethodResult* one : lora_by_format(results)) {
    table.rows.push_back({std::string(name_of(one->method.weights)),
                          points_text(macro_f1_over_seeds(*one), one->seeds().size()), frozen_text(*one),
                          fixed_text(one->cost.median_seconds * 1e3, 1),
                          can_be_merged_into(one->method.weights) ? "merged or not" : "unmerged"});
  }
  return table;
}

/// Validation macro-F1 at every rate, the mean where it was tried with several seeds; the chosen one in brackets.
[[nodiscard]] inline Table selection_table(const Results& results) {
  Table table{{"method", "validation macro-F1, %, at each learning rate; the chosen one in brackets"}, {}, {}, true};
  struct Rate {
    double learning_rate = 0;
    double score = 0;
    std::size_t seeds = 1;
  };
  const auto line = [](const std::vector<Rate>& tried, std::size_t chosen) {
    std::string text;
    for (std::size_t i = 0; i < tried.size(); ++i) {
      std::string entry =
          fixed_text(tried[i].score * 100, 2) + " at " + lora::detail::number_text(tried[i].learning_rate);
      if (tried[i].seeds > 1) entry += " (" + std::to_string(tried[i].seeds) + " seeds)";
      text.append(i > 0 ? ",  " : "").append(i == chosen ? "[" + entry + "]" : entry);
    }
    return text;
  };
  std::vector<Rate> probes;
  for (const auto& probe : results.probes) probes.push_back({probe.learning_rate, probe.state.best_score, 1});
  table.rows.push_back({"frozen encoder, linear head", line(probes, results.chosen_probe)});
  for (const auto& one : results.methods) {
    std::vector<Rate> tried;
    for (const auto& rate : one.tried) {
      tried.push_back({rate.learning_rate(), rate.validation_score(), rate.seeds.size()});
    }
    table.rows.push_back({one.method.name(), line(tried, one.chosen)});
  }
  return table;
}

/// The gap to full fine-tuning that LoRA is asked to stay within, in points of macro-F1.
inline constexpr double wanted_gap_in_points = 1.0;

[[nodiscard]] inline double gap_in_points(const Results& results) {
  return (macro_f1_over_seeds(results.full()).mean - macro_f1_over_seeds(results.adapter()).mean) * 100;
}
[[nodiscard]] inline double gain_in_points(const Results& results) {
  return (macro_f1_over_seeds(results.adapter()).mean - results.frozen.macro_f1) * 100;
}

/// "0.90 points above", "0.90 points BELOW", or "level with" where as many digits show no difference.
[[nodiscard]] inline std::string compared_text(double difference, const std::string& points, const std::string& below) {
  const std::string digits = fixed_text(std::abs(difference), 2);
  if (digits == fixed_text(0, 2)) return "level with";
  return digits + " " + points + " " + (difference > 0 ? "above" : below);
}

[[nodiscard]] inline std::string verdict(const Results& results) {
  const double gap = gap_in_points(results);
  std::string text = results.adapter().method.name() + " (the best rank on validation) is ";
  text += compared_text(-gap, "points of macro-F1", "below") + " full fine-tuning on the test texts, ";
  text += gap <= wanted_gap_in_points ? "within" : "NOT within";
  text += " the 1 point asked for, and " + compared_text(gain_in_points(results), "points", "BELOW");
  text += " the frozen encoder.";
  if (results.scale.name == "quick") text += " A quick run is too short to tell.";
  return text;
}

[[nodiscard]] inline Table check_table(const Results& results) {
  Table table{{"claim", "holds", "evidence"}, {}, {}, true};
  for (const auto& check : results.checks) {
    table.rows.push_back({check.claim, check.passed ? "yes" : "NO", check.evidence});
  }
  return table;
}

/// Rows are true classes, columns answers.
[[nodiscard]] inline Table confusion_table(const Results& results) {
  Table table{{"true class", "F1, %"}, {}};
  for (const auto& name : results.classes) table.header.push_back(name);
  for (Index truth = 0; truth < results.confusion.classes(); ++truth) {
    auto& row = table.rows.emplace_back();
    row.push_back(results.classes[static_cast<std::size_t>(truth)]);
    row.push_back(fixed_text(results.confusion.f1(truth) * 100, 1));
    for (Index answer = 0; answer < results.confusion.classes(); ++answer) {
      const Index count = results.confusion.count(truth, answer);
      row.push_back(count == 0 ? "\u00b7" : std::to_string(count));
    }
  }
  return table;
}

}  // namespace examples::sentence_encoder
