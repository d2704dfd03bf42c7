// SPDX-License-Identifier: MIT
// Training every method at every learning rate, and choosing the rate on validation images.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/interrupt.hpp"
#include "common/parallel_runs.hpp"
#include "common/progress.hpp"
#include "common/trainer.hpp"
#include "fashion_mnist/method.hpp"

namespace examples {

/// One training run.
struct Run {
  double learning_rate = 0;
  double validation_accuracy = 0;
  std::vector<LossPoint> curve;
  std::unique_ptr<AnyNetwork> network;
};

/// All runs of a method, one per learning rate.
struct Candidates {
  Method method;
  std::vector<Run> runs;
  std::size_t best = 0;  ///< of the highest validation accuracy, the first of equals

  [[nodiscard]] const Run& best_run() const { return runs.at(best); }
};

namespace detail {

inline Run train_once(const DenseNetwork& base, const Method& method, const ImageSet& train_set,
                      const ImageSet& validation, const TrainingOptions& options, Progress& progress) {
  Run run;
  run.learning_rate = options.learning_rate;
  run.network = std::make_unique<AnyNetwork>(prepare(base, method, options.seed));
  std::visit(
      [&](auto& network) {
        run.curve = train(network, train_set, options, [&] {
          progress.advance();
          throw_if_interrupted();
        });
        run.validation_accuracy = accuracy(logits_of(network, validation), validation.labels);
      },
      *run.network);
  return run;
}

inline void choose_best(Candidates& candidates) {
  for (std::size_t i = 1; i < candidates.runs.size(); ++i) {
    if (candidates.runs[i].validation_accuracy > candidates.best_run().validation_accuracy) candidates.best = i;
  }
}

}  // namespace detail

/// Trains from `base` with every method and rate, `jobs` runs at a time; all with the same images in the same order.
/// `options.learning_rate` is replaced by each of `rates`. The result does not depend on `jobs`.
/// @throws Interrupted
[[nodiscard]] inline std::vector<Candidates> train_all(const DenseNetwork& base, const ImageSet& train_set,
                                                       const ImageSet& validation, const TrainingOptions& options,
                                                       const std::vector<double>& rates, std::size_t jobs) {
  std::vector<Candidates> all;
  for (const Method& method : methods) {
    all.push_back({method, {}, 0});
    all.back().runs.resize(rates.size());
  }
  const std::size_t count = methods.size() * rates.size();
  Progress progress(
      "Adapting: " + std::to_string(methods.size()) + " methods x " + std::to_string(rates.size()) + " learning rates",
      static_cast<Index>(count) * step_count(train_set, options));
  parallel_runs(count, jobs, [&](std::size_t i) {
    const std::size_t m = methods.size() - 1 - i / rates.size();  // the longest runs first
    const std::size_t rate = i % rates.size();
    TrainingOptions own = options;
    own.learning_rate = rates[rate];
    all[m].runs[rate] = detail::train_once(base, methods[m], train_set, validation, own, progress);
  });
  for (auto& candidates : all) detail::choose_best(candidates);
  return all;
}

}  // namespace examples
