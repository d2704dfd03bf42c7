// SPDX-License-Identifier: MIT
// The command line of fashion_mnist.
#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/dataset.hpp"
#include "common/parallel_runs.hpp"

namespace examples {

struct Options {
  bool quick = false;
  Index epochs = 0;  ///< 0 stands for the default of the scale
  std::uint64_t seed = 42;
  std::size_t jobs = available_cores();
  std::filesystem::path output_dir = ".";
  std::filesystem::path data_dir = fashion_mnist_folder;
};

/// How much of everything a run takes.
struct Scale {
  Index train_images;
  Index validation_images;  ///< from the end of the training set, never trained on
  Index epochs;
  std::vector<double> learning_rates;  ///< tried for every method
  int timed_turns;                     ///< turns of steps per method whose median is reported
};

[[nodiscard]] inline Scale scale_for(const Options& options) {
  Scale scale =
      options.quick ? Scale{10000, 2000, 6, {3e-3, 1e-2}, 4} : Scale{54000, 6000, 8, {1e-3, 3e-3, 1e-2, 2e-2}, 15};
  if (options.epochs > 0) scale.epochs = options.epochs;
  return scale;
}

/// Binds the options to their names. The caller parses.
inline void add_options(CLI::App& app, Options& options) {
  app.add_flag("--quick", options.quick, "A short run: fewer images, epochs and learning rates");
  app.add_option("--epochs", options.epochs, "Epochs of pretraining and of every method")
      ->check(CLI::Range(Index{1}, Index{1000}));
  app.add_option("--seed", options.seed, "Seed of the initial weights and of the order of the images")
      ->capture_default_str();
  app.add_option("--jobs", options.jobs, "Number of parallel training runs; the results do not depend on it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--output-dir", options.output_dir,
                 "Folder for report.html, base.safetensors and adapter.safetensors; created if it does not exist")
      ->capture_default_str();
  app.add_option("--data-dir", options.data_dir, "Folder of the dataset's four .gz files")->capture_default_str();
}

}  // namespace examples
