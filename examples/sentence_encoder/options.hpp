// SPDX-License-Identifier: MIT
// The command line of the comparison, and how much of everything it takes.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "common/parallel_runs.hpp"
#include "sentence_encoder/method.hpp"
#include "sentence_encoder/task.hpp"

namespace examples::sentence_encoder {

/// Of LoRA over weights of fewer bits; every scale has this rank over float too.
inline constexpr Index rank_of_formats = 8;

struct Options {
  bool quick = false;
  bool full = false;
  bool resume = false;
  Index epochs = 0;  ///< 0 stands for the default of the scale
  std::uint64_t seed = 1;
  std::vector<WeightFormat> weights;  ///< a line of LoRA for each
  std::size_t jobs = available_cores();
  std::filesystem::path model_dir = "build/models/universal-sentence-encoder-lite";
  std::filesystem::path data = "build/data/debian_descriptions.tsv";
  std::filesystem::path output_dir = "sentence_encoder_output";
};

/// How much of everything a run takes.
struct Scale {
  std::string name;
  TaskSizes sizes;
  Index epochs = 0;
  std::size_t seeds = 1;
  std::vector<Method> methods;        ///< full fine-tuning last
  std::vector<double> adapter_rates;  ///< learning rates tried for every method with adapters
  std::vector<double> full_rates;     ///< learning rates tried for full fine-tuning
  int timed_steps = 0;                ///< of each method

  [[nodiscard]] const std::vector<double>& rates(const Method& method) const {
    return method.full() ? full_rates : adapter_rates;
  }
};

/// LoRA over kernels in each of these formats, before full fine-tuning; those that are there already are not added.
inline void add_weight_formats(const std::vector<WeightFormat>& formats, std::vector<Method>& methods) {
  for (const WeightFormat format : formats) {
    const Method method{MethodKind::lora, rank_of_formats, format};
    if (std::find(methods.begin(), methods.end(), method) != methods.end()) continue;
    methods.insert(methods.end() - 1, method);
  }
}

[[nodiscard]] inline Scale scale_for(const Options& options) {
  using enum MethodKind;
  Scale scale;
  if (options.quick) {
    scale = {"quick", {1000, 300, 600}, 2, 1, {{lora, 8}, {full, 0}}, {1e-3}, {1e-4}, 5};
  } else if (options.full) {
    scale = {"full",
             {0, 0, 0},
             6,
             3,
             {{lora, 1}, {lora, 2}, {lora, 4}, {lora, 8}, {lora, 16}, {lora, 32}, {dora, 8}, {rslora, 32}, {full, 0}},
             {5e-4, 1e-3, 3e-3},
             {1e-4, 3e-4, 1e-3},
             30};
  } else {
    scale = {
        "default",    {3200, 700, 0},     4, 1, {{lora, 2}, {lora, 8}, {lora, 32}, {dora, 8}, {rslora, 32}, {full, 0}},
        {1e-3, 3e-3}, {1e-4, 3e-4, 1e-3}, 10};
  }
  if (options.epochs > 0) scale.epochs = options.epochs;
  add_weight_formats(options.weights, scale.methods);
  return scale;
}

/// Binds the options to their names. The caller parses.
inline void add_options(CLI::App& app, Options& options) {
  auto* quick = app.add_flag("--quick", options.quick, "A short run: few texts, LoRA at one rank, one learning rate");
  app.add_flag("--full", options.full, "A long run: all texts, more ranks and learning rates, three seeds")
      ->excludes(quick);
  app.add_flag("--resume", options.resume, "Continue an interrupted run with the same options");
  app.add_option("--epochs", options.epochs, "Epochs of every method")->check(CLI::Range(Index{1}, Index{1000}));
  app.add_option("--seed", options.seed, "Seed of the adapters, of dropout and of the order of the texts")
      ->capture_default_str();
  app.add_option_function<std::vector<std::string>>(
         "--weights",
         [&options](const std::vector<std::string>& names) {
           for (const auto& name : names) options.weights.push_back(format_named(name));
         },
         "Also train LoRA over frozen kernels of these formats, separated by commas, and compare the formats")
      ->transform(CLI::IsMember(format_names(), CLI::ignore_case))
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option("--jobs", options.jobs, "Number of parallel training runs; the results do not depend on it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--data", options.data, "Table: label, tab, text (optionally a tab and a group; groups are not split)")
      ->capture_default_str();
  app.add_option("--model-dir", options.model_dir, "Folder of the model; see fetch_model.sh")->capture_default_str();
  app.add_option("--output-dir", options.output_dir,
                 "Folder for report.html, results.json, adapter/ and runs/; created if it does not exist")
      ->capture_default_str();
}

}  // namespace examples::sentence_encoder
