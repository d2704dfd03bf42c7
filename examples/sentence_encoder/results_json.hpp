// SPDX-License-Identifier: MIT
// The results of a comparison as JSON.
#pragma once

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "lora/io/atomic_file.hpp"
#include "sentence_encoder/results.hpp"

namespace examples::sentence_encoder {

namespace detail {

[[nodiscard]] inline nlohmann::ordered_json json_of(const Scores& scores) {
  return {{"macro_f1", scores.macro_f1}, {"accuracy", scores.accuracy}};
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const StepCost& cost) {
  return {{"step_seconds", cost.median_seconds},
          {"peak_resident_bytes", cost.peak_bytes},
          {"trainable_parameters", cost.trainable_parameters},
          {"frozen_weight_bytes", cost.frozen_bytes}};
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const RunResult& run) {
  nlohmann::ordered_json json = {{"learning_rate", run.learning_rate},
                                 {"seed", run.seed},
                                 {"validation_macro_f1", run.validation_score()},
                                 {"best_step", run.state.best_step},
                                 {"steps", run.state.step},
                                 {"stored_bytes", run.stored_bytes},
                                 {"seconds", run.seconds}};
  const auto values = [](const std::vector<StepValue>& of) {
    auto list = nlohmann::ordered_json::array();
    for (const auto& value : of) list.push_back({value.step, value.value});
    return list;
  };
  json["losses"] = values(run.state.losses);
  json["evaluations"] = values(run.state.evaluations);
  return json;
}

[[nodiscard]] inline nlohmann::ordered_json json_of(const MethodResult& one) {
  nlohmann::ordered_json json = {{"name", one.method.name()}, {"cost", json_of(one.cost)}};
  if (!one.method.full()) {
    json["frozen_weights"] = name_of(one.method.weights);
    json["can_be_merged_into"] = can_be_merged_into(one.method.weights);
  }
  json["chosen_learning_rate"] = one.best_run().learning_rate;
  for (const auto& rate : one.tried) {
    for (const auto& run : rate.seeds) json["tried"].push_back(json_of(run));
  }
  for (std::size_t s = 0; s < one.seeds().size(); ++s) {
    auto test = json_of(one.scores[s]);
    test["seed"] = one.seeds()[s].seed;
    json["test"].push_back(test);
  }
  return json;
}

}  // namespace detail

[[nodiscard]] inline std::string hash_text(std::uint64_t hash) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

[[nodiscard]] inline std::string results_json(const Results& results) {
  nlohmann::ordered_json json = {
      {"scale", results.scale.name},
      {"table_fnv1a_64", hash_text(results.table_hash)},
      {"texts",
       {{"train", results.train_texts}, {"validation", results.validation_texts}, {"test", results.test_texts}}},
      {"classes", results.classes},
      {"majority", detail::json_of(results.majority)}};
  json["frozen"] = detail::json_of(results.frozen);
  json["frozen"]["cost"] = detail::json_of(results.frozen_cost);
  for (const auto& one : results.methods) json["methods"].push_back(detail::json_of(one));
  json["best_adapter"] = results.adapter().method.name();
  json["gap_to_full_in_points"] = gap_in_points(results);
  json["gain_over_frozen_in_points"] = gain_in_points(results);
  json["without_own_name"] = detail::json_of(results.without_own_name);
  for (const auto& check : results.checks) {
    json["checks"].push_back({{"claim", check.claim}, {"passed", check.passed}, {"evidence", check.evidence}});
  }
  json["seconds"] = results.seconds;
  return json.dump(1) + "\n";
}

/// All of it or nothing. @throws lora::IoError
inline void write_text(const std::filesystem::path& path, const std::string& text) {
  lora::AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace examples::sentence_encoder
