// SPDX-License-Identifier: MIT
// Trains every method on a task and measures what it learned and what it costs.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/interrupt.hpp"
#include "common/parallel_runs.hpp"
#include "common/progress.hpp"
#include "sentence_encoder/encoder_reader.hpp"
#include "sentence_encoder/job.hpp"
#include "sentence_encoder/results.hpp"
#include "sentence_encoder/tokenizer.hpp"

namespace examples::sentence_encoder {

/// Files as they are read.
struct Inputs {
  EncoderWeights<float> weights;
  LabelledTexts table;
  Task task;
};

/// Fails now rather than in a child process or after minutes of training. @throws lora::IoError, lora::FormatError
inline void check_inputs(const Options& options) {
  if (!std::filesystem::exists(options.model_dir)) {
    throw lora::IoError("sentence_encoder", options.model_dir.string(),
                        "the model's folder (fetch it with examples/sentence_encoder/fetch_model.sh, or name one with "
                        "--model-dir)",
                        "no such folder");
  }
  if (!std::filesystem::exists(options.data)) {
    throw lora::IoError("sentence_encoder", options.data.string(),
                        "a table of labelled texts (make it with examples/sentence_encoder/fetch_descriptions.sh, or "
                        "name one with --data)",
                        "no such file");
  }
  static_cast<void>(split(read_labelled_texts(options.data)));
}

/// @throws lora::IoError, lora::FormatError
[[nodiscard]] inline Inputs read_inputs(const Options& options, const TaskSizes& sizes) {
  const Tokenizer tokenizer(read_vocabulary(options.model_dir / "vocab.json"));
  Inputs inputs{read_encoder_weights(options.model_dir), read_labelled_texts(options.data), {}};
  inputs.task = make_task(inputs.table, sizes, [&](const std::string& text) { return tokenizer.encode(text); });
  return inputs;
}

/// How every method trains, but for its learning rate.
[[nodiscard]] inline FineTuningOptions training_options(const Scale& scale, double learning_rate, std::uint64_t seed) {
  FineTuningOptions options;
  options.epochs = scale.epochs;
  options.learning_rate = learning_rate;
  options.seed = seed;
  return options;
}

namespace detail {

/// Texts that a child process reads to measure a step.
inline constexpr TaskSizes timing_sizes = {320, 32, 32};

[[nodiscard]] inline StepCost method_cost(const Options& options, const Scale& scale, const Method& method) {
  return cost_in_child(method.name(), [&] {
    const Inputs inputs = read_inputs(options, timing_sizes);
    const Head head(inputs.task.class_count(), inputs.weights.projection.bias.size());
    const RunRequest request{method, training_options(scale, 1e-4, options.seed), inputs.weights, inputs.task, head,
                             {}};
    const StepTimes times = time_steps(request, scale.timed_steps);
    return StepCost{median(times.seconds), times.trainable_parameters, 0, times.frozen_bytes};
  });
}

/// The head's steps on embeddings that are there already.
[[nodiscard]] inline StepCost frozen_cost(const Options& options, const Scale& scale) {
  return cost_in_child("frozen encoder", [&] {
    using Clock = std::chrono::steady_clock;
    const Inputs inputs = read_inputs(options, timing_sizes);
    const FrozenEmbeddings embeddings = embed_task(inputs.weights, inputs.task, 1);
    Head head(inputs.task.class_count(), embeddings.train.cols());
    HeadOnEmbeddings on_task(head, embeddings.train, embeddings.validation, inputs.task);
    auto training_choice = training_options(scale, 1e-3, options.seed);
    training_choice.epochs = 1000;
    training_choice.evaluations_per_epoch = 0;
    FineTuning<HeadOnEmbeddings> training(on_task, inputs.task.train.count(), training_choice, "timing", {});
    std::vector<double> seconds;
    for (int step = 0; step < 50; ++step) {
      const auto begin = Clock::now();
      training.step();
      seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return StepCost{median(seconds), head.weight.value.size() + head.bias.value.size(), 0};
  });
}

/// A training run that is to be done.
struct PlannedRun {
  std::size_t method = 0;
  double learning_rate = 0;
  std::uint64_t seed = 0;
  RunResult* result = nullptr;
};

[[nodiscard]] inline std::string run_folder_name(const Method& method, double learning_rate, std::uint64_t seed) {
  return method.key() + "_rate" + lora::detail::number_text(learning_rate) + "_seed" + std::to_string(seed);
}

/// Whether run_folder_name gives this name to some run. Others keep their folders in one called runs too.
[[nodiscard]] inline bool is_run_folder_name(std::string_view name) {
  constexpr std::array<std::string_view, 4> begins = {"full_rate", "lora_r", "rslora_r", "dora_r"};
  if (std::ranges::none_of(begins, [&](std::string_view begin) { return name.starts_with(begin); })) return false;
  const auto rate = name.rfind("_rate");
  const auto seed = name.rfind("_seed");
  if (rate == std::string_view::npos || seed == std::string_view::npos || seed < rate) return false;
  const auto made_of = [](std::string_view text, std::string_view characters) {
    return !text.empty() && text.find_first_not_of(characters) == std::string_view::npos;
  };
  return made_of(name.substr(rate + 5, seed - rate - 5), "0123456789.e+-") &&
         made_of(name.substr(seed + 5), "0123456789");
}

[[nodiscard]] inline std::string note_of(const Method& method, const TrainingState& state, double loss,
                                         double steps_per_second) {
  return method.name() + ": step " + std::to_string(state.step) + ", loss " + fixed_text(loss, 3) + ", " +
         fixed_text(steps_per_second, 1) + " steps/s";
}

}  // namespace detail

/// Removes the folders of runs from `folder`, and nothing else. @throws std::filesystem::filesystem_error
inline void remove_runs(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> runs;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const bool own = entry.is_directory() && detail::is_run_folder_name(entry.path().filename().string());
    if (own && !entry.is_symlink()) runs.push_back(entry.path());
  }
  for (const auto& run : runs) std::filesystem::remove_all(run);
}

/// Cost of a step of the frozen encoder's head and of every method, each in a process of its own.
/// Call it before threads or MPI begin.
inline void measure_costs(const Options& options, Results& results) {
  Progress progress("Timing steps", static_cast<Index>(results.scale.methods.size()) + 1);
  results.frozen_cost = detail::frozen_cost(options, results.scale);
  progress.advance();
  for (const Method& method : results.scale.methods) {
    throw_if_interrupted();
    results.methods.push_back({});
    results.methods.back().method = method;
    results.methods.back().cost = detail::method_cost(options, results.scale, method);
    progress.advance();
  }
}

/// Training runs of a comparison, several at a time.
class Runs {
 public:
  Runs(const Options& options, const Scale& scale, const Inputs& inputs, const Head& head, const Job& job)
      : options_(&options), scale_(&scale), inputs_(&inputs), head_(&head), job_(&job) {}

