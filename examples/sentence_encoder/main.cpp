// SPDX-License-Identifier: MIT
// Adapts a pretrained sentence encoder to a task of labelled texts, and compares: frozen, LoRA, DoRA, rsLoRA, full
// fine-tuning. Also embeds and classifies texts.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>

#include "common/interrupt.hpp"
#include "sentence_encoder/adapter_checks.hpp"
#include "sentence_encoder/classify_command.hpp"
#include "sentence_encoder/comparison.hpp"
#include "sentence_encoder/embed.hpp"
#include "sentence_encoder/job.hpp"
#include "sentence_encoder/options.hpp"
#include "sentence_encoder/page.hpp"
#include "sentence_encoder/traffic_table.hpp"

namespace {

using namespace examples;                    // NOLINT: the program's own namespaces
using namespace examples::sentence_encoder;  // NOLINT

const auto program_start = std::chrono::steady_clock::now();

/// Fails now rather than after minutes of training.
void prepare_output_folder(const Options& options) {
  const auto& folder = options.output_dir;
  try {
    std::filesystem::create_directories(folder / "runs");
    if (!options.resume) remove_runs(folder / "runs");
    const lora::AtomicFile probe(folder / "report.html");
  } catch (const std::exception& error) {
    throw lora::IoError("output folder", folder.string(), "a folder to write to (choose one with --output-dir)",
                        error.what());
  }
}

/// The methods with the cost of a step each, if rank 0 has measured it.
Results start_results(const Options& options, bool measure) {
  Results results;
  results.scale = scale_for(options);
  if (measure) {
    measure_costs(options, results);
  } else {
    for (const Method& method : results.scale.methods) results.methods.push_back({method, {}, 0, {}, {}});
  }
  return results;
}

void train_all(const Options& options, const Job& job, const Inputs& inputs, Results& results) {
  results.classes = inputs.task.classes;
  results.table_hash = inputs.task.table_hash;
  results.train_texts = inputs.task.train.count();
  results.validation_texts = inputs.task.validation.count();
  results.test_texts = inputs.task.test.count();
  std::string weights;
  for (const WeightFormat format : options.weights) weights.append(" ").append(name_of(format));
  job.require_agreement("table", hash_text(results.table_hash));
  job.require_agreement("model", hash_text(inputs.weights.hash) + ", tokens " + hash_text(inputs.task.token_hash()));
  job.require_agreement("options", results.scale.name + ", epochs " + std::to_string(results.scale.epochs) + ", seed " +
                                       std::to_string(options.seed) + ", weights" + weights +
                                       (options.resume ? ", resumed" : ""));
  if (job.first()) {
    std::fprintf(stderr, "%s texts to train (%s scale), %s to validate, %s to test, %zu classes\n",
                 grouped_text(results.train_texts).c_str(), results.scale.name.c_str(),
                 grouped_text(results.validation_texts).c_str(), grouped_text(results.test_texts).c_str(),
                 results.classes.size());
  }
  train_frozen(options, inputs, job, results);
  train_methods(options, inputs, job, results);
  results.reductions = job.measure_reductions();
}

void print(const Results& results) {
  std::printf("\n%s\n%s\n\n", plain_text(main_table(results)).c_str(), verdict(results).c_str());
  for (const auto& check : results.checks) {
    std::printf("%s  %s\n        %s\n", check.passed ? "ok    " : "FAILED", check.claim.c_str(),
                check.evidence.c_str());
  }
  if (results.ranks > 1) {
    std::printf("\n%s\n%s\n", plain_text(traffic_table(results)).c_str(), traffic_note(results).c_str());
  }
  if (results.scale.name != "full") {
    std::printf("\nA subset of the texts, one seed (%s scale); --full takes all, with three seeds.\n",
                results.scale.name.c_str());
  }
}

/// Whether every check holds.
bool report(const Options& options, const Inputs& inputs, Results& results) {
  look_at_answers(inputs, results);
  const RunResult& run = results.adapter().best_run();
  check_adapter(inputs,
                options.output_dir / "runs" /
                    examples::sentence_encoder::detail::run_folder_name(run.method, run.learning_rate, run.seed),
                options.output_dir / "adapter", results);
  check_formats(inputs, options.output_dir / "runs", results);
  results.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - program_start).count();
  print(results);
  write_text(options.output_dir / "results.json", results_json(results));
  const auto report_path = options.output_dir / "report.html";
  make_report(results, options).write(report_path);
  std::printf("\nReport: %s\nTry:    echo 'a game of cards' | build/bin/sentence_encoder classify --adapter %s\n",
              report_path.c_str(), (options.output_dir / "adapter").c_str());
  return std::all_of(results.checks.begin(), results.checks.end(), [](const Check& check) { return check.passed; });
}

