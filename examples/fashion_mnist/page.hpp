// SPDX-License-Identifier: MIT
// The report of a run.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/dataset.hpp"
#include "common/report.hpp"
#include "fashion_mnist/figures.hpp"
#include "fashion_mnist/results.hpp"
#include "lora/kernels/isa.hpp"

namespace examples {

namespace detail {

/// The first image of every class, as shipped and changed.
inline void add_pictures(Report& report, const ImageSet& before, const ImageSet& after) {
  std::vector<std::span<const std::uint8_t>> first;
  std::vector<std::span<const std::uint8_t>> second;
  std::vector<std::string> names;
  for (Index label = 0; label < fashion_mnist_classes; ++label) {
    Index i = 0;
    while (i < before.count() && before.labels[static_cast<std::size_t>(i)] != label) ++i;
    if (i == before.count()) continue;
    first.push_back(before.image(i));
    second.push_back(after.image(i));
    names.emplace_back(fashion_mnist_class_names.at(static_cast<std::size_t>(label)));
  }
  report.pictures(first, static_cast<std::size_t>(before.width), {}, "pretrained on");
  report.pictures(second, static_cast<std::size_t>(after.width), names, "adapted to");
}

[[nodiscard]] inline Table settings_table(const Results& results, const Options& options) {
  const TrainingOptions& training = results.training;
  return {
      {"setting", "value"},
      {{"network", "784-512-256-10, ReLU, softmax cross-entropy, float"},
       {"images", grouped_text(results.scale.train_images) + " to train, " +
                      grouped_text(results.scale.validation_images) + " to validate, 10,000 to test"},
       {"change", "each image rotated by 90 degrees clockwise and inverted"},
       {"epochs, batch", std::to_string(training.epochs) + ", " + std::to_string(training.batch_size) +
                             "; pretraining the same, at a learning rate of " + fixed_text(training.learning_rate, 3)},
       {"optimiser", "AdamW, weight decay " + fixed_text(training.weight_decay, 2) + ", warm-up over " +
                         fixed_text(training.warmup_share * 100, 0) + " % of the steps, then half a cosine to 0"},
       {"LoRA", "on all three layers, alpha = 2 r, A Kaiming-uniform, B zero, no dropout, biases frozen"},
       {"seed", std::to_string(options.seed)},
       {"kernels", std::string(lora::isa_name(lora::active_isa())) + ", one thread per run"},
       {"run time", duration_text(results.seconds)}},
      {},
      true};
}

inline void add_headline(Report& report, const Results& results) {
  const StepCost& shown = results.costs.at(shown_method);
  const StepCost& full = results.costs.at(results.full_method());
  const auto share = [](double part, double whole) { return fixed_text(part / whole * 100, 1) + " %"; };
  report.tiles({{percent_text(results.test_accuracies.at(shown_method)),
                 "test accuracy with LoRA, r = 8; full fine-tuning reaches " + percent_text(results.full_accuracy())},
                {share(static_cast<double>(shown.trainable_parameters), static_cast<double>(full.trainable_parameters)),
                 "of the parameters that full fine-tuning trains"},
                {share(static_cast<double>(shown.memory.gradients + shown.memory.optimizer_state),
                       static_cast<double>(full.memory.gradients + full.memory.optimizer_state)),
                 "of its memory for gradients and optimiser state"},
                {share(shown.median_seconds, full.median_seconds), "of its time for a training step"}});
}

}  // namespace detail

/// `before` and `after` are the same images as shipped and changed. @throws Interrupted, lora::IoError
[[nodiscard]] inline Report make_report(const Results& results, const Options& options, const ImageSet& before,
                                        const ImageSet& after) {
  Report report("Fine-tuning on Fashion-MNIST after its world has changed",
                "The same pretrained network, frozen, with LoRA at five ranks, and fully fine-tuned");
  detail::add_headline(report, results);
  report.paragraph("A network trained on Fashion-MNIST as shipped answers " + percent_text(results.accuracy_before) +
                   " of the test images correctly. Then every image is rotated by 90 degrees and inverted, and the "
                   "frozen network is left with " +
                   percent_text(results.frozen_accuracy) + ". " + verdict(results));
  detail::add_pictures(report, before, after);
  report.heading("Comparison").table(main_table(results));
  report.paragraph(
      "Bytes are counted from the objects that exist after a step. Steps are forward, loss, backward and "
      "optimiser on one thread; the methods take turns, so that a busy machine meets all of them alike.");
  report.heading("Accuracy over rank");
  report.figure(accuracy_figure(results), "Accuracy on the changed test images over the rank of the adapters");
  report.heading("Loss").figure(loss_figure(results), "Training loss of each method at its chosen learning rate");
  report.heading("Memory").figure(memory_figure(results), "Memory while training a batch, by part");
  report.heading("Merging and saving").paragraph("Checked on the adapter of rank 8 and all test images:");
  report.table(check_table(results));
  report.heading("Settings").table(detail::settings_table(results, options));
  report.paragraph(
      "Every method was trained at each of these learning rates. The one in brackets did best on the "
      "validation images and was then measured, once, on the test images.");
  report.table(selection_table(results));
  return report;
}

}  // namespace examples
