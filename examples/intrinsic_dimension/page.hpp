// SPDX-License-Identifier: MIT
// The report of a run.
#pragma once

#include <string>

#include "common/plot.hpp"
#include "common/report.hpp"
#include "common/text_table.hpp"
#include "intrinsic_dimension/results.hpp"
#include "lora/kernels/isa.hpp"

namespace examples::intrinsic_dimension {

namespace detail {

[[nodiscard]] inline std::string dashed_line(double share, std::string_view colour, const std::string& label) {
  const std::string y = number_text(share * 100);
  return "set arrow from graph 0, first " + y + " to graph 1, first " + y +
         " nohead dashtype 2 linewidth 2 linecolor rgb '" + std::string(colour) + "'\nset label " +
         gnuplot_string(label + " " + percent_text(share)) + " at graph 0.01, first " + y +
         " offset 0,0.6 textcolor rgb '" + std::string(colour) + "'\n";
}

}  // namespace detail

/// Accuracy over the number of parameters that train, with the line that defines d90.
[[nodiscard]] inline Figure dimension_figure(const Results& results) {
  DataBlock subspaces("$subspaces");
  DataBlock adapters("$adapters");
  for (const auto& runs : results.subspaces) {
    subspaces.row({static_cast<double>(runs.trainable), runs.best().test_accuracy * 100});
  }
  for (const auto& runs : results.lora) {
    adapters.row("r = " + std::to_string(runs.method.size),
                 {static_cast<double>(runs.trainable), runs.best().test_accuracy * 100});
  }
  return draw(
      subspaces.text() + adapters.text() + detail::dashed_line(results.full_accuracy(), vermilion, "full fine-tuning") +
      (results.full_gains() ? detail::dashed_line(results.threshold(), green, "90 % of its gain") : "") +
      detail::dashed_line(results.frozen_accuracy, grey, "frozen") +
      "set logscale x\nset yrange [0:100]\nset xlabel 'parameters that train'\n"
      "set ylabel 'test accuracy, %'\nset key right center\n"
      "plot $subspaces using 1:2 with linespoints linewidth 3 pointtype 7 pointsize 0.9 linecolor rgb '" +
      std::string(blue) +
      "' title 'random subspace of d dimensions', \\\n"
      " $adapters using 2:3 with points pointtype 9 pointsize 1.4 linecolor rgb '" +
      std::string(orange) + "' title 'LoRA', \\\n $adapters using 2:3:1 with labels offset 0,-1.9 textcolor rgb '" +
      std::string(orange) + "' notitle\n");
}

/// @throws Interrupted, lora::IoError
[[nodiscard]] inline Report make_report(const Results& results, const Options& options, const DenseNetwork& base) {
  const TrainingOptions& training = results.training;
  Report report("Intrinsic dimension on Fashion-MNIST after its world has changed",
                "How many directions a pretrained network needs to adapt, after Li et al. (2018) and Aghajanyan et al. "
                "(2020)");
  report.tiles({{d90_text(results), "d90, dimensions for 90 % of full fine-tuning's gain"},
                {grouped_text(results.parameters), "parameters of the network, D"},
                {grouped_text(lora_parameter_count(base, 1)), "parameters of LoRA at r = 1"}});
  report.paragraph("A network trained on Fashion-MNIST as shipped answers " + percent_text(results.accuracy_before) +
                   " of the test images correctly, and " + percent_text(results.frozen_accuracy) +
                   " once every image is rotated by 90 degrees and inverted. It then trains inside random subspaces of "
                   "its parameters, theta = theta_0 + P theta_d with a fixed random P and d trainable numbers. " +
                   verdict(results));
  report.heading("Accuracy over dimension");
  report.figure(dimension_figure(results), "Accuracy on the changed test images over the number of trained parameters");
  report.table(results_table(results));
  report.paragraph(
      "One projection per d and one order of the images: the last digits are chance, and d90 is given as "
      "the gap of the sweep in which the curve crosses the line, not as a single number. LoRA is no random subspace: "
      "its update has rank r in every layer, in directions that are trained, and biases stay frozen.");
  report.heading("LoRA's counts").table(lora_count_table(base));
  report.heading("Settings");
  report.table({{"setting", "value"},
                {{"network", "784-512-256-10, ReLU, softmax cross-entropy, float; all weights and biases count"},
                 {"projection", "orthogonal blocks of signs and Walsh-Hadamard transforms, computed on the fly"},
                 {"images", grouped_text(results.scale.train_images) + " to train, " +
                                grouped_text(results.scale.validation_images) + " to validate, 10,000 to test"},
                 {"epochs, batch", std::to_string(training.epochs) + ", " + std::to_string(training.batch_size)},
                 {"schedule", "AdamW, warm-up over " + fixed_text(training.warmup_share * 100, 0) +
                                  " % of the steps, then half a cosine to 0"},
                 {"seed", std::to_string(options.seed)},
                 {"kernels", std::string(lora::isa_name(lora::active_isa())) + ", one thread per run"},
                 {"run time", duration_text(results.seconds)}},
                {}});
  report.paragraph(
      "Each method was trained at each of these learning rates; the one in brackets did best on the "
      "validation images. In a subspace a rate is scaled by sqrt(D / d), so that a step moves the network "
      "as far as it does in full fine-tuning.");
  report.table(selection_table(results));
  return report;
}

}  // namespace examples::intrinsic_dimension