int train_command(const Options& options, const Job& job, Results& results) {
  const Inputs inputs = read_inputs(options, results.scale.sizes);
  train_all(options, job, inputs, results);
  if (!job.first() || report(options, inputs, results)) return 0;
  std::fprintf(stderr, "sentence_encoder: a check FAILED (see above)\n");
  return 1;
}

/// The exit code of `body`, or that of the signal that stopped it.
template <class Body>
int stoppable(bool speaks, const Body& body) {
  try {
    return body();
  } catch (const Interrupted& interruption) {
    if (speaks) {
      std::fprintf(stderr, "sentence_encoder: interrupted; to continue, use the same options and --resume\n");
    }
    return interruption.exit_code();
  }
}

int start_training(const Options& options, int argc, char** argv) {
  handle_signals();
  check_inputs(options);
  const LaunchedAs launched = launched_as();
  if (launched.rank == 0) prepare_output_folder(options);
  Results results = start_results(options, launched.rank == 0);
  if (launched.ranks == 1) return train_command(options, Job{}, results);
  return run_as_job(argc, argv, [&](const Job& job) {
    return stoppable(job.first(), [&] { return train_command(options, job, results); });
  });
}

/// The exit code of `body`, or the one for what it throws.
template <class Body>
int guarded(const Body& body) {
  try {
    return stoppable(true, body);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sentence_encoder: %s\n", error.what());
    return 1;
  }
}

CLI::App* add_classify(CLI::App& app, ClassifyOptions& options) {
  auto* command = app.add_subcommand("classify", "Label texts: arguments, or lines of standard input");
  command->add_option("text", options.texts, "Texts to label");
  command->add_option("--adapter", options.adapter, "Folder with an adapter, its head and labels.json")
      ->capture_default_str();
  command->add_option("--model-dir", options.model_dir, "Folder of the model")->capture_default_str();
  command->add_flag("--merged", options.merged, "Merge the adapter into the weights first");
  command->footer(
      "Prints label, confidence and text, separated by tabs, and the latency to standard error.\n"
      "Example: echo 'a game of cards' | build/bin/sentence_encoder classify --merged");
  return command;
}

CLI::App* add_embed(CLI::App& app, std::filesystem::path& model_dir) {
  auto* command = app.add_subcommand("embed", "Read one text per line, print one JSON array of 512 numbers per line");
  command->add_option("--model-dir", model_dir, "Folder of the model")->capture_default_str();
  command->footer("Example: echo 'a game of cards' | build/bin/sentence_encoder embed");
  return command;
}

CLI::App* add_train(CLI::App& app, Options& options) {
  auto* command = app.add_subcommand("train", "Compare the ways of adapting the encoder (the default command)");
  add_options(*command, options);
  command->footer("Example: build/bin/sentence_encoder train --data mine.tsv --output-dir mine");
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  ClassifyOptions classify;
  std::filesystem::path embed_model = options.model_dir;
  CLI::App app(
      "Adapts a pretrained sentence encoder to labelled texts, Debian's package descriptions by default, and compares "
      "the frozen encoder, LoRA, DoRA, rsLoRA and full fine-tuning on held-out texts.",
      "sentence_encoder");
  add_options(app, options);
  app.footer("Example: build/bin/sentence_encoder --quick");
  app.require_subcommand(0, 1);
  const auto* train = add_train(app, options);
  const auto* classify_app = add_classify(app, classify);
  const auto* embed = add_embed(app, embed_model);
  static_cast<void>(train);
  CLI11_PARSE(app, argc, argv);
  std::ios::sync_with_stdio(false);
  return guarded([&] {
    if (classify_app->parsed()) {
      run_classify_command(classify, std::cin, std::cout, std::cerr);
      return 0;
    }
    if (embed->parsed()) {
      embed_standard_input(embed_model);
      return 0;
    }
    return start_training(options, argc, argv);
  });
}