  void add(std::size_t method, double learning_rate, std::uint64_t seed, RunResult& result) {
    planned_.push_back({method, learning_rate, seed, &result});
  }

  /// The longest runs first. @throws Interrupted, lora::Error
  void train(const std::string& label) {
    if (planned_.empty()) return;
    const Index batch = FineTuningOptions{}.batch_size;
    const Index steps = (inputs_->task.train.count() + batch - 1) / batch * scale_->epochs;
    Progress progress(label, static_cast<Index>(planned_.size()) * steps, job_->first() ? stderr : quiet_.get());
    // Ranks share one run at a time, as they meet in every step.
    parallel_runs(planned_.size(), job_->ranks > 1 ? 1 : options_->jobs, [&](std::size_t i) {
      const auto& planned = planned_[planned_.size() - 1 - i];
      Index reported = 0;
      *planned.result = train_one(planned, progress, reported);
      progress.skip(steps - reported);
    });
    planned_.clear();
  }

 private:
  // `reported` becomes the number of steps that progress knows of: none of a run that was finished before.
  [[nodiscard]] RunResult train_one(const detail::PlannedRun& planned, Progress& progress, Index& reported) const {
    using Clock = std::chrono::steady_clock;
    const Method& method = scale_->methods[planned.method];
    RunRequest request{method,           training_options(*scale_, planned.learning_rate, planned.seed),
                       inputs_->weights, inputs_->task,
                       *head_,           {}};
    request.folder =
        options_->output_dir / "runs" / detail::run_folder_name(method, planned.learning_rate, planned.seed);
    request.resume = options_->resume;
    request.share = job_->share_of_run();
    if (job_->first()) std::filesystem::create_directories(request.folder);
    auto last = Clock::now();
    request.on_step = [&](const TrainingState& state, double loss) {
      const auto now = Clock::now();
      const double rate = 1 / std::max(1e-9, std::chrono::duration<double>(now - std::exchange(last, now)).count());
      progress.advance(state.step - reported, detail::note_of(method, state, loss, rate));
      reported = state.step;
      throw_if_interrupted();
    };
    return run_method(request);
  }

