// SPDX-License-Identifier: MIT
// The implementation of method_run.hpp for one kind of layers; included by the source that instantiates it.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <span>

#include "lora/io/peft_directory_writer.hpp"
#include "sentence_encoder/classifier.hpp"
#include "sentence_encoder/method_run.hpp"

namespace examples::sentence_encoder {

namespace detail {

/// A classifier ready to be trained by a method: adapters in place, and the head it starts with.
template <class Layers>
[[nodiscard]] std::unique_ptr<Classifier<Layers>> start_classifier(const RunRequest& request) {
  Layers layers;
  if constexpr (Classifier<Layers>::adapted) layers.format = request.method.weights;
  auto classifier = std::make_unique<Classifier<Layers>>(request.weights, request.task.class_count(), layers);
  if constexpr (Classifier<Layers>::adapted) {
    classifier->model().inject(adapter_config(request.method), request.options.seed);
  }
  classifier->head().weight.value = request.head.weight.value;
  classifier->head().bias.value = request.head.bias.value;
  return classifier;
}

[[nodiscard]] inline std::string run_name(const RunRequest& request) {
  return request.method.key() + ", table " + std::to_string(request.task.table_hash) + ", " +
         std::to_string(request.task.train.count()) + " and " + std::to_string(request.task.validation.count()) +
         " texts, tokens " + std::to_string(request.task.token_hash()) + ", model " +
         std::to_string(request.weights.hash) + ", ranks " + std::to_string(request.share.ranks);
}

/// Calls on_step. What it throws stops the run after a checkpoint.
template <class Training>
void report_step(Training& training, const RunRequest& request) {
  if (!request.on_step) return;
  try {
    request.on_step(training.state(), training.last_loss());
  } catch (...) {
    training.save();
    throw;
  }
}

/// Runs to the end, saving now and then, and when on_step stops it. A step that throws may have changed half of the
/// state, which is not saved.
template <class Training>
void train_to_end(Training& training, const RunRequest& request) {
  using Clock = std::chrono::steady_clock;
  auto saved = Clock::now();
  while (!training.finished()) {
    training.step();
    report_step(training, request);
    if (std::chrono::duration<double>(Clock::now() - saved).count() < request.save_seconds) continue;
    training.save();
    saved = Clock::now();
  }
}

/// Writes what was trained, and returns the size of the file.
template <class Layers>
[[nodiscard]] std::uintmax_t store(Classifier<Layers>& classifier, const RunRequest& request) {
  if constexpr (Classifier<Layers>::adapted) {
    const auto folder = request.folder / "adapter";
    lora::write_peft_directory(folder, file_config(request.method), classifier.model().weights(), {.overwrite = true});
    return std::filesystem::file_size(folder / lora::peft_tensors_file);
  } else {
    return std::filesystem::file_size(request.folder / "best.safetensors");
  }
}

[[nodiscard]] inline Index parameter_count(std::span<const lora::Parameter<float>> parameters) {
  Index count = 0;
  for (const auto& parameter : parameters) count += parameter.size();
  return count;
}

}  // namespace detail

template <class Layers>
RunResult run_method_with(const RunRequest& request) {
  const auto begin = std::chrono::steady_clock::now();
  const auto classifier = detail::start_classifier<Layers>(request);
  ClassifierOnTask<Layers> on_task(*classifier, request.task);
  FineTuning<ClassifierOnTask<Layers>> training(on_task, request.task.train.count(), request.options,
                                                detail::run_name(request), request.folder, request.share);
  if (request.resume) training.resume();
  detail::train_to_end(training, request);
  training.restore_best();
  RunResult result;
  result.method = request.method;
  result.learning_rate = request.options.learning_rate;
  result.seed = request.options.seed;
  result.state = training.state();
  result.steps_per_epoch = training.steps_per_epoch();
  result.trainable_parameters = detail::parameter_count(classifier->parameters());
  if (!request.folder.empty() && request.share.rank == 0) result.stored_bytes = detail::store(*classifier, request);
  result.test_answers = on_task.answers(request.task.test);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

template <class Layers>
StepTimes time_steps_with(const RunRequest& request, int steps) {
  using Clock = std::chrono::steady_clock;
  constexpr int uncounted = 3;
  const auto classifier = detail::start_classifier<Layers>(request);
  ClassifierOnTask<Layers> on_task(*classifier, request.task);
  auto options = request.options;
  options.epochs = 1000;
  options.evaluations_per_epoch = 0;
  FineTuning<ClassifierOnTask<Layers>> training(on_task, request.task.train.count(), options, "timing", {});
  StepTimes times;
  times.trainable_parameters = detail::parameter_count(classifier->parameters());
  if constexpr (Classifier<Layers>::adapted) times.frozen_bytes = classifier->encoder().frozen_bytes();
  for (int step = 0; step < uncounted + steps; ++step) {
    const auto begin = Clock::now();
    training.step();
    if (step >= uncounted) times.seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return times;
}

}  // namespace examples::sentence_encoder
