// SPDX-License-Identifier: MIT
// Training of a classifier: AdamW, warm-up and cosine, clipping, validation, early stopping, checkpoints.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/number_text.hpp"
#include "lora/mpi/shard.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/clip.hpp"
#include "lora/optim/schedule.hpp"
#include "sentence_encoder/batch_order.hpp"
#include "sentence_encoder/training_checkpoint.hpp"

namespace examples::sentence_encoder {

struct FineTuningOptions {
  Index epochs = 4;
  Index batch_size = 32;
  double learning_rate = 1e-3;  ///< the peak of warm-up and cosine
  double warmup_share = 0.1;    ///< of all steps
  double weight_decay = 0.01;
  double max_gradient_norm = 1.0;
  Index evaluations_per_epoch = 2;
  Index patience = 4;      ///< evaluations without a better score after which training stops
  std::uint64_t seed = 0;  ///< order of the rows

  /// One line that names every choice.
  [[nodiscard]] std::string text() const {
    const auto number = [](double value) { return lora::detail::number_text(value); };
    return "epochs " + std::to_string(epochs) + ", batch " + std::to_string(batch_size) + ", rate " +
           number(learning_rate) + ", warm-up " + number(warmup_share) + ", weight decay " + number(weight_decay) +
           ", clipping " + number(max_gradient_norm) + ", evaluations " + std::to_string(evaluations_per_epoch) +
           " an epoch, patience " + std::to_string(patience) + ", seed " + std::to_string(seed);
  }
};

using lora::mpi::Shard;

/// The part's rows of a batch.
[[nodiscard]] inline std::span<const Index> rows_of(std::span<const Index> batch, const Shard& part) {
  return batch.subspan(static_cast<std::size_t>(part.begin), static_cast<std::size_t>(part.count));
}

/// What is trained. Rows are indices into training data that the classifier knows.
template <class Classifier>
concept TrainableClassifier = requires(Classifier& classifier, std::span<const Index> batch, Shard part) {
  /// Sets all gradients to those of the mean loss over a part of the batch's rows and returns that; zero of no rows.
  { classifier.loss_and_gradients(batch, part) } -> std::convertible_to<double>;
  /// On validation data; more is better.
  { classifier.validation_score() } -> std::convertible_to<double>;
  { classifier.parameters() } -> std::convertible_to<std::vector<lora::Parameter<float>>>;
  { classifier.dropout_step() } -> std::convertible_to<std::uint64_t>;
  classifier.set_dropout_step(std::uint64_t{});
};

/// This process's share of a job of several that train one model together: each takes its share of every batch's rows.
struct JobShare {
  int rank = 0;
  int ranks = 1;
  /// Replaces all gradients by their mean over the ranks, weighted with each rank's rows, with the same bits on all,
  /// and returns the mean of the losses.
  std::function<double(std::span<const lora::Parameter<float>> parameters, Index own_rows, double own_loss)> average =
      {};
  /// The number that rank 0 has, on every rank.
  std::function<double(double)> of_first_rank = {};
  /// Throws lora::ConfigError on every rank unless all have this value alike.
  std::function<void(const std::string& name, const std::string& value)> require_agreement = {};
};

/// One run of training, from its start or a checkpoint to its end. With a folder, rank 0 keeps the best parameters in
/// best.safetensors and checkpoints in checkpoint.safetensors, which every rank reads to resume; a run that is killed
/// and resumed ends with the same bits as one that is not. The classifier must outlive this object and stay where it
/// is.
template <TrainableClassifier Classifier>
class FineTuning {
 public:
  /// `run` names what decides the course of the run beside the options: data, method, seeds.
  /// @throws lora::ConfigError for options out of range
  FineTuning(Classifier& classifier, Index train_rows, const FineTuningOptions& options, std::string run,
             std::filesystem::path folder, JobShare share = {})
      : classifier_(&classifier),
        options_(options),
        run_(std::move(run) + "; " + options.text()),
        folder_(std::move(folder)),
        share_(std::move(share)),
        order_(train_rows, options.batch_size, options.seed),
        schedule_(schedule_options()),
        optimizer_({.learning_rate = options.learning_rate, .weight_decay = options.weight_decay}),
        parameters_(classifier.parameters()) {}

  [[nodiscard]] Index total_steps() const noexcept { return order_.per_epoch() * options_.epochs; }
  [[nodiscard]] Index steps_per_epoch() const noexcept { return order_.per_epoch(); }
  [[nodiscard]] const TrainingState& state() const noexcept { return state_; }
  [[nodiscard]] bool finished() const noexcept { return state_.finished; }
  [[nodiscard]] double last_loss() const noexcept { return last_loss_; }

  [[nodiscard]] std::filesystem::path checkpoint_path() const { return folder_ / "checkpoint.safetensors"; }
  [[nodiscard]] std::filesystem::path best_path() const { return folder_ / "best.safetensors"; }

