// SPDX-License-Identifier: MIT
// LoraModelConfig to adapter_config.json: what PEFT wrote comes out as it was, and what was written is read again.
#include "lora/io/peft_config_writer.hpp"

#include <algorithm>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "io/peft_files.hpp"
#include "lora/io/peft_config.hpp"

namespace lora::peft_config_writer_test {
namespace {

using nlohmann::json;

json written(const LoraModelConfig& config) { return json::parse(peft_config_text(config)); }

TEST(PeftConfigWriter, GoldenConfigurationsKeepEveryValueTheyShare) {
  for (const char* name : testing::golden_adapters) {
    SCOPED_TRACE(name);
    const auto path = testing::golden_adapter(name) / "adapter_config.json";
    json original = testing::json_of(path);
    if (original.at("layers_pattern").is_string()) {
      original["layers_pattern"] = json::array({original.at("layers_pattern")});
    }
    const json again = written(read_peft_config(path).config);
    for (const auto& [key, value] : again.items()) EXPECT_EQ(value, original.at(key)) << key;
    // What was left out has PEFT's default in the original.
    for (const char* key : {"use_dora", "use_rslora", "lora_bias", "exclude_modules"}) {
      EXPECT_TRUE(again.contains(key) || original.at(key) == false || original.at(key).is_null()) << key;
    }
  }
}

LoraModelConfig everything() {
  LoraModelConfig config;
  config.lora = {.rank = 16, .alpha = 0.5, .dropout = 0.125, .fan_in_fan_out = true, .use_rslora = true};
  config.lora.use_dora = true;
  config.lora.bias = BiasMode::all;
  config.lora.init_lora_weights = InitLoraWeights::pissa;
  config.lora.pissa_niter = 16;
  config.target_modules = {"q_proj", "v\u00e9"};
  config.exclude_modules = ModuleSelector::matching(".*\\.3\\..*");
  config.layers_to_transform = {1, 2};
  config.layers_pattern = {"layers", "h"};
  config.rank_pattern = {{"z", 4}, {"a", 8}};
  config.alpha_pattern = {{"y", 1.5}, {"b", 2}};
  config.modules_to_save = {"head"};
  config.base_model_name_or_path = "some/model";
  config.revision = "main";
  config.task_type = "CAUSAL_LM";
  config.auto_mapping = AutoMapping{"Causal", "library"};
  return config;
}

// PEFT's LoraConfig raises for these.
TEST(PeftConfigWriter, LoraBiasWithAnotherStartThanTrueAndFalseIsRefused) {
  LoraModelConfig config{.lora = {.rank = 2, .lora_bias = true}};
  EXPECT_EQ(written(config).at("lora_bias"), true);
  config.lora.init_lora_weights = InitLoraWeights::random;
  EXPECT_EQ(written(config).at("init_lora_weights"), false);
  config.lora.init_lora_weights = InitLoraWeights::gaussian;
  EXPECT_THROW(static_cast<void>(peft_config_text(config)), ConfigError);
}

TEST(PeftConfigWriter, WhatIsWrittenIsRead) {
  const std::string text = peft_config_text(everything());
  const PeftConfig read = parse_peft_config(text);
  EXPECT_EQ(read.warnings, std::vector<std::string>());
  EXPECT_EQ(peft_config_text(read.config), text);
  const LoraModelConfig config = read.config;
  const LoraModelConfig expected = everything();
  EXPECT_EQ(config.lora.rank, expected.lora.rank);
  EXPECT_EQ(config.lora.alpha, expected.lora.alpha);
  EXPECT_EQ(config.lora.dropout, expected.lora.dropout);
  EXPECT_EQ(config.lora.pissa_niter, 16);
  EXPECT_EQ(config.lora.bias, BiasMode::all);
  EXPECT_TRUE(config.lora.use_dora && config.lora.use_rslora && config.lora.fan_in_fan_out);
  EXPECT_EQ(config.target_modules, expected.target_modules);
  EXPECT_EQ(config.exclude_modules, expected.exclude_modules);
  EXPECT_EQ(config.layers_to_transform, expected.layers_to_transform);
  EXPECT_EQ(config.layers_pattern, expected.layers_pattern);
  EXPECT_EQ(config.rank_pattern, expected.rank_pattern);
  EXPECT_EQ(config.alpha_pattern, expected.alpha_pattern);
  EXPECT_EQ(config.modules_to_save, expected.modules_to_save);
  EXPECT_EQ(config.base_model_name_or_path, "some/model");
  EXPECT_EQ(config.revision, "main");
  EXPECT_EQ(config.task_type, "CAUSAL_LM");
  EXPECT_EQ(config.auto_mapping->parent_library, "library");
}

TEST(PeftConfigWriter, EveryInitializationIsRead) {
  for (const auto init : {InitLoraWeights::kaiming_uniform, InitLoraWeights::gaussian, InitLoraWeights::random,
                          InitLoraWeights::orthogonal, InitLoraWeights::pissa, InitLoraWeights::olora}) {
    LoraModelConfig config;
    config.lora.init_lora_weights = init;
    EXPECT_EQ(parse_peft_config(peft_config_text(config)).config.lora.init_lora_weights, init);
  }
}

TEST(PeftConfigWriter, KeysAscendAndPatternsKeepTheirOrder) {
  const auto ordered = nlohmann::ordered_json::parse(peft_config_text(everything()));
  std::vector<std::string> keys;
  for (const auto& [key, value] : ordered.items()) keys.push_back(key);
  EXPECT_TRUE(std::is_sorted(keys.begin(), keys.end()));
  EXPECT_EQ(ordered.at("rank_pattern").begin().key(), "z");
  EXPECT_EQ(ordered.at("alpha_pattern").begin().key(), "y");
}

TEST(PeftConfigWriter, IsLaidOutAsPythonDoes) {
  LoraModelConfig config;
  config.target_modules = {"q", "\u00e9"};
  const std::string text = peft_config_text(config);
  EXPECT_TRUE(text.starts_with("{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n")) << text;
  EXPECT_NE(text.find("  \"lora_alpha\": 8,\n  \"lora_dropout\": 0.0,\n"), std::string::npos) << text;
  EXPECT_NE(text.find("  \"target_modules\": [\n    \"q\",\n    \"\\u00e9\"\n  ],\n"), std::string::npos) << text;
}

TEST(PeftConfigWriter, LaterOptionsAppearOnlyWhenActive) {
  LoraModelConfig config;
  for (const char* key : {"use_dora", "use_rslora", "lora_bias", "exclude_modules"}) {
    EXPECT_FALSE(written(config).contains(key)) << key;
  }
  config.lora.lora_bias = true;
  EXPECT_EQ(written(config).at("lora_bias"), true);
}

TEST(PeftConfigWriter, AllLinearAndPatternsAreStrings) {
  LoraModelConfig config;
  EXPECT_EQ(written(config).at("target_modules"), nullptr);
  config.target_modules = ModuleSelector::all_linear();
  EXPECT_EQ(written(config).at("target_modules"), "all-linear");
  config.target_modules = ModuleSelector::matching("a|b");
  EXPECT_EQ(written(config).at("target_modules"), "a|b");
}

TEST(PeftConfigWriter, RefusesWhatPeftWould) {
  LoraModelConfig config;
  config.lora.rank = 0;
  EXPECT_THROW(static_cast<void>(peft_config_text(config)), ConfigError);
  config.lora.rank = 1;
  config.task_type = "\xFF";
  EXPECT_THROW(static_cast<void>(peft_config_text(config)), ConfigError);
  config.task_type = "";
  config.layers_pattern = {"h"};
  EXPECT_THROW(static_cast<void>(peft_config_text(config)), ConfigError);
}

TEST(PeftConfigWriter, WritesAFile) {
  const testing::TemporaryFolder folder;
  write_peft_config(folder / "adapter_config.json", everything());
  EXPECT_EQ(testing::text_of(folder / "adapter_config.json"), peft_config_text(everything()));
  EXPECT_EQ(folder.entries().size(), 1U);
}

}  // namespace
}  // namespace lora::peft_config_writer_test
