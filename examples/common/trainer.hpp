// SPDX-License-Identifier: MIT
// One optimiser step on a network, and a training run made of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/batches.hpp"
#include "common/mlp.hpp"
#include "common/softmax_loss.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/moments.hpp"
#include "lora/optim/schedule.hpp"

namespace examples {

/// Bytes of the objects that training a network keeps.
struct MemoryUse {
  std::size_t weights = 0;  ///< all weights, frozen or not
  std::size_t gradients = 0;
  std::size_t optimizer_state = 0;
  std::size_t activations = 0;  ///< the batch, layer outputs, their gradients, the layers' tapes
  std::size_t scratch = 0;      ///< workspace of the kernels

  [[nodiscard]] std::size_t total() const noexcept {
    return weights + gradients + optimizer_state + activations + scratch;
  }
};

/// The mean loss of the batch; leaves its gradients in the layers. No allocation once the pass has seen a batch of this
/// size.
template <class Layer>
double loss_and_gradients(Mlp<Layer>& network, const Batch& batch, Pass<Layer>& pass) {
  network.zero_grad();
  const auto& logits = network.forward(batch.x, pass);
  const double loss = softmax_cross_entropy(logits, batch.labels, network.logits_gradient(pass));
  network.backward(batch.x, pass);
  return loss;
}

/// Steps of AdamW on all that trains in a network, which must outlive the trainer and stay where it is.
template <class Layer>
class Trainer {
 public:
  Trainer(Mlp<Layer>& network, const lora::AdamWOptions& options)
      : network_(&network), optimizer_(options), parameters_(network.parameters()) {}

  /// One update with this learning rate; returns the loss before it. After the first step with a batch size nothing is
  /// allocated.
  double step(const Batch& batch, double learning_rate) {
    const double loss = loss_and_gradients(*network_, batch, pass_);
    optimizer_.set_learning_rate(learning_rate);
    optimizer_.step(parameters_);
    batch_bytes_ = batch.bytes();
    return loss;
  }

  [[nodiscard]] Index parameter_count() const noexcept {
    Index count = 0;
    for (const auto& parameter : parameters_) count += parameter.size();
    return count;
  }

  /// Counted from the objects as they are, so after a step.
  [[nodiscard]] MemoryUse memory() const {
    MemoryUse use;
    for (auto& layer : network_->layers()) {
      use.weights += layer.parameter_bytes();
      use.gradients += layer.gradients().bytes();
    }
    use.optimizer_state = lora::moment_bytes(parameters_);
    use.activations = batch_bytes_ + pass_.activation_bytes();
    use.scratch = pass_.workspace.bytes();
    return use;
  }

 private:
  Mlp<Layer>* network_;
  lora::AdamW<float> optimizer_;
  std::vector<lora::Parameter<float>> parameters_;
  Pass<Layer> pass_;
  std::size_t batch_bytes_ = 0;
};

/// What all methods of a comparison share, and the learning rate.
struct TrainingOptions {
  Index epochs = 1;
  Index batch_size = 128;
  double learning_rate = 1e-3;  ///< the peak of warm-up and cosine
  double warmup_share = 0.05;   ///< of all steps
  double weight_decay = 0.01;
  std::uint64_t seed = 0;  ///< order of the images
};

struct LossPoint {
  double epoch = 0;  ///< epochs done, fractional
  double loss = 0;   ///< mean over the steps since the last point
};

/// Gathers the losses of single steps into points.
class LossCurve {
 public:
  explicit LossCurve(Index steps_per_epoch, Index points_per_epoch = 10)
      : steps_per_epoch_(steps_per_epoch), window_(std::max<Index>(1, steps_per_epoch / points_per_epoch)) {}

  void add(double loss) {
    ++steps_;
    sum_ += loss;
    if (++in_window_ < window_) return;
    points_.push_back(
        {static_cast<double>(steps_) / static_cast<double>(steps_per_epoch_), sum_ / static_cast<double>(in_window_)});
    sum_ = 0;
    in_window_ = 0;
  }

  [[nodiscard]] const std::vector<LossPoint>& points() const noexcept { return points_; }

 private:
  Index steps_per_epoch_;
  Index window_;
  Index steps_ = 0;
  Index in_window_ = 0;
  double sum_ = 0;
  std::vector<LossPoint> points_;
};

/// Steps that `train` takes.
[[nodiscard]] inline Index step_count(const ImageSet& set, const TrainingOptions& options) {
  return set.count() / options.batch_size * options.epochs;
}

[[nodiscard]] inline lora::WarmupCosine schedule_for(Index steps, const TrainingOptions& options) {
  return lora::WarmupCosine(
      {.learning_rate = options.learning_rate,
       .floor = 0.0,
       .warmup_steps = static_cast<std::int64_t>(static_cast<double>(steps) * options.warmup_share),
       .total_steps = std::max<Index>(1, steps)});
}

/// Trains on `set` and returns the curve of the loss. `on_step()` is called after every step and may throw to stop.
template <class Layer, class OnStep>
std::vector<LossPoint> train(Mlp<Layer>& network, const ImageSet& set, const TrainingOptions& options,
                             const OnStep& on_step) {
  Batches batches(set, options.batch_size, options.seed);
  Trainer<Layer> trainer(network, {.weight_decay = options.weight_decay});
  LossCurve curve(batches.per_epoch());
  const Index steps = step_count(set, options);
  const auto schedule = schedule_for(steps, options);
  for (Index t = 0; t < steps; ++t) {
    // Step 0 of a warm-up has rate 0 and would be wasted.
    curve.add(trainer.step(batches.next(), schedule(t + 1)));
    on_step();
  }
  return curve.points();
}

}  // namespace examples
