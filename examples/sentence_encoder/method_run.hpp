// SPDX-License-Identifier: MIT
// One training run of one method, and what a step of it costs. Implemented in three sources, one for each kind of
// layers, as these take long to compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/fine_tuning.hpp"
#include "sentence_encoder/head.hpp"
#include "sentence_encoder/method.hpp"
#include "sentence_encoder/task.hpp"

namespace examples::sentence_encoder {

/// What a run starts from. The references must outlive it.
struct RunRequest {
  Method method;
  FineTuningOptions options;  ///< its seed also starts the adapters
  const EncoderWeights<float>& weights;
  const Task& task;
  const Head& head;              ///< trained on the frozen encoder's embeddings
  std::filesystem::path folder;  ///< of checkpoints; empty for none
  bool resume = false;
  double save_seconds = 30;  ///< between checkpoints, beside those after every evaluation
  JobShare share = {};
  /// Called after every step, with the loss; may throw to stop.
  std::function<void(const TrainingState&, double)> on_step = {};
};

struct RunResult {
  Method method;
  double learning_rate = 0;
  std::uint64_t seed = 0;
  TrainingState state;
  Index steps_per_epoch = 0;
  Index trainable_parameters = 0;          ///< head included
  std::uintmax_t stored_bytes = 0;         ///< of the file that holds what was trained: the adapter's, or all weights
  std::vector<std::uint8_t> test_answers;  ///< at the best validation score
  double seconds = 0;

  [[nodiscard]] double validation_score() const noexcept { return state.best_score; }
};

/// Trains, writes what was trained into the folder (an adapter as a PEFT directory `adapter`), and answers the test
/// texts. @throws lora::Error; whatever on_step throws, after a checkpoint
[[nodiscard]] RunResult run_method(const RunRequest& request);

/// Trains a few steps, for the cost of one.
struct StepTimes {
  std::vector<double> seconds;     ///< of each step after the first ones, which allocate
  Index trainable_parameters = 0;  ///< head included
  std::size_t frozen_bytes = 0;    ///< of the linear layers' frozen weights
};
[[nodiscard]] StepTimes time_steps(const RunRequest& request, int steps);

template <class Layers>
[[nodiscard]] RunResult run_method_with(const RunRequest& request);
template <class Layers>
[[nodiscard]] StepTimes time_steps_with(const RunRequest& request, int steps);

}  // namespace examples::sentence_encoder
