// SPDX-License-Identifier: MIT
// How many dimensions does adapting a network take? Trains it inside random subspaces of growing dimension d and finds
// d90, the smallest d that reaches 90 % of full fine-tuning's gain.
//
// After Li et al., "Measuring the Intrinsic Dimension of Objective Landscapes", arXiv 1804.08838, and Aghajanyan et
// al., "Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning", arXiv 2012.13255.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "common/checkpoint.hpp"
#include "common/interrupt.hpp"
#include "intrinsic_dimension/options.hpp"
#include "intrinsic_dimension/page.hpp"
#include "intrinsic_dimension/results.hpp"
#include "intrinsic_dimension/sweep.hpp"
#include "intrinsic_dimension/task.hpp"

namespace {

using namespace examples;                       // NOLINT: the program's own namespaces
using namespace examples::intrinsic_dimension;  // NOLINT

/// Fails now rather than after minutes of training.
void prepare_output_folder(const std::filesystem::path& folder) {
  try {
    std::filesystem::create_directories(folder);
    const lora::AtomicFile probe(folder / "intrinsic_dimension.html");
  } catch (const std::exception& error) {
    throw lora::IoError("intrinsic_dimension", folder.string(), "a folder to write to (choose one with --output-dir)",
                        error.what());
  }
}

DenseNetwork make_base(const Options& options, const Scale& scale, const ImageSet& images) {
  if (options.base.empty()) {
    return pretrain(images, {.epochs = scale.pretraining_epochs, .learning_rate = 1e-3, .seed = options.seed});
  }
  DenseNetwork base = load_network(options.base);
  if (base.layers().front().in_features() != images.image_size() ||
      base.layers().back().out_features() != fashion_mnist_classes) {
    throw lora::ShapeError("intrinsic_dimension", options.base.string(), "a network from 784 inputs to 10 classes",
                           std::to_string(base.layers().front().in_features()) + " and " +
                               std::to_string(base.layers().back().out_features()));
  }
  return base;
}

std::vector<Candidate> candidates_of(const Scale& scale) {
  std::vector<Candidate> all{{{Method::Kind::full, 0}, scale.full_rates}};
  for (const Index rank : scale.ranks) all.push_back({{Method::Kind::lora, rank}, scale.lora_rates});
  for (const Index d : scale.dimensions) all.push_back({{Method::Kind::subspace, d}, scale.subspace_rates});
  return all;
}

Results run(const Options& options, const Scale& scale, const DenseNetwork& base, const ImageSplit& images,
            const ImageSplit& new_images) {
  Results results;
  results.scale = scale;
  results.training = {.epochs = scale.epochs, .seed = options.seed};
  results.parameters = parameter_count(base);
  results.accuracy_before = accuracy_on(base, images.test);
  results.frozen_accuracy = accuracy_on(base, new_images.test);
  for (auto& runs : train_all(base, candidates_of(scale), new_images, results.training, options.jobs)) {
    if (runs.method.kind == Method::Kind::full) {
      results.full = std::move(runs);
    } else {
      (runs.method.kind == Method::Kind::lora ? results.lora : results.subspaces).push_back(std::move(runs));
    }
  }
  return results;
}

int find_dimension(const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  handle_signals();
  prepare_output_folder(options.output_dir);
  Scale scale = scale_for(options);
  std::sort(scale.dimensions.begin(), scale.dimensions.end());
  const ImageSplit images = load_images(options.data_dir, scale.train_images, scale.validation_images);
  const ImageSplit new_images = changed(images);
  const DenseNetwork base = make_base(options, scale, images.train);
  Results results = run(options, scale, base, images, new_images);
  results.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  std::printf("\nTest accuracy of the pretrained network: %s as shipped, %s after the change\n\n%s\n%s\n\n%s\n",
              percent_text(results.accuracy_before).c_str(), percent_text(results.frozen_accuracy).c_str(),
              plain_text(results_table(results)).c_str(), verdict(results).c_str(),
              plain_text(lora_count_table(base)).c_str());
  std::printf("Learning rates, chosen on %s validation images, in brackets:\n%s\n",
              grouped_text(scale.validation_images).c_str(), plain_text(selection_table(results)).c_str());
  const auto path = options.output_dir / "intrinsic_dimension.html";
  make_report(results, options, base).write(path);
  std::printf("Report: %s\n", path.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Trains a network on Fashion-MNIST, changes its world (each image rotated by 90 degrees and inverted), "
      "adapts it inside random subspaces of growing dimension d, and finds d90, the smallest d with 90 % of "
      "full fine-tuning's gain.",
      "intrinsic_dimension");
  add_options(app, options);
  CLI11_PARSE(app, argc, argv);
  try {
    return find_dimension(options);
  } catch (const Interrupted& interruption) {
    std::fprintf(stderr, "intrinsic_dimension: interrupted; no file was written\n");
    return interruption.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "intrinsic_dimension: %s\n", error.what());
    return 1;
  }
}
