// SPDX-License-Identifier: MIT
// What a training step of each method takes: time and memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "common/interrupt.hpp"
#include "common/progress.hpp"
#include "common/trainer.hpp"
#include "fashion_mnist/method.hpp"

namespace examples {

struct StepCost {
  Index trainable_parameters = 0;
  double median_seconds = 0;
  MemoryUse memory;
};

namespace detail {

/// A network with its trainer and the time each of its steps took.
template <class Network>
struct TimedTraining {
  explicit TimedTraining(Network source) : network(std::move(source)), trainer(network, lora::AdamWOptions{}) {}
  TimedTraining(const TimedTraining&) = delete;
  TimedTraining& operator=(const TimedTraining&) = delete;

  void step(const Batch& batch) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    trainer.step(batch, 1e-3);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }

  [[nodiscard]] StepCost cost() {
    const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    return {trainer.parameter_count(), *middle, trainer.memory()};
  }

  Network network;
  Trainer<typename Network::Layer> trainer;
  std::vector<double> seconds;
};

using AnyTraining =
    std::variant<std::unique_ptr<TimedTraining<DenseNetwork>>, std::unique_ptr<TimedTraining<LoraNetwork>>>;

[[nodiscard]] inline AnyTraining make_training(const DenseNetwork& base, const Method& method, std::uint64_t seed) {
  return std::visit(
      [](auto&& network) -> AnyTraining {
        using Network = std::decay_t<decltype(network)>;
        return std::make_unique<TimedTraining<Network>>(std::forward<decltype(network)>(network));
      },
      prepare(base, method, seed));
}

}  // namespace detail

/// Steps of one method before the next takes its turn: caches are as in training for all but the first of them.
inline constexpr int steps_per_turn = 5;

/// Cost of a step (forward, loss, backward, AdamW) of every method, on one thread, in the order of `methods`. The
/// methods take turns, so that whatever else the machine does meets all of them; the first turn, which allocates, is
/// not counted. @throws Interrupted
[[nodiscard]] inline std::vector<StepCost> measure_steps(const DenseNetwork& base, const ImageSet& set,
                                                         Index batch_size, int turns, std::uint64_t seed) {
  std::vector<detail::AnyTraining> trainings;
  for (const Method& method : methods) trainings.push_back(detail::make_training(base, method, seed));
  Batches batches(set, batch_size, seed);
  Progress progress("Timing steps", turns + 1);
  for (int turn = 0; turn <= turns; ++turn) {
    const Batch& batch = batches.next();
    for (auto& any : trainings) {
      std::visit(
          [&](auto& training) {
            for (int step = 0; step < steps_per_turn; ++step) training->step(batch);
            if (turn == 0) training->seconds.clear();
          },
          any);
      throw_if_interrupted();
    }
    progress.advance();
  }
  std::vector<StepCost> costs;
  for (auto& any : trainings) costs.push_back(std::visit([](auto& training) { return training->cost(); }, any));
  return costs;
}

/// Memory of the base network answering one batch, without training.
[[nodiscard]] inline MemoryUse frozen_memory(const DenseNetwork& base, const ImageSet& set, Index batch_size) {
  Batches batches(set, batch_size, 0);
  const Batch& batch = batches.next();
  Pass<DenseNetwork::Layer> pass;
  base.infer(batch.x, pass);
  MemoryUse use;
  for (const auto& layer : base.layers()) use.weights += layer.parameter_bytes();
  use.activations = batch.bytes() + pass.activation_bytes();
  use.scratch = pass.workspace.bytes();
  return use;
}

}  // namespace examples
