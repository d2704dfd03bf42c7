// SPDX-License-Identifier: MIT
// Training every method at every learning rate.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/parallel_runs.hpp"
#include "intrinsic_dimension/subspace.hpp"
#include "intrinsic_dimension/task.hpp"
#include "lora/layers/linear.hpp"

namespace examples::intrinsic_dimension {

/// What trains: all parameters, those of a subspace of `size` dimensions, or adapters of rank `size`.
struct Method {
  enum class Kind : std::uint8_t { full, subspace, lora };
  Kind kind = Kind::full;
  Index size = 0;

  [[nodiscard]] std::string name() const {
    if (kind == Kind::full) return "full fine-tuning";
    return (kind == Kind::lora ? "LoRA, r = " : "subspace, d = ") + std::to_string(size);
  }
};

/// One training run.
struct Run {
  double learning_rate = 0;
  double validation_accuracy = 0;
  double test_accuracy = 0;
};

/// All runs of a method.
struct MethodRuns {
  Method method;
  Index trainable = 0;
  std::vector<Run> runs;  ///< one per learning rate

  /// Of the highest validation accuracy, the first of equals. What it scores on the test images plays no part.
  [[nodiscard]] const Run& best() const {
    return *std::max_element(runs.begin(), runs.end(),
                             [](const Run& a, const Run& b) { return a.validation_accuracy < b.validation_accuracy; });
  }
};

/// Sum of r (d + k) over the layers.
[[nodiscard]] inline Index lora_parameter_count(const DenseNetwork& network, Index rank) {
  Index count = 0;
  for (const auto& layer : network.layers()) count += rank * (layer.in_features() + layer.out_features());
  return count;
}

[[nodiscard]] inline Index parameter_count(const DenseNetwork& network) {
  Index count = 0;
  for (const auto& layer : network.layers()) count += (layer.in_features() + 1) * layer.out_features();
  return count;
}

[[nodiscard]] inline Index trainable_count(const DenseNetwork& network, const Method& method) {
  if (method.kind == Method::Kind::lora) return lora_parameter_count(network, method.size);
  return method.kind == Method::Kind::full ? parameter_count(network) : method.size;
}

namespace detail {

/// The base with adapters on all layers, alpha = 2 r as in fashion_mnist.
[[nodiscard]] inline Mlp<lora::LoraLinear<float>> with_adapters(const DenseNetwork& base, Index rank,
                                                                std::uint64_t seed) {
  const lora::LoraConfig config{.rank = rank, .alpha = 2.0 * static_cast<double>(rank)};
  std::vector<lora::LoraLinear<float>> layers;
  for (const auto& layer : base.layers()) {
    layers.emplace_back(layer.weight(), layer.bias(), config, seed + layers.size());
  }
  return Mlp<lora::LoraLinear<float>>(std::move(layers));
}

[[nodiscard]] inline Run measured(const auto& network, const ImageSplit& images, double learning_rate) {
  return {learning_rate, accuracy_on(network, images.validation), accuracy_on(network, images.test)};
}

/// Adam moves every coordinate by about the learning rate, so theta_d by sqrt(d) times it, and theta just as far.
/// Scaled by sqrt(D / d), a learning rate moves theta as far per step as it does in full fine-tuning, whatever d is.
[[nodiscard]] inline double subspace_rate_factor(const SubspaceProjection& projection) {
  return std::sqrt(static_cast<double>(projection.parameters()) / static_cast<double>(projection.subspace()));
}

template <class OnStep>
Run train_in_subspace(const DenseNetwork& base, Index dimension, const ImageSplit& images,
                      const TrainingOptions& options, const OnStep& on_step) {
  SubspaceTraining training(base, dimension, options.seed);
  Batches batches(images.train, options.batch_size, options.seed);
  const Index steps = step_count(images.train, options);
  const auto schedule = schedule_for(steps, options);
  const double factor = subspace_rate_factor(training.projection());
  for (Index t = 0; t < steps; ++t) {
    training.step(batches.next(), factor * schedule(t + 1));
    on_step();
  }
  return measured(training.network(), images, options.learning_rate);
}

template <class OnStep>
Run train_method(const DenseNetwork& base, const Method& method, const ImageSplit& images,
                 const TrainingOptions& options, const OnStep& on_step) {
  if (method.kind == Method::Kind::subspace) {
    return train_in_subspace(base, method.size, images, options, on_step);
  }
  const auto train_network = [&](auto network) {
    train(network, images.train, options, on_step);
    return measured(network, images, options.learning_rate);
  };
  if (method.kind == Method::Kind::lora) return train_network(with_adapters(base, method.size, options.seed));
  return train_network(base);
}

}  // namespace detail

/// A method with the learning rates to try.
struct Candidate {
  Method method;
  std::vector<double> rates;
};

/// Trains from `base` with every candidate at each of its rates, `jobs` runs at a time, all with the same images in the
/// same order. `options.learning_rate` is not used. The result does not depend on `jobs`. @throws Interrupted
[[nodiscard]] inline std::vector<MethodRuns> train_all(const DenseNetwork& base,
                                                       const std::vector<Candidate>& candidates,
                                                       const ImageSplit& images, const TrainingOptions& options,
                                                       std::size_t jobs) {
  std::vector<MethodRuns> all;
  std::vector<std::pair<std::size_t, std::size_t>> runs;  // of which method, at which of its rates
  for (const auto& [method, rates] : candidates) {
    for (std::size_t rate = 0; rate < rates.size(); ++rate) runs.emplace_back(all.size(), rate);
    all.push_back({method, trainable_count(base, method), std::vector<Run>(rates.size())});
  }
  Progress progress(
      "Adapting: " + std::to_string(candidates.size()) + " methods, " + std::to_string(runs.size()) + " runs",
      static_cast<Index>(runs.size()) * step_count(images.train, options));
  parallel_runs(runs.size(), jobs, [&](std::size_t i) {
    const auto [method, rate] = runs[i];
    TrainingOptions own = options;
    own.learning_rate = candidates[method].rates[rate];
    all[method].runs[rate] = detail::train_method(base, candidates[method].method, images, own, [&] {
      progress.advance();
      throw_if_interrupted();
    });
  });
  return all;
}

}  // namespace examples::intrinsic_dimension