  const Options* options_;
  const Scale* scale_;
  const Inputs* inputs_;
  const Head* head_;
  const Job* job_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> quiet_{std::fopen("/dev/null", "w"), &std::fclose};
  std::vector<detail::PlannedRun> planned_;
};

namespace detail {

inline void choose_by_validation(MethodResult& result) {
  result.chosen = 0;
  for (std::size_t i = 1; i < result.tried.size(); ++i) {
    if (result.tried[i].validation_score() > result.validation_score()) result.chosen = i;
  }
}

/// Of LoRA's ranks over float alone: rsLoRA, DoRA and other formats are compared, not chosen among.
[[nodiscard]] inline std::size_t best_adapter(const std::vector<MethodResult>& methods) {
  std::size_t best = methods.size();
  for (std::size_t m = 0; m < methods.size(); ++m) {
    if (!methods[m].method.plain_lora()) continue;
    if (best == methods.size() || methods[m].validation_score() > methods[best].validation_score()) {
      best = m;
    }
  }
  return best;
}

/// Whether a text says the name of its label, whole or in the singular, as a word.
[[nodiscard]] inline bool says_label(std::string_view text, std::string label) {
  const auto lower = [](unsigned char c) { return static_cast<char>(std::tolower(c)); };
  std::string words(text);
  std::transform(words.begin(), words.end(), words.begin(), lower);
  std::transform(label.begin(), label.end(), label.begin(), lower);
  if (label.size() > 1 && label.ends_with('s')) label.pop_back();
  const auto letter = [&](std::size_t i) {
    return i < words.size() && std::isalnum(static_cast<unsigned char>(words[i])) != 0;
  };
  for (std::size_t at = words.find(label); at != std::string::npos; at = words.find(label, at + 1)) {
    std::size_t end = at + label.size();
    if (end < words.size() && words[end] == 's') ++end;
    if ((at == 0 || !letter(at - 1)) && !letter(end)) return true;
  }
  return false;
}

[[nodiscard]] inline double softmax_of_answer(const lora::Matrix<float>& logits, Index row) {
  const float largest = logits.row(row).maxCoeff();
  return 1 / static_cast<double>((logits.row(row).array() - largest).exp().sum());
}

}  // namespace detail

/// The frozen encoder's head, at the rate that validation chooses.
inline void train_frozen(const Options& options, const Inputs& inputs, const Job& job, Results& results) {
  {
    std::optional<Progress> progress;
    if (job.first()) progress.emplace("Embedding texts with the frozen encoder, training its head", 1);
    const FrozenEmbeddings embeddings = embed_task(inputs.weights, inputs.task, options.jobs);
    results.probes = train_probes(inputs.task, embeddings, options.seed);
    if (progress) progress->advance();
  }
  for (std::size_t i = 1; i < results.probes.size(); ++i) {
    if (results.probes[i].state.best_score > results.probes[results.chosen_probe].state.best_score) {
      results.chosen_probe = i;
    }
  }
  const auto& answers = results.probes[results.chosen_probe].test_answers;
  results.frozen = scores_of(confusion(inputs.task.test.labels, answers, inputs.task.class_count()));
  const std::vector<std::uint8_t> majority(inputs.task.test.labels.size(), majority_class(inputs.task.train.labels));
  results.majority = scores_of(confusion(inputs.task.test.labels, majority, inputs.task.class_count()));
}

/// Every method at every rate with the first seed, then the chosen rates with the other seeds; where their mean falls
/// behind another rate, that one too: a rate that only the first seed liked is not kept.
inline void train_methods(const Options& options, const Inputs& inputs, const Job& job, Results& results) {
  const Scale& scale = results.scale;
  Head& head = results.probes[results.chosen_probe].head;
  job.take_first_ranks_values(head.parameters());
  Runs runs(options, scale, inputs, head, job);
  for (std::size_t m = 0; m < scale.methods.size(); ++m) {
    const auto& rates = scale.rates(scale.methods[m]);
    results.methods[m].tried.resize(rates.size());
    for (std::size_t i = 0; i < rates.size(); ++i) {
      auto& seeds = results.methods[m].tried[i].seeds;
      seeds.resize(1);
      runs.add(m, rates[i], options.seed, seeds[0]);
    }
  }
  runs.train("Adapting");
  for (bool settled = false; !settled; runs.train("Other seeds")) {
    settled = true;
    for (std::size_t m = 0; m < scale.methods.size(); ++m) {
      MethodResult& one = results.methods[m];
      detail::choose_by_validation(one);
      auto& seeds = one.tried[one.chosen].seeds;
      if (seeds.size() == scale.seeds) continue;
      settled = false;
      const double rate = one.best_run().learning_rate;
      seeds.resize(scale.seeds);
      for (std::size_t s = 1; s < scale.seeds; ++s) runs.add(m, rate, options.seed + s, seeds[s]);
    }
  }
  for (MethodResult& one : results.methods) {
    for (const RunResult& run : one.seeds()) {
      one.scores.push_back(scores_of(confusion(inputs.task.test.labels, run.test_answers, inputs.task.class_count())));
    }
  }
  results.best_adapter = detail::best_adapter(results.methods);
  results.ranks = job.ranks;
}

/// What the chosen adapter answers: confusion, and how it does where the text does not say the label.
inline void look_at_answers(const Inputs& inputs, Results& results) {
  const Task& task = inputs.task;
  const auto& answers = results.adapter().best_run().test_answers;
  results.confusion = confusion(task.test.labels, answers, task.class_count());
  ConfusionMatrix unnamed(task.class_count());
  Index named = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto& text = inputs.table.rows[static_cast<std::size_t>(task.test.rows[i])].text;
    if (detail::says_label(text, task.classes[task.test.labels[i]])) {
      ++named;
    } else {
      unnamed.add(task.test.labels[i], answers[i]);
    }
  }
  results.without_own_name = scores_of(unnamed);
  results.share_with_own_name = static_cast<double>(named) / static_cast<double>(answers.size());
}

}  // namespace examples::sentence_encoder