  /// One update of all parameters, and what falls due after it: validation, best values, a checkpoint.
  /// @throws lora::StateError for gradients that are not finite, lora::IoError
  void step() {
    const auto batch = order_.batch(state_.step);
    const Shard part = lora::mpi::shard(static_cast<Index>(batch.size()), share_.rank, share_.ranks);
    double loss = classifier_->loss_and_gradients(batch, part);
    // The gradients of this rank's rows are complete here, and nothing has used them yet.
    if (share_.ranks > 1) loss = share_.average(parameters_, part.count, loss);
    lora::clip_gradient_norm(parameters_, options_.max_gradient_norm);
    // Step 0 of a warm-up has rate 0 and would be wasted.
    optimizer_.set_learning_rate(schedule_(state_.step + 1));
    optimizer_.step(parameters_);
    ++state_.step;
    record(loss);
    if (evaluation_due()) evaluate();
    state_.finished = state_.finished || state_.step >= total_steps();
  }

  /// @throws lora::IoError
  void save() {
    if (folder_.empty() || share_.rank != 0) return;
    state_.dropout_step = classifier_->dropout_step();
    save_checkpoint(checkpoint_path(), run_, state_, parameters_);
  }

  /// Goes on where the folder's checkpoint stands; false when there is none. Called by every rank of a job.
  /// @throws lora::ConfigError for a checkpoint of another run, and on every rank when ranks would go on at different
  /// steps; lora::IoError, lora::FormatError
  bool resume() {
    const bool found = !folder_.empty() && std::filesystem::exists(checkpoint_path());
    if (found) {
      state_ = load_checkpoint(checkpoint_path(), run_, parameters_);
      classifier_->set_dropout_step(state_.dropout_step);
    }
    if (share_.ranks > 1) {
      share_.require_agreement("checkpoint's step", found ? std::to_string(state_.step) : "no checkpoint");
    }
    return found;
  }

  /// Gives the parameters the values they had at the best validation. @throws lora::IoError
  void restore_best() {
    if (!folder_.empty() && best_.empty()) return load_values(best_path(), parameters_);
    for (std::size_t i = 0; i < best_.size(); ++i) parameters_[i].value() = best_[i];
  }

 private:
  /// Points of the loss curve in an epoch.
  static constexpr Index points_per_epoch = 10;

  [[nodiscard]] lora::WarmupCosineOptions schedule_options() const {
    const auto steps = total_steps();
    return {.learning_rate = options_.learning_rate,
            .floor = 0,
            .warmup_steps = static_cast<std::int64_t>(static_cast<double>(steps) * options_.warmup_share),
            .total_steps = std::max<Index>(1, steps)};
  }

  void record(double loss) {
    last_loss_ = loss;
    state_.window_loss += loss;
    ++state_.window_steps;
    if (state_.window_steps < std::max<Index>(1, order_.per_epoch() / points_per_epoch)) return;
    state_.losses.push_back({state_.step, state_.window_loss / static_cast<double>(state_.window_steps)});
    state_.window_loss = 0;
    state_.window_steps = 0;
  }

  // At evenly spaced steps of every epoch, the last among them.
  [[nodiscard]] bool evaluation_due() const noexcept {
    const Index position = (state_.step - 1) % order_.per_epoch();
    const auto done = [&](Index steps) { return steps * options_.evaluations_per_epoch / order_.per_epoch(); };
    return done(position + 1) > done(position);
  }

  void evaluate() {
    const double score = agreed_score();
    state_.evaluations.push_back({state_.step, score});
    if (state_.best_step < 0 || score > state_.best_score) {
      state_.best_score = score;
      state_.best_step = state_.step;
      state_.stale_evaluations = 0;
      keep_best();
    } else if (++state_.stale_evaluations >= options_.patience) {
      state_.finished = true;
    }
    state_.finished = state_.finished || state_.step >= total_steps();
    save();
  }

  // Rank 0 alone looks: ranks on different machines might round differently and part over who is the best.
  [[nodiscard]] double agreed_score() {
    if (share_.ranks == 1) return classifier_->validation_score();
    return share_.of_first_rank(share_.rank == 0 ? classifier_->validation_score() : 0.0);
  }

  // Before the checkpoint that says so: a kill in between costs the same evaluation once more.
  void keep_best() {
    if (!folder_.empty() && share_.rank == 0) return save_values(best_path(), parameters_);
    best_.resize(parameters_.size());
    for (std::size_t i = 0; i < best_.size(); ++i) best_[i] = parameters_[i].value();
  }

  Classifier* classifier_;
  FineTuningOptions options_;
  std::string run_;
  std::filesystem::path folder_;
  JobShare share_;
  BatchOrder order_;
  lora::WarmupCosine schedule_;
  lora::AdamW<float> optimizer_;
  std::vector<lora::Parameter<float>> parameters_;
  std::vector<lora::Matrix<float>> best_;
  TrainingState state_;
  double last_loss_ = 0;
};

}  // namespace examples::sentence_encoder
