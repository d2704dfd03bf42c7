// SPDX-License-Identifier: MIT
// The results of a comparison that nobody ran: LoRA at two ranks, DoRA and full fine-tuning on three classes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "sentence_encoder/results.hpp"

namespace examples::sentence_encoder::testing {

[[nodiscard]] inline RunResult made_run(const Method& method, double rate, std::uint64_t seed, double validation) {
  RunResult run;
  run.method = method;
  run.learning_rate = rate;
  run.seed = seed;
  run.steps_per_epoch = 10;
  run.stored_bytes = 1'250'000;
  run.state.step = 20;
  run.state.best_step = 10;
  run.state.best_score = validation;
  run.state.losses = {{1, 1.5}, {20, 0.5}};
  run.state.evaluations = {{10, validation}, {20, validation / 2}};
  return run;
}

/// Tried at two rates, the second chosen; one seed for each of `macro_f1`.
[[nodiscard]] inline MethodResult made_method(const Method& method, double validation,
                                              const std::vector<double>& macro_f1) {
  MethodResult one;
  one.method = method;
  one.tried = {{{made_run(method, 1e-3, 1, validation - 0.1)}}, {}};
  one.chosen = 1;
  for (const double score : macro_f1) {
    auto& seeds = one.tried[1].seeds;
    seeds.push_back(made_run(method, 3e-3, seeds.size() + 1, validation));
    one.scores.push_back({score, score + 0.1});
  }
  one.cost = {0.0125, method.full() ? 2'000'000 : 1'000 * method.rank, 90'000'000,
              method.full()                            ? 0U
              : method.weights == WeightFormat::scalar ? 20'000'000U
                                                       : 2'760'000U};
  return one;
}

/// LoRA r = 8 is the best rank; `adapter_scores` and `full_scores` are test macro-F1 over the seeds.
[[nodiscard]] inline Results made_results(const std::vector<double>& adapter_scores,
                                          const std::vector<double>& full_scores) {
  using enum MethodKind;
  Results results;
  results.scale.name = "default";
  results.scale.seeds = adapter_scores.size();
  results.classes = {"admin", "games", "<net>"};
  results.table_hash = 0xABC;
  results.train_texts = 3200;
  results.validation_texts = 700;
  results.test_texts = 2000;
  results.majority = {0.05, 0.2};
  results.frozen = {0.5, 0.6};
  results.frozen_cost = {0.0005, 1539, 70'000'000};
  results.probes = {{1e-3, Head(3, 4), {}, {}}, {1e-2, Head(3, 4), {}, {}}};
  results.probes[0].state.best_score = 0.48;
  results.probes[1].state.best_score = 0.49;
  results.chosen_probe = 1;
  results.methods = {made_method({lora, 2}, 0.5, adapter_scores), made_method({lora, 8}, 0.6, adapter_scores),
                     made_method({dora, 8}, 0.7, adapter_scores), made_method({full, 0}, 0.8, full_scores)};
  results.best_adapter = 1;
  results.confusion = ConfusionMatrix(3);
  for (const auto& [truth, answer] : std::vector<std::pair<Index, Index>>{{0, 0}, {0, 0}, {0, 2}, {1, 1}, {2, 2}}) {
    results.confusion.add(truth, answer);
  }
  results.without_own_name = {0.45, 0.55};
  results.share_with_own_name = 0.125;
  results.mistakes = {{"<b>a text</b> & more", "admin", "<net>", 0.875}};
  results.checks = {{"a claim that holds", true, "12 texts"}, {"a claim that does not", false, "3 texts"}};
  return results;
}

/// With LoRA r = 8 over NF4 too, which did best on validation.
[[nodiscard]] inline Results made_results_of_formats(const std::vector<double>& adapter_scores) {
  Results results = made_results({0.57}, {0.575});
  const Method method{MethodKind::lora, 8, WeightFormat::nf4};
  results.methods.insert(results.methods.end() - 1, made_method(method, 0.9, adapter_scores));
  return results;
}

}  // namespace examples::sentence_encoder::testing
