// SPDX-License-Identifier: MIT
// Random configurations of every option, type and combination: what is read is written and read again as it was, and
// nothing is read that would not be honoured.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lora/io/peft_config.hpp"
#include "lora/io/peft_config_writer.hpp"

namespace lora::peft_config_property_test {
namespace {

using nlohmann::json;

/// Values of one key, and those among them that nobody may accept.
struct Option {
  std::string key;
  std::vector<json> good;
  std::vector<json> bad;
};

const std::vector<Option>& options() {
  const json names{"q_proj", "v_proj", "layers.0.up"};
  const std::vector<json> flags{true, false, nullptr};
  const std::vector<json> no_flags{1, 0, "true", json::array(), json::object()};
  const std::vector<json> texts{nullptr, "", "text", "\u00e9\"\\\n"};
  const std::vector<json> no_texts{1, true, json::array(), json::object()};
  const std::vector<json> off{nullptr, false, 0, "", json::array(), json::object()};
  static const std::vector<Option> all{
      {"r", {nullptr, 1, 8, 64}, {0, -1, 8.5, "8", true, 18446744073709551615U, json::array()}},
      {"lora_alpha", {nullptr, 1, 16, 0.5, -3, 0, 1e300}, {"16", true, json::object()}},
      {"lora_dropout", {nullptr, 0, 0.0, 0.1, 0.5}, {-0.1, 1, 1.5, "0", false}},
      {"fan_in_fan_out", flags, no_flags},
      {"use_rslora", flags, no_flags},
      {"use_dora", flags, no_flags},
      {"lora_bias", flags, no_flags},
      {"bias", {nullptr, "none", "all", "lora_only"}, {"some", "", false, 1}},
      {"init_lora_weights",
       {nullptr, true, false, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16", "eva", "mica"},
       {"corda", "loftq", "lora_ga", "xavier", "", "pissa_niter_", "pissa_niter_x", 1, json::array()}},
      {"target_modules",
       {nullptr, names, json::array(), "q_proj", R"(.*\.(q|v)_proj$)", "all-linear", "ALL-LINEAR", ""},
       {1, true, {"q", 1}, {nullptr}, json::object(), json::array({names})}},
      {"exclude_modules", {nullptr, names, json::array(), "lm_head", ""}, {1, {"q", 1}, json::object()}},
      {"layers_to_transform", {nullptr, 0, 3, json::array(), {0, 2, 5}}, {"0", {0, "1"}, 1.5, true, {{0}}}},
      {"layers_pattern", {nullptr, "layers", "", json::array(), {"layers", "h"}}, {1, {1}, json::object()}},
      {"rank_pattern",
       {nullptr, json::object(), {{"q_proj", 4}}, {{"^a.b$", 1}, {"c", 64}}},
       {json::array({"q"}), "q", {{"q", 0}}, {{"q", -1}}, {{"q", 1.5}}, {{"q", "1"}}, {{"q", nullptr}}}},
      {"alpha_pattern",
       {nullptr, json::object(), {{"q_proj", 4}}, {{"a", 0.5}, {"b", -2}}},
       {json::array(), {{"q", "1"}}, {{"q", {1}}}}},
      {"modules_to_save", {nullptr, json::array(), {"head", "lm_head"}}, {"head", {1}, json::object()}},
      {"base_model_name_or_path", texts, no_texts},
      {"revision", texts, no_texts},
      {"task_type", {nullptr, "CAUSAL_LM", "SEQ_CLS"}, no_texts},
      {"auto_mapping",
       {nullptr, {{"base_model_class", "C"}, {"parent_library", "l"}}, {{"base_model_class", nullptr}}, {{"x", 1}}},
       {1, "C", json::array(), {{"parent_library", 1}}}},
      // Of other algorithms.
      {"alora_invocation_tokens", off, {{1, 2}}},
      {"arrow_config", off, {{{"top_k", 3}}}},
      {"layer_replication", off, {{{0, 4}, {2, 5}}}},
      {"megatron_config", off, {{{"a", 1}}}},
      {"target_parameters", off, {{"experts.w"}, "w"}},
      {"trainable_token_indices", off, {{1}, {{"embed", {1}}}}},
      {"use_bdlora", off, {{{"nblocks", 2}}}},
      {"ensure_weight_tying", off, {true}},
      {"kasa_config", {nullptr}, {json::object(), {{"beta", 1}}, false}},
      {"monteclora_config", {nullptr}, {json::object(), {{"num_samples", 8}}}},
      // Of the training, or of nothing.
      {"velora_config", {nullptr, json::object(), {{"scale", 1}}}, {1, true, "x", json::array()}},
      {"eva_config", {nullptr, json::object(), {{"rho", 2}}}, {}},
      {"corda_config", {nullptr, json::object(), {{"corda_method", "ipm"}}}, {}},
      {"loftq_config", {nullptr, json::object(), {{"loftq_bits", 4}}}, {}},
      {"lora_ga_config", {nullptr, json::object(), {{"scale", "unit"}}}, {}},
      {"inference_mode", flags, {}},
      {"megatron_core", {nullptr, "megatron.core"}, {}},
      {"use_qalora", flags, no_flags},
      {"qalora_group_size", {16, 32, nullptr}, {"16", 1.5}},
      {"runtime_config", {nullptr, {{"ephemeral_gpu_offload", false}}}, {}},
      {"peft_version", {"0.18.0", "0.20.1.dev0@UNKNOWN", nullptr}, {}},
      // Of the first versions.
      {"enable_lora", off, {{true, false, true}, true}},
      {"merge_weights", flags, {}},
      // Of no version.
      {"zeta", {1, nullptr, {1, {2, {3}}}, {{"a", {{"b", 1}}}}, "text"}, {}},
  };
  return all;
}

struct Generated {
  json config;
  bool bad = false;
};

Generated generate(std::mt19937& random) {
  const auto below = [&](std::size_t count) {
    return std::uniform_int_distribution<std::size_t>(0, count - 1)(random);
  };
  const auto one_of = [&](const std::vector<json>& values) { return values[below(values.size())]; };
  Generated result{{{"peft_type", "LORA"}}, false};
  const std::size_t density = 1 + below(4);
  const bool may_be_bad = below(2) == 0;
  for (const Option& option : options()) {
    if (below(density) != 0) continue;
    const bool bad = may_be_bad && !option.bad.empty() && below(12) == 0;
    result.config[option.key] = one_of(bad ? option.bad : option.good);
    result.bad = result.bad || bad;
  }
  return result;
}

bool is_empty(const json& config, const char* key) {
  const auto found = config.find(key);
  return found == config.end() || found->is_null() || (found->is_array() && found->empty()) || *found == "";
}

/// What PEFT's LoraConfig refuses in values that are good by themselves.
bool contradicts_itself(const json& config) {
  const auto set = [&](const char* key) { return config.value(key, json()) == true; };
  const json start = config.value("init_lora_weights", json());
  const json target = config.value("target_modules", json());
  const bool layers = !is_empty(config, "layers_to_transform");
  const json rank = config.value("r", json(8));
  const bool odd = rank.is_number_integer() && rank.get<std::int64_t>() % 2 != 0;
  const bool from_weight = start.is_string() && (start.get<std::string>().starts_with("pissa") || start == "olora");
  return (set("use_qalora") && (set("use_dora") || set("lora_bias") || from_weight)) ||
         (start == "orthogonal" && odd) || (set("lora_bias") && set("use_dora")) ||
         (set("lora_bias") && start.is_string()) || (target.is_string() && layers) ||
         (!is_empty(config, "layers_pattern") && !layers);
}

json with_default(const json& config, const char* key, const json& otherwise) {
  const json value = config.value(key, json());
  return value.is_null() ? otherwise : value;
}

void expect_read_as_written(const json& config, const LoraModelConfig& read) {
  EXPECT_EQ(read.lora.rank, with_default(config, "r", 8).get<Index>());
  EXPECT_EQ(read.lora.alpha, with_default(config, "lora_alpha", 8).get<double>());
  EXPECT_EQ(read.lora.dropout, with_default(config, "lora_dropout", 0).get<double>());
  EXPECT_EQ(read.lora.use_dora, with_default(config, "use_dora", false).get<bool>());
  EXPECT_EQ(read.lora.group_size(), with_default(config, "use_qalora", false).get<bool>()
                                        ? with_default(config, "qalora_group_size", 16).get<Index>()
                                        : 0);
  EXPECT_EQ(read.lora.use_rslora, with_default(config, "use_rslora", false).get<bool>());
  EXPECT_EQ(read.lora.lora_bias, with_default(config, "lora_bias", false).get<bool>());
  EXPECT_EQ(read.lora.fan_in_fan_out, with_default(config, "fan_in_fan_out", false).get<bool>());
  EXPECT_EQ(read.rank_pattern.size(), with_default(config, "rank_pattern", json::object()).size());
  for (const auto& [key, rank] : read.rank_pattern) EXPECT_EQ(config.at("rank_pattern").at(key), rank);
  EXPECT_EQ(read.alpha_pattern.size(), with_default(config, "alpha_pattern", json::object()).size());
  for (const auto& [key, alpha] : read.alpha_pattern) EXPECT_EQ(config.at("alpha_pattern").at(key), alpha);
  EXPECT_EQ(json(read.modules_to_save), with_default(config, "modules_to_save", json::array()));
  EXPECT_EQ(read.base_model_name_or_path, with_default(config, "base_model_name_or_path", "").get<std::string>());
  EXPECT_EQ(read.task_type, with_default(config, "task_type", "").get<std::string>());
}

/// The number of warnings: one for what is not known and for what concerns the training alone.
std::size_t expected_warnings(const json& config) {
  const json start = config.value("init_lora_weights", json());
  return (config.contains("zeta") ? 1U : 0U) + (config.value("velora_config", json()).is_object() ? 1U : 0U) +
         (start == "eva" || start == "mica" ? 1U : 0U);
}

TEST(PeftConfigProperty, WhatIsReadIsWrittenAndReadAgainAndNothingElseIsRead) {
  std::mt19937 random(1);
  std::size_t taken = 0;
  for (int i = 0; i < 2000; ++i) {
    const Generated made = generate(random);
    const bool refused = made.bad || contradicts_itself(made.config);
    PeftConfig read;
    try {
      read = parse_peft_config(made.config.dump());
    } catch (const Error& error) {
      ASSERT_TRUE(refused) << error.what() << "\n" << made.config.dump(2);
      continue;
    }
    ASSERT_FALSE(refused) << made.config.dump(2);
    ++taken;
    expect_read_as_written(made.config, read.config);
    EXPECT_EQ(read.warnings.size(), expected_warnings(made.config)) << made.config.dump(2);
    const std::string text = peft_config_text(read.config);
    const PeftConfig again = parse_peft_config(text);
    EXPECT_EQ(again.warnings, std::vector<std::string>());
    ASSERT_EQ(peft_config_text(again.config), text) << made.config.dump(2);
    if (::testing::Test::HasFailure()) FAIL() << made.config.dump(2);
  }
  EXPECT_GT(taken, 250U);
}

TEST(PeftConfigProperty, EveryValueThatNobodyMayAcceptIsRefusedAlone) {
  for (const Option& option : options()) {
    for (const json& value : option.bad) {
      const json config{{"peft_type", "LORA"}, {option.key, value}};
      EXPECT_THROW(static_cast<void>(parse_peft_config(config.dump())), Error) << config;
    }
  }
}

TEST(PeftConfigProperty, MutatedTextsEndInAConfigurationOrAnError) {
  std::mt19937 random(2);
  const auto below = [&](std::size_t count) {
    return std::uniform_int_distribution<std::size_t>(0, count - 1)(random);
  };
  constexpr std::string_view bytes = "{}[]\",:0123456789.-+eEtfn\\ \0\x80\xC3";
  for (int i = 0; i < 2000; ++i) {
    std::string text = generate(random).config.dump();
    for (std::size_t edits = 1 + below(3); edits-- > 0 && !text.empty();) {
      const std::size_t place = below(text.size());
      switch (below(4)) {
        case 0:
          text.erase(place, 1 + below(8));
          break;
        case 1:
          text.insert(place, 1, bytes[below(bytes.size())]);
          break;
        case 2:
          text[place] = bytes[below(bytes.size())];
          break;
        default:
          text.insert(place, text.substr(below(text.size()), below(20)));
      }
    }
    try {
      const PeftConfig read = parse_peft_config(text);
      const std::string written = peft_config_text(read.config);
      ASSERT_EQ(peft_config_text(parse_peft_config(written).config), written) << text;
    } catch (const Error& error) {
      ASSERT_NE(std::string(error.what()), "");
    }
  }
}

}  // namespace
}  // namespace lora::peft_config_property_test
