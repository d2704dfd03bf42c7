// SPDX-License-Identifier: MIT
// adapter_config.json to LoraModelConfig: what PEFT wrote is read, and what is wrong or unknown is told by its key.
#include "lora/io/peft_config.hpp"

#include <filesystem>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "io/peft_files.hpp"

namespace lora::peft_config_test {
namespace {

using nlohmann::json;
using Names = std::vector<std::string>;

json base() { return {{"peft_type", "LORA"}, {"r", 4}, {"target_modules", {"q"}}}; }

json with(const std::string& key, json value) {
  json config = base();
  config[key] = std::move(value);
  return config;
}

LoraModelConfig read(const json& config) { return parse_peft_config(config.dump()).config; }

template <class ErrorType>
std::string error_of(const std::string& text) {
  try {
    static_cast<void>(parse_peft_config(text));
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no such error";
}

constexpr const char* prefix = "read adapter_config.json: adapter_config.json: ";

PeftConfig golden(const std::string& name) {
  return read_peft_config(testing::golden_adapter(name) / "adapter_config.json");
}

TEST(PeftConfig, EveryKeyThatPeftWritesIsKnown) {
  for (const char* name : testing::golden_adapters) EXPECT_EQ(golden(name).warnings, Names()) << name;
}

TEST(PeftConfig, NumbersAndFlagsOfTheGoldenAdapters) {
  for (const char* name : testing::golden_adapters) {
    SCOPED_TRACE(name);
    const json expected = testing::json_of(testing::golden_adapter(name) / "adapter_config.json");
    const LoraModelConfig config = golden(name).config;
    EXPECT_EQ(config.lora.rank, expected.at("r").get<Index>());
    EXPECT_EQ(config.lora.alpha, expected.at("lora_alpha").get<double>());
    EXPECT_EQ(config.lora.dropout, expected.at("lora_dropout").get<double>());
    EXPECT_EQ(config.lora.use_dora, expected.at("use_dora").get<bool>());
    EXPECT_EQ(config.lora.use_rslora, expected.at("use_rslora").get<bool>());
    EXPECT_EQ(config.lora.fan_in_fan_out, expected.at("fan_in_fan_out").get<bool>());
    EXPECT_EQ(config.lora.init_lora_weights, InitLoraWeights::kaiming_uniform);
    EXPECT_EQ(config.auto_mapping->base_model_class, "Causal");
    EXPECT_EQ(config.base_model_name_or_path, "");
    EXPECT_EQ(config.task_type, "");
  }
}

TEST(PeftConfig, NamesAndPatternsOfTheGoldenAdapters) {
  EXPECT_EQ(golden("adapter_qv").config.target_modules, (ModuleSelector{"v_proj", "q_proj"}));
  EXPECT_EQ(golden("adapter_regex").config.target_modules,
            ModuleSelector::matching("model\\.layers\\.[01]\\.(q_proj|mlp\\.down)"));
  EXPECT_EQ(golden("adapter_exclude").config.exclude_modules, (ModuleSelector{"layers.0.q_proj", "layers.2.mlp.up"}));
  EXPECT_EQ(golden("adapter_gpt2_style").config.modules_to_save, Names{"head"});
  const LoraModelConfig layers = golden("adapter_layers").config;
  EXPECT_EQ(layers.layers_to_transform, (std::vector<Index>{0, 2}));
  EXPECT_EQ(layers.layers_pattern, Names{"layers"});
  const LoraModelConfig pattern = golden("adapter_pattern").config;
  EXPECT_EQ(pattern.rank_pattern, (std::vector<std::pair<std::string, Index>>{{"layers.1.q_proj", 6}, {"up", 2}}));
  EXPECT_EQ(pattern.alpha_pattern, (std::vector<std::pair<std::string, double>>{{"down", 3}}));
  EXPECT_EQ(pattern.lora.bias, BiasMode::lora_only);
}

TEST(PeftConfig, PublishedAdaptersAreRead) {
  const std::filesystem::path folder = LORA_REAL_DIR;
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not here";
  const PeftConfig unet = read_peft_config(folder / "unet_skin_lesion" / "adapter_config.json");
  EXPECT_EQ(unet.warnings, Names());
  EXPECT_EQ(unet.config.lora.scaling(), 4);
  EXPECT_EQ(unet.config.lora.dropout, 0.1);
  EXPECT_EQ(unet.config.target_modules, (ModuleSelector{"to_k", "to_q", "to_out.0", "to_v"}));
  EXPECT_EQ(unet.config.auto_mapping->base_model_class, "UNet2DConditionModel");
  const PeftConfig sift = read_peft_config(folder / "sift_opf_zh" / "adapter_config.json");
  EXPECT_EQ(sift.warnings, Names());
  EXPECT_EQ(sift.config.modules_to_save, (Names{"classifier", "score"}));
  EXPECT_EQ(sift.config.base_model_name_or_path, "openai/privacy-filter");
  EXPECT_EQ(sift.config.task_type, "TOKEN_CLS");
}

TEST(PeftConfig, MissingAndNullKeysHavePeftsDefaults) {
  for (const json& value : {json::object(), json({{"r", nullptr}, {"lora_alpha", nullptr}, {"bias", nullptr}})}) {
    json config = value;
    config["peft_type"] = "LORA";
    const LoraModelConfig parsed = read(config);
    EXPECT_EQ(parsed.lora.rank, 8);
    EXPECT_EQ(parsed.lora.alpha, 8);
    EXPECT_EQ(parsed.lora.dropout, 0);
    EXPECT_EQ(parsed.lora.bias, BiasMode::none);
    EXPECT_EQ(parsed.target_modules, ModuleSelector());
    EXPECT_FALSE(parsed.auto_mapping.has_value());
  }
}

TEST(PeftConfig, TargetsAreAListAPatternOrAllLinear) {
  EXPECT_EQ(read(with("target_modules", "q|v")).target_modules, ModuleSelector::matching("q|v"));
  EXPECT_EQ(read(with("target_modules", "All-Linear")).target_modules, ModuleSelector::all_linear());
  EXPECT_EQ(read(with("target_modules", json::array())).target_modules, ModuleSelector::listed({}));
  EXPECT_EQ(read(with("exclude_modules", ".*x")).exclude_modules, ModuleSelector::matching(".*x"));
}

TEST(PeftConfig, LayersAreOneNumberOrMany) {
  EXPECT_EQ(read(with("layers_to_transform", 3)).layers_to_transform, std::vector<Index>{3});
  EXPECT_EQ(read(with("layers_to_transform", {3, 5})).layers_to_transform, (std::vector<Index>{3, 5}));
}

TEST(PeftConfig, EveryInitializationOfThisLibrary) {
  const auto init = [](json value) { return read(with("init_lora_weights", std::move(value))).lora; };
  EXPECT_EQ(init(true).init_lora_weights, InitLoraWeights::kaiming_uniform);
  EXPECT_EQ(init("true").init_lora_weights, InitLoraWeights::kaiming_uniform);  // as a person writes it
  EXPECT_EQ(init(false).init_lora_weights, InitLoraWeights::random);
  EXPECT_EQ(init("gaussian").init_lora_weights, InitLoraWeights::gaussian);
  EXPECT_EQ(init("orthogonal").init_lora_weights, InitLoraWeights::orthogonal);
  EXPECT_EQ(init("olora").init_lora_weights, InitLoraWeights::olora);
  EXPECT_EQ(init("pissa").init_lora_weights, InitLoraWeights::pissa);
  EXPECT_EQ(init("pissa").pissa_niter, 0);
  EXPECT_EQ(init("pissa_niter_4").init_lora_weights, InitLoraWeights::pissa);
  EXPECT_EQ(init("pissa_niter_4").pissa_niter, 4);
  for (const char* name : {"pissa_niter_", "pissa_niter_x", "pissa_niter_-1", "pissa_niter_4x"}) {
    EXPECT_EQ(error_of<FormatError>(with("init_lora_weights", name).dump()),
              std::string(prefix) + "init_lora_weights: expected pissa_niter_ and a number, got \"" + name + "\"");
  }
}

TEST(PeftConfig, TheFirstPatternOfTheFileComesFirst) {
  const PeftConfig read_config = parse_peft_config(
      R"({"peft_type": "LORA", "rank_pattern": {"z": 1, "a": 2, "z": 3}, "alpha_pattern": {"y": 0.5, "b": 2}})");
  EXPECT_EQ(read_config.config.rank_pattern, (std::vector<std::pair<std::string, Index>>{{"z", 3}, {"a", 2}}));
  EXPECT_EQ(read_config.config.alpha_pattern, (std::vector<std::pair<std::string, double>>{{"y", 0.5}, {"b", 2}}));
}

TEST(PeftConfig, UnknownKeysComeBackAsWarnings) {
  json config = base();
  config["zeta"] = {1, 2};
  config["alpha_decay"] = 0.5;
  EXPECT_EQ(parse_peft_config(config.dump()).warnings,
            (Names{"adapter_config.json: unknown key \"alpha_decay\" = 0.5 is ignored",
                   "adapter_config.json: unknown key \"zeta\" = a list is ignored"}));
}

TEST(PeftConfig, StartsAndOptionsOfTheTrainingAloneAreToldAndNotKept) {
  const auto reads = [](const json& config, const std::string& what) {
    const PeftConfig parsed = parse_peft_config(config.dump());
    EXPECT_EQ(parsed.warnings, Names{"adapter_config.json: " + what + " concerns only the training and is not kept"});
    EXPECT_EQ(parsed.config.lora.init_lora_weights, InitLoraWeights::kaiming_uniform);
  };
  reads(with("init_lora_weights", "eva"), "init_lora_weights = \"eva\"");
  reads(with("init_lora_weights", "mica"), "init_lora_weights = \"mica\"");
  reads(with("velora_config", json::object()), "velora_config = an object");
  reads(with("velora_config", {{"num_groups", 2}}), "velora_config = an object");
  for (const json& value : {json(true), json("x"), json::array()}) {
    EXPECT_NE(error_of<FormatError>(with("velora_config", value).dump()).find("velora_config: expected an object"),
              std::string::npos);
  }
}

// PEFT ignores these unless init_lora_weights names them. With "corda", "loftq" and "lora_ga" the base weight is
// another one, which the adapter does not hold.
TEST(PeftConfig, ConfigurationsOfStartsMatterOnlyWithTheirStart) {
  for (const char* start : {"eva", "corda", "loftq", "lora_ga"}) {
    const std::string key = std::string(start) + "_config";
    EXPECT_EQ(parse_peft_config(with(key, {{"a", 1}}).dump()).warnings, Names()) << key;
    json config = with(key, {{"a", 1}});
    config["init_lora_weights"] = start;
    if (key == "eva_config") {
      EXPECT_EQ(parse_peft_config(config.dump()).warnings.size(), 1U);
    } else {
      EXPECT_NE(error_of<ConfigError>(config.dump()).find("init_lora_weights = "), std::string::npos) << key;
    }
  }
}

TEST(PeftConfig, AnEmptyObjectIsAConfigurationOfKasaAndMonteclora) {
  for (const char* key : {"kasa_config", "monteclora_config"}) {
    EXPECT_NE(error_of<ConfigError>(with(key, json::object()).dump()).find(std::string(key) + " = an object"),
              std::string::npos);
    EXPECT_EQ(parse_peft_config(with(key, nullptr).dump()).warnings, Names());
  }
}

class UnsupportedPeftKey : public ::testing::TestWithParam<std::pair<const char*, json>> {};

TEST_P(UnsupportedPeftKey, IsRefusedWhenActiveAndTakenOtherwise) {
  const auto& [key, active] = GetParam();
  const std::string text = error_of<ConfigError>(with(key, active).dump());
  EXPECT_NE(text.find(std::string(key) + " = "), std::string::npos) << text;
  for (const json& inactive : {json(nullptr), json(false), json(""), json::array(), json::object()}) {
    EXPECT_EQ(parse_peft_config(with(key, inactive).dump()).warnings, Names()) << inactive;
  }
}

const json an_object = {{"a", 1}};
INSTANTIATE_TEST_SUITE_P(
    All, UnsupportedPeftKey,
    ::testing::Values(std::pair("alora_invocation_tokens", json{1, 2}), std::pair("arrow_config", an_object),
                      std::pair("enable_lora", json{true, false}), std::pair("ensure_weight_tying", json(true)),
                      std::pair("layer_replication", json{{0, 4}, {2, 5}}), std::pair("megatron_config", an_object),
                      std::pair("target_parameters", json{"experts.w"}), std::pair("trainable_token_indices", json{1}),
                      std::pair("use_bdlora", an_object)),
    [](const auto& test) { return std::string(test.param.first); });

TEST(PeftConfigError, AllUnsupportedOptionsAreToldAtOnce) {
  json config = base();
  config["ensure_weight_tying"] = true;
  config["bias"] = "some";
  config["init_lora_weights"] = "corda";
  EXPECT_EQ(error_of<ConfigError>(config.dump()),
            "read adapter_config.json: adapter_config.json: expected no option that this library does not implement, "
            "got bias = \"some\", init_lora_weights = \"corda\", ensure_weight_tying = true");
}

TEST(PeftConfig, GroupsOfQaloraAreRead) {
  const auto read = [](const json& config) { return parse_peft_config(config.dump()).config.lora; };
  EXPECT_EQ(read(base()).group_size(), 0);
  EXPECT_EQ(read(with("qalora_group_size", 4)).group_size(), 0);
  EXPECT_EQ(read(with("use_qalora", true)).group_size(), 16);
  json config = with("use_qalora", true);
  config["qalora_group_size"] = 32;
  EXPECT_EQ(read(config).group_size(), 32);
  config["qalora_group_size"] = 0;
  EXPECT_EQ(error_of<ConfigError>(config.dump()),
            "read adapter_config.json: qalora_group_size: expected 1 or more, got 0");
  config["qalora_group_size"] = "16";
  EXPECT_EQ(error_of<FormatError>(config.dump()),
            std::string(prefix) + "qalora_group_size: expected an integer, got \"16\"");
}

TEST(PeftConfigError, AnotherMethodIsRefusedByName) {
  EXPECT_EQ(error_of<ConfigError>(R"({"peft_type": "IA3", "r": "x"})"),
            std::string(prefix) + "peft_type: expected \"LORA\", got \"IA3\"");
  EXPECT_EQ(error_of<FormatError>("{}"), std::string(prefix) + "peft_type: expected \"LORA\", got no such key");
}

TEST(PeftConfigError, TypesAreToldByKey) {
  const auto error = [](const char* key, json value) {
    return error_of<FormatError>(with(key, std::move(value)).dump()).substr(std::string(prefix).size());
  };
  EXPECT_EQ(error("peft_type", 3), "peft_type: expected a string, got 3");
  EXPECT_EQ(error("r", "8"), "r: expected an integer, got \"8\"");
  EXPECT_EQ(error("r", 8.5), "r: expected an integer, got 8.5");
  EXPECT_EQ(error("r", 18446744073709551615U), "r: expected an integer, got 18446744073709551615");
  EXPECT_EQ(error("lora_alpha", true), "lora_alpha: expected a number, got true");
  EXPECT_EQ(error("lora_dropout", json::array()), "lora_dropout: expected a number, got a list");
  EXPECT_EQ(error("use_dora", 1), "use_dora: expected a boolean, got 1");
  EXPECT_EQ(error("use_rslora", "yes"), "use_rslora: expected a boolean, got \"yes\"");
  EXPECT_EQ(error("fan_in_fan_out", 0), "fan_in_fan_out: expected a boolean, got 0");
  EXPECT_EQ(error("lora_bias", json::object()), "lora_bias: expected a boolean, got an object");
  EXPECT_EQ(error("bias", false), "bias: expected a string, got false");
  EXPECT_EQ(error("target_modules", 1), "target_modules: expected a string or a list of strings, got 1");
  EXPECT_EQ(error("exclude_modules", {"q", 1}), "exclude_modules: expected a string or a list of strings, got 1");
  EXPECT_EQ(error("layers_pattern", 1), "layers_pattern: expected a string or a list of strings, got 1");
  EXPECT_EQ(error("modules_to_save", "head"), "modules_to_save: expected a list of strings, got \"head\"");
  EXPECT_EQ(error("layers_to_transform", "0"),
            "layers_to_transform: expected an integer or a list of integers, got \"0\"");
  EXPECT_EQ(error("rank_pattern", {"q"}), "rank_pattern: expected an object, got a list");
  EXPECT_EQ(error("rank_pattern", {{"q", 1.5}}), "rank_pattern \"q\": expected an integer, got 1.5");
  EXPECT_EQ(error("alpha_pattern", {{"q", "x"}}), "alpha_pattern \"q\": expected a number, got \"x\"");
  EXPECT_EQ(error("init_lora_weights", 1), "init_lora_weights: expected a boolean or a string, got 1");
  EXPECT_EQ(error("auto_mapping", 1), "auto_mapping: expected an object of strings, got 1");
  EXPECT_EQ(error("auto_mapping", {{"parent_library", 1}}), "auto_mapping parent_library: expected a string, got 1");
  EXPECT_EQ(error("task_type", 1), "task_type: expected a string, got 1");
}

TEST(PeftConfigError, ValuesOutOfRangeAreToldByName) {
  EXPECT_EQ(error_of<ConfigError>(with("r", 0).dump()), std::string(prefix) + "r: expected 1 or more, got 0");
  EXPECT_NE(error_of<ConfigError>(with("r", -1).dump()).find("rank"), std::string::npos);
  EXPECT_NE(error_of<ConfigError>(with("lora_dropout", 1.5).dump()).find("dropout"), std::string::npos);
  EXPECT_NE(error_of<ConfigError>(with("rank_pattern", {{"q", 0}}).dump()).find("rank_pattern"), std::string::npos);
  json both = with("lora_bias", true);
  both["use_dora"] = true;
  EXPECT_NE(error_of<ConfigError>(both.dump()).find("lora_bias"), std::string::npos);
  json start = with("lora_bias", true);
  start["init_lora_weights"] = "gaussian";
  EXPECT_NE(error_of<ConfigError>(start.dump()).find("init_lora_weights: expected true or false with lora_bias"),
            std::string::npos);
  json layers = with("target_modules", ".*q");
  layers["layers_to_transform"] = {1};
  EXPECT_NE(error_of<ConfigError>(layers.dump()).find("layers_to_transform"), std::string::npos);
}

TEST(PeftConfigError, WhatIsNoJsonObjectIsRefused) {
  for (const std::string text :
       {"", "{", "{\"r\": 8,}", "nul", "{\"a\": NaN}", "{\"a\": \"\xFF\"}", "{\"a\": 1e999}"}) {
    EXPECT_NE(error_of<FormatError>(text).find("expected JSON"), std::string::npos) << text;
  }
  EXPECT_EQ(error_of<FormatError>("[1]"), std::string(prefix).substr(0, 45) + ": expected an object, got a JSON array");
  EXPECT_NE(error_of<FormatError>(std::string((1 << 24) + 1, ' ')).find("bytes"), std::string::npos);
}

TEST(PeftConfigError, NestingIsBounded) {
  const auto nested = [](std::size_t depth) {
    return R"({"peft_type": "LORA", "zeta": )" + std::string(depth, '[') + std::string(depth, ']') + "}";
  };
  EXPECT_EQ(parse_peft_config(nested(126)).warnings,
            Names{"adapter_config.json: unknown key \"zeta\" = a list is ignored"});
  EXPECT_EQ(error_of<FormatError>(nested(127)),
            std::string(prefix).substr(0, 45) + ": expected at most 127 levels of nesting, got more");
}

TEST(PeftConfigError, AGitLfsPointerIsCalledThat) {
  EXPECT_EQ(error_of<FormatError>("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
            "read adapter_config.json: adapter_config.json: expected JSON, got a Git LFS pointer; the file itself was "
            "not fetched (git lfs pull)");
}

TEST(PeftConfigError, AMissingFileIsAnIoError) {
  const testing::TemporaryFolder folder;
  EXPECT_THROW(static_cast<void>(read_peft_config(folder / "adapter_config.json")), IoError);
}

}  // namespace
}  // namespace lora::peft_config_test
