// SPDX-License-Identifier: MIT
// What a model's configuration means for a module, with PEFT's own answers as oracle: golden/module_matching.json holds
// what its functions check_target_module_exists and get_pattern_key return, and golden/adapter_* which modules it
// adapted.
#include "lora/model/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/tells_apart.hpp"

namespace lora {
namespace {

using Names = std::vector<std::string>;

nlohmann::json peft_answers() {
  std::ifstream file(std::filesystem::path(LORA_GOLDEN_DIR) / "module_matching.json");
  return nlohmann::json::parse(file);
}

ModuleSelector selector(const nlohmann::json& config, const char* key) {
  if (!config.contains(key)) return {};
  const nlohmann::json& value = config.at(key);
  return value.is_string() ? ModuleSelector::matching(value) : ModuleSelector::listed(value.get<Names>());
}

template <class T>
std::vector<T> one_or_many(const nlohmann::json& config, const char* key) {
  if (!config.contains(key) || config.at(key) == "") return {};
  const nlohmann::json& value = config.at(key);
  return value.is_array() ? value.get<std::vector<T>>() : std::vector<T>{value.get<T>()};
}

LoraModelConfig config_of(const nlohmann::json& json) {
  LoraModelConfig config;
  config.target_modules = selector(json, "target_modules");
  config.exclude_modules = selector(json, "exclude_modules");
  config.layers_to_transform = one_or_many<Index>(json, "layers_to_transform");
  config.layers_pattern = one_or_many<std::string>(json, "layers_pattern");
  config.modules_to_save = one_or_many<std::string>(json, "modules_to_save");
  return config;
}

TEST(ModuleMatcher, TargetsWhatPeftTargets) {
  const nlohmann::json answers = peft_answers();
  ASSERT_GT(answers.at("cases").size(), 100U);
  for (const auto& answer : answers.at("cases")) {
    SCOPED_TRACE(answer.at("config").dump());
    const LoraModelConfig config = config_of(answer.at("config"));
    const ModuleMatcher matcher(config);
    Names targeted;
    Names excluded;
    for (const std::string name : answers.at("names")) {
      if (matcher.targets(name)) targeted.push_back(name);
      if (matcher.excludes(name)) excluded.push_back(name);
      EXPECT_EQ(targets(config, name), matcher.targets(name)) << name;
    }
    EXPECT_EQ(targeted, answer.at("targeted").get<Names>());
    EXPECT_EQ(excluded, answer.at("excluded").get<Names>());
  }
}

TEST(ModuleMatcher, ThePatternKeyIsTheOneThatPeftFinds) {
  const nlohmann::json answers = peft_answers();
  for (const auto& answer : answers.at("patterns")) {
    const auto keys = answer.at("keys").get<Names>();
    SCOPED_TRACE(answer.at("keys").dump());
    LoraModelConfig config;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      config.rank_pattern.emplace_back(keys[i], 100 + static_cast<Index>(i));
      config.alpha_pattern.emplace_back(keys[i], 1000.5 + static_cast<double>(i));
    }
    for (const std::string name : answers.at("names")) {
      const LoraConfig lora = config_for(config, name);
      Index rank = config.lora.rank;
      double alpha = config.lora.alpha;
      if (answer.at("matched").contains(name)) {
        const std::string key = answer.at("matched").at(name);
        const auto position = std::find(keys.begin(), keys.end(), key) - keys.begin();
        rank = 100 + position;
        alpha = 1000.5 + static_cast<double>(position);
      }
      EXPECT_EQ(lora.rank, rank) << name;
      EXPECT_EQ(lora.alpha, alpha) << name;
    }
  }
}

TEST(ConfigFor, KeepsEveryOtherOption) {
  LoraModelConfig config{.lora = {.rank = 4, .alpha = 8, .dropout = 0.25, .use_rslora = true}};
  config.rank_pattern = {{"q", 16}};
  const LoraConfig lora = config_for(config, "model.q");
  EXPECT_EQ(lora.rank, 16);
  EXPECT_EQ(lora.alpha, 8);
  EXPECT_EQ(lora.dropout, 0.25);
  EXPECT_EQ(lora.scaling(), 2);  // 8 / sqrt(16)
  EXPECT_EQ(config_for(config, "model.v").rank, 4);
}

TEST(ConfigFor, AKeyThatDoesNotMatchItselfIsFoundByItsOwnName) {
  LoraModelConfig config;
  config.rank_pattern = {{"a+b", 3}};
  EXPECT_EQ(config_for(config, "a+b").rank, 3);
  EXPECT_EQ(config_for(config, "x.aab").rank, 3);
}

TEST(ModuleMatcher, SavesWhatStandsInAModuleToSaveAndWhatEndsLikeOne) {
  LoraModelConfig config;
  config.modules_to_save = {"head", "model.norm"};
  const ModuleMatcher matcher(config);
  testing::tells_apart([&](const std::string& name) { return matcher.saves(name); },
                       {"head", "model.head.dense", "model.norm", "lm_head", "lm_head.dense"}, {"header", "model", ""});
}

// A name of n parts is compared n times with each of them.
TEST(ModuleMatcher, LongModulesToSaveAreNotComparedForEver) {
  std::string name;
  for (int i = 0; i < 100000; ++i) name += "a.";
  LoraModelConfig config;
  config.modules_to_save = {name.substr(0, 100000) + "b"};
  EXPECT_THROW(static_cast<void>(ModuleMatcher(config).saves(name)), ConfigError);
}

// PEFT reads modules_to_save as expressions where it excludes, and as ends of names where it trains.
TEST(ModuleMatcher, AModuleToSaveThatMatchesOnlyAsAnExpressionIsExcludedAndNotSaved) {
  LoraModelConfig config;
  config.target_modules = {"hx0"};
  config.modules_to_save = {"h.0"};
  const ModuleMatcher matcher(config);
  EXPECT_FALSE(matcher.targets("hx0"));
  EXPECT_TRUE(matcher.excludes("hx0"));
  EXPECT_FALSE(matcher.saves("hx0"));
  EXPECT_TRUE(matcher.excludes("h.0"));
  EXPECT_TRUE(matcher.saves("h.0"));
}

TEST(ModuleMatcher, AllLinearTakesLinearLayersButThoseExcludedOrSaved) {
  LoraModelConfig config;
  config.target_modules = ModuleSelector::all_linear();
  config.exclude_modules = {"lm_head"};
  config.modules_to_save = {"score"};
  const ModuleMatcher matcher(config);
  EXPECT_TRUE(matcher.targets("model.q", true));
  EXPECT_FALSE(matcher.targets("model.q", false));
  EXPECT_FALSE(matcher.targets("lm_head", true));
  EXPECT_FALSE(matcher.targets("score", true));
}

TEST(CheckConfig, RefusesWhatPeftRefuses) {
  const auto refused = [](auto change) {
    LoraModelConfig config;
    config.target_modules = {"q"};
    change(config);
    try {
      check_config("test", config);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refused([](LoraModelConfig&) {}), "");
  EXPECT_EQ(refused([](LoraModelConfig& c) { c.layers_to_transform = {1}; }), "");
  EXPECT_EQ(refused([](LoraModelConfig& c) {
              c.target_modules = ModuleSelector::matching("q");
              c.layers_to_transform = {1};
            }),
            "test: layers_to_transform: expected target_modules to be a list of names with it, got a pattern or "
            "all-linear");
  EXPECT_EQ(refused([](LoraModelConfig& c) { c.layers_pattern = {"layers"}; }),
            "test: layers_pattern: expected layers_to_transform with it, got none");
  EXPECT_EQ(refused([](LoraModelConfig& c) {
              c.rank_pattern = {{"q", 0}};
            }),
            "test: rank_pattern \"q\": expected 1 or more, got 0");
  EXPECT_EQ(refused([](LoraModelConfig& c) {
              c.alpha_pattern = {{"q", HUGE_VAL}};
            }),
            "test: alpha_pattern \"q\": expected a finite number, got inf");
  EXPECT_EQ(refused([](LoraModelConfig& c) { c.lora.dropout = 2; }),
            "test: dropout: expected a probability in [0, 1), got 2");
}

TEST(ModuleMatcher, AnExpressionThatIsNoneIsNamedWithItsOption) {
  const auto error = [](auto change) {
    LoraModelConfig config;
    change(config);
    try {
      const ModuleMatcher matcher(config);
    } catch (const ConfigError& caught) {
      return std::string(caught.what());
    }
    return std::string();
  };
  const auto mentions = [](const std::string& text, const std::string& option) {
    return text.find(option + ": expected a regular expression") != std::string::npos &&
           text.find("\"(x\"") != std::string::npos;
  };
  EXPECT_TRUE(mentions(error([](auto& c) { c.target_modules = ModuleSelector::matching("(x"); }), "target_modules"));
  EXPECT_TRUE(mentions(error([](auto& c) { c.exclude_modules = ModuleSelector::matching("(x"); }), "exclude_modules"));
  EXPECT_TRUE(mentions(error([](auto& c) { c.modules_to_save = {"(x"}; }), "modules_to_save"));
  EXPECT_TRUE(mentions(error([](auto& c) { c.rank_pattern = {{"(x", 1}}; }), "rank_pattern"));
  EXPECT_TRUE(mentions(error([](auto& c) { c.alpha_pattern = {{"(x", 1}}; }), "alpha_pattern"));
  EXPECT_TRUE(mentions(error([](auto& c) {
                         c.layers_to_transform = {1};
                         c.layers_pattern = {"(x"};
                       }),
                       "layers_pattern"));
}

const Names model{"model.embed", "model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj", "head"};

TEST(ResolveTargets, KeepsTheOrderOfTheModel) {
  LoraModelConfig config;
  config.target_modules = {"v_proj", "q_proj"};
  const TargetedModules resolved = resolve_targets(config, model);
  EXPECT_EQ(resolved.names, (Names{"model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj"}));
  EXPECT_EQ(resolved.warnings, Names());
}

TEST(ResolveTargets, AsksWhichModulesAreLinear) {
  LoraModelConfig config;
  config.target_modules = ModuleSelector::all_linear();
  const auto linear = [](std::string_view name) { return name.ends_with("_proj"); };
  EXPECT_EQ(resolve_targets(config, model, linear).names.size(), 3U);
  EXPECT_EQ(resolve_targets(config, model).names, model);
}

TEST(ResolveTargets, NamesThatMatchNothingComeBackAsWarnings) {
  LoraModelConfig config;
  config.target_modules = {"q_proj", "k_proj", "layers.3.v_proj"};
  config.exclude_modules = {"layers.1.q_proj", "nowhere"};
  config.rank_pattern = {{"q_proj", 2}, {"v_proj", 3}};
  config.alpha_pattern = {{"layers.1.q_proj", 4}};
  const TargetedModules resolved = resolve_targets(config, model);
  EXPECT_EQ(resolved.names, Names{"model.layers.0.q_proj"});
  EXPECT_EQ(
      resolved.warnings,
      (Names{"target_modules \"k_proj\" matches no module", "target_modules \"layers.3.v_proj\" matches no module",
             "exclude_modules \"nowhere\" matches no module", "rank_pattern \"v_proj\" matches no adapted module",
             "alpha_pattern \"layers.1.q_proj\" matches no adapted module"}));
}

TEST(ResolveTargets, AnExclusionPatternThatMatchesNothingIsAWarning) {
  LoraModelConfig config;
  config.target_modules = {"q_proj"};
  config.exclude_modules = ModuleSelector::matching(".*k_proj");
  EXPECT_EQ(resolve_targets(config, model).warnings, Names{"exclude_modules \".*k_proj\" matches no module"});
}

std::string resolve_error(const LoraModelConfig& config) {
  try {
    static_cast<void>(resolve_targets(config, model));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

TEST(ResolveTargets, NothingAtAllIsAnErrorThatTellsWhy) {
  LoraModelConfig config;
  const std::string modules =
      "none among 5 modules (\"model.embed\", \"model.layers.0.q_proj\", \"model.layers.0.v_proj\", "
      "\"model.layers.1.q_proj\", \"head\")";
  EXPECT_EQ(resolve_error(config),
            "resolve_targets: target_modules: expected a module that matches no name at all, got " + modules);
  config.target_modules = {"query", "value"};
  EXPECT_EQ(resolve_error(config),
            "resolve_targets: target_modules: expected a module that matches \"query\", \"value\", got " + modules);
  config.target_modules = ModuleSelector::matching(".*\\.k");
  EXPECT_EQ(resolve_error(config),
            "resolve_targets: target_modules: expected a module that matches the pattern \".*\\.k\", got " + modules);
  config.target_modules = {"q_proj"};
  config.exclude_modules = {"q_proj"};
  EXPECT_EQ(resolve_error(config), "resolve_targets: target_modules: expected a module that matches \"q_proj\", got " +
                                       modules + "; exclude_modules and modules_to_save took 2");
  config.exclude_modules = {};
  config.layers_to_transform = {7, 8};
  config.layers_pattern = {"layers"};
  EXPECT_EQ(resolve_error(config), "resolve_targets: target_modules: expected a module that matches \"q_proj\", got " +
                                       modules + "; layers_to_transform lets pass 7 8; layers_pattern is \"layers\"");
}

}  // namespace
}  // namespace lora
