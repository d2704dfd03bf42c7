// SPDX-License-Identifier: MIT
// The frozen encoder with a trained head: embeddings are computed once, then the head alone learns.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/fine_tuning.hpp"
#include "sentence_encoder/head_on_embeddings.hpp"

namespace examples::sentence_encoder {

/// Embeddings of a task's texts, one row each.
struct FrozenEmbeddings {
  lora::Matrix<float> train;
  lora::Matrix<float> validation;
  lora::Matrix<float> test;
};

/// On up to `workers` threads; implemented in layers_adapted.cpp.
[[nodiscard]] FrozenEmbeddings embed_task(const EncoderWeights<float>& weights, const Task& task, std::size_t workers);

/// A head trained at one rate.
struct ProbeRun {
  double learning_rate = 0;
  Head head;
  TrainingState state;
  std::vector<std::uint8_t> test_answers;
};

inline constexpr std::array<double, 3> probe_learning_rates = {1e-3, 3e-3, 1e-2};

[[nodiscard]] inline FineTuningOptions probe_options(double learning_rate, std::uint64_t seed) {
  FineTuningOptions options;
  options.epochs = 30;
  options.batch_size = 64;
  options.learning_rate = learning_rate;
  options.evaluations_per_epoch = 1;
  options.patience = 6;
  options.seed = seed;
  return options;
}

[[nodiscard]] inline ProbeRun train_probe(const Task& task, const FrozenEmbeddings& embeddings,
                                          const FineTuningOptions& options) {
  ProbeRun run{options.learning_rate, Head(task.class_count(), embeddings.train.cols()), {}, {}};
  HeadOnEmbeddings on_task(run.head, embeddings.train, embeddings.validation, task);
  FineTuning<HeadOnEmbeddings> training(on_task, task.train.count(), options, "head", {});
  while (!training.finished()) training.step();
  training.restore_best();
  run.state = training.state();
  run.test_answers = on_task.answers(embeddings.test);
  return run;
}

/// At every rate; the first of the best on validation is the answer.
[[nodiscard]] inline std::vector<ProbeRun> train_probes(const Task& task, const FrozenEmbeddings& embeddings,
                                                        std::uint64_t seed) {
  std::vector<ProbeRun> runs;
  for (const double rate : probe_learning_rates) {
    runs.push_back(train_probe(task, embeddings, probe_options(rate, seed)));
  }
  return runs;
}

}  // namespace examples::sentence_encoder
