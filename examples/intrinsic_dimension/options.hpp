// SPDX-License-Identifier: MIT
// The command line of intrinsic_dimension.
#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "common/dataset.hpp"
#include "common/parallel_runs.hpp"

namespace examples::intrinsic_dimension {

struct Options {
  bool quick = false;
  Index epochs = 0;               ///< 0 stands for the default of the scale
  std::vector<Index> dimensions;  ///< empty for the default of the scale
  std::uint64_t seed = 42;
  std::size_t jobs = available_cores();
  std::filesystem::path output_dir = ".";
  std::filesystem::path data_dir = fashion_mnist_folder;
  std::filesystem::path base;  ///< empty: pretrain
};

/// How much of everything a run takes.
struct Scale {
  Index train_images;
  Index validation_images;
  Index pretraining_epochs;
  Index epochs;
  std::vector<Index> dimensions;  ///< d
  std::vector<Index> ranks;       ///< of LoRA, for comparison
  // Learning rates tried. Subspaces share one unit with full fine-tuning, see subspace_rate_factor.
  std::vector<double> full_rates;
  std::vector<double> subspace_rates;
  std::vector<double> lora_rates;
};

[[nodiscard]] inline Scale scale_for(const Options& options) {
  Scale scale{.train_images = 54000,
              .validation_images = 6000,
              .pretraining_epochs = 6,
              .epochs = 3,
              .dimensions = {8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096},
              .ranks = {1, 8},
              .full_rates = {3e-3, 1e-2},
              .subspace_rates = {1e-2, 3e-2},
              .lora_rates = {1e-2, 3e-2}};
  if (options.quick) {
    scale.train_images = 10000;
    scale.validation_images = 2000;
    scale.pretraining_epochs = scale.epochs = 4;
    scale.dimensions = {16, 64, 256, 1024, 4096};
  }
  if (options.epochs > 0) scale.pretraining_epochs = scale.epochs = options.epochs;
  if (!options.dimensions.empty()) scale.dimensions = options.dimensions;
  return scale;
}

/// Binds the options to their names. The caller parses.
inline void add_options(CLI::App& app, Options& options) {
  app.add_flag("--quick", options.quick, "A short run: fewer images and dimensions");
  app.add_option("--dimensions", options.dimensions, "Dimensions d of the subspaces, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(Index{1}, Index{65536}));
  app.add_option("--epochs", options.epochs, "Epochs of pretraining and of every method")
      ->check(CLI::Range(Index{1}, Index{1000}));
  app.add_option("--seed", options.seed, "Seed of the initial weights, the projections and the order of the images")
      ->capture_default_str();
  app.add_option("--jobs", options.jobs, "Number of parallel training runs; the results do not depend on it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--base", options.base, "A base.safetensors of fashion_mnist to start from instead of pretraining")
      ->check(CLI::ExistingFile);
  app.add_option("--output-dir", options.output_dir,
                 "Folder for intrinsic_dimension.html; created if it does not exist")
      ->capture_default_str();
  app.add_option("--data-dir", options.data_dir, "Folder of the dataset's four .gz files")->capture_default_str();
}

}  // namespace examples::intrinsic_dimension
