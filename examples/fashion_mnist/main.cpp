// SPDX-License-Identifier: MIT
// Fine-tunes a network on Fashion-MNIST after its world has changed: frozen, LoRA at several ranks, full fine-tuning.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

#include "common/checkpoint.hpp"
#include "common/dataset.hpp"
#include "common/interrupt.hpp"
#include "common/progress.hpp"
#include "common/transform.hpp"
#include "fashion_mnist/checks.hpp"
#include "fashion_mnist/measurement.hpp"
#include "fashion_mnist/options.hpp"
#include "fashion_mnist/page.hpp"
#include "fashion_mnist/results.hpp"
#include "fashion_mnist/selection.hpp"

namespace {

using namespace examples;  // NOLINT: the program's own namespace

/// The images of one world, split.
struct World {
  ImageSet train;
  ImageSet validation;
  ImageSet test;
};

World load_world(const Options& options, const Scale& scale) {
  const FashionMnist data = read_fashion_mnist(options.data_dir);
  const Index wanted = scale.train_images + scale.validation_images;
  if (data.train.count() < wanted || data.train.image_size() != 784 || data.test.image_size() != 784) {
    throw lora::FormatError("dataset", options.data_dir.string(),
                            "at least " + std::to_string(wanted) + " training images of 28 x 28",
                            std::to_string(data.train.count()) + " of " + std::to_string(data.train.height) + " x " +
                                std::to_string(data.train.width));
  }
  return {data.train.slice(0, scale.train_images),
          data.train.slice(data.train.count() - scale.validation_images, scale.validation_images), data.test};
}

World changed(const World& world) {
  const auto change = [](const ImageSet& set) { return invert(rotate_quarter_turn(set)); };
  return {change(world.train), change(world.validation), change(world.test)};
}

/// Fails now rather than after minutes of training.
void prepare_output_folder(const std::filesystem::path& folder) {
  try {
    std::filesystem::create_directories(folder);
    const lora::AtomicFile probe(folder / "report.html");
  } catch (const std::exception& error) {
    throw lora::IoError("output folder", folder.string(), "a folder to write to (choose one with --output-dir)",
                        error.what());
  }
}

DenseNetwork pretrain(const ImageSet& set, const TrainingOptions& options) {
  auto network = random_mlp<float>({784, 512, 256, fashion_mnist_classes}, options.seed);
  Progress progress("Pretraining 784-512-256-10", step_count(set, options));
  train(network, set, options, [&] {
    progress.advance();
    throw_if_interrupted();
  });
  lora::reset_moments(network.parameters());  // every method starts without moments
  return network;
}

template <class Network>
double test_accuracy(const Network& network, const ImageSet& test) {
  return accuracy(logits_of(network, test), test.labels);
}

Results run(const Options& options, const World& world, const World& new_world) {
  const auto start = std::chrono::steady_clock::now();
  Results results;
  results.scale = scale_for(options);
  results.training = {.epochs = results.scale.epochs, .learning_rate = 1e-3, .seed = options.seed};

  const DenseNetwork base = pretrain(world.train, results.training);
  const auto base_path = options.output_dir / "base.safetensors";
  save_network(base, base_path);
  results.accuracy_before = test_accuracy(base, world.test);
  results.frozen_accuracy = test_accuracy(base, new_world.test);
  results.frozen_memory = frozen_memory(base, new_world.train, results.training.batch_size);

  results.candidates = train_all(base, new_world.train, new_world.validation, results.training,
                                 results.scale.learning_rates, options.jobs);
  for (const auto& candidates : results.candidates) {
    results.test_accuracies.push_back(std::visit(
        [&](const auto& network) { return test_accuracy(network, new_world.test); }, *candidates.best_run().network));
  }
  results.costs =
      measure_steps(base, new_world.train, results.training.batch_size, results.scale.timed_turns, options.seed);

  auto& adapted = std::get<LoraNetwork>(*results.candidates.at(shown_method).best_run().network);
  results.checks = check_merging(adapted, base, new_world.test);
  results.checks.push_back(
      check_reloading(adapted, new_world.test, base_path, options.output_dir / "adapter.safetensors"));
  results.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return results;
}

void print(const Results& results) {
  std::printf("\nTest accuracy of the pretrained network: %s as shipped, %s after the change\n\n",
              percent_text(results.accuracy_before).c_str(), percent_text(results.frozen_accuracy).c_str());
  std::printf("%s\n%s\n\n", plain_text(main_table(results)).c_str(), verdict(results).c_str());
  std::printf("Chosen on %s validation images, never on the test set, in brackets:\n%s\n",
              grouped_text(results.scale.validation_images).c_str(), plain_text(selection_table(results)).c_str());
  for (const auto& check : results.checks) {
    std::printf("%s  %s\n        %s\n", check.passed ? "ok    " : "FAILED", check.claim.c_str(),
                check.evidence.c_str());
  }
}

int compare_methods(const Options& options) {
  handle_signals();
  prepare_output_folder(options.output_dir);
  const World world = load_world(options, scale_for(options));
  const World new_world = changed(world);
  const Results results = run(options, world, new_world);
  print(results);
  const auto report_path = options.output_dir / "report.html";
  make_report(results, options, world.test, new_world.test).write(report_path);
  std::printf("\nReport: %s\n", report_path.c_str());
  if (!all_passed(results.checks)) {
    std::fprintf(stderr, "fashion_mnist: a check FAILED (see above)\n");
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Trains a network on Fashion-MNIST, changes its world (each image rotated by 90 degrees and inverted), "
      "and compares the frozen network, LoRA at ranks 1 to 16 and full fine-tuning.",
      "fashion_mnist");
  add_options(app, options);
  CLI11_PARSE(app, argc, argv);
  try {
    return compare_methods(options);
  } catch (const Interrupted& interruption) {
    std::fprintf(stderr, "fashion_mnist: interrupted; files written before are complete\n");
    return interruption.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fashion_mnist: %s\n", error.what());
    return 1;
  }
}
