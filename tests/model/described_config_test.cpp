// SPDX-License-Identifier: MIT
// A configuration made from an adapter must give every module its own rank and scaling back.
#include "lora/model/described_config.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <string>
#include <tuple>
#include <vector>

namespace lora {
namespace {

ModuleWeights<float> module_of(Index rank, double scaling) {
  ModuleWeights<float> module;
  module.A = Matrix<float>::Zero(rank, 3);
  module.B = Matrix<float>::Zero(2, rank);
  module.scaling = scaling;
  return module;
}

void expect_described(const LoraModelConfig& config, const AdapterWeights<float>& weights) {
  for (const auto& [name, module] : weights.modules) {
    const LoraConfig own = config_for(config, name);
    EXPECT_TRUE(targets(config, name)) << name;
    EXPECT_EQ(own.rank, module.rank()) << name;
    EXPECT_DOUBLE_EQ(own.scaling(), module.scaling) << name;
  }
}

TEST(DescribedConfig, EqualModulesNeedNoPattern) {
  AdapterWeights<float> weights;
  weights.modules = {{"a.q", module_of(4, 2)}, {"a.v", module_of(4, 2)}};
  const auto config = described_config(LoraModelConfig{}, weights);
  EXPECT_TRUE(config.rank_pattern.empty());
  EXPECT_EQ(config.lora.alpha, 8);
  expect_described(config, weights);
}

TEST(DescribedConfig, RanksAndScalingsThatDifferBecomePatterns) {
  AdapterWeights<float> weights;
  weights.modules = {{"a.q", module_of(4, 2)}, {"a.v", module_of(2, 2)}, {"b.v", module_of(4, 0.5)}};
  expect_described(described_config(LoraModelConfig{}, weights), weights);
  LoraModelConfig by_root;
  by_root.lora.use_rslora = true;
  expect_described(described_config(by_root, weights), weights);
}

TEST(DescribedConfig, ANameThatEndsAnotherDoesNotTakeItsPattern) {
  AdapterWeights<float> weights;
  weights.modules = {{"a.q", module_of(4, 2)}, {"q", module_of(2, 1)}, {"x.a.q", module_of(3, 1)}};
  expect_described(described_config(LoraModelConfig{}, weights), weights);
}

// "q" matches "a.q" as well, the module whose rank and alpha are those for all.
TEST(DescribedConfig, AShorterNameDoesNotGiveTheFirstModuleItsRank) {
  AdapterWeights<float> weights;
  weights.modules = {{"a.q", module_of(4, 2)}, {"q", module_of(2, 1)}};
  expect_described(described_config(LoraModelConfig{}, weights), weights);
}

TEST(DescribedConfig, ADotThatStandsForAnotherCharacterDoesNotGiveItsModulesRank) {
  AdapterWeights<float> weights;
  weights.modules = {{"A.first", module_of(4, 2)}, {"fc.1", module_of(2, 1)}, {"fc11", module_of(4, 2)}};
  expect_described(described_config(LoraModelConfig{}, weights), weights);
  weights.modules = {{"A.first", module_of(4, 2)}, {"fc.1", module_of(2, 1)}, {"fc11", module_of(3, 2)}};
  expect_described(described_config(LoraModelConfig{}, weights), weights);
}

// As an expression, "a+b" matches "aab" and not itself.
TEST(DescribedConfig, SpecialCharactersInANameStandForThemselves) {
  AdapterWeights<float> weights;
  weights.modules = {{"A.first", module_of(4, 2)}, {"a+b", module_of(2, 1)},   {"aab", module_of(4, 2)},
                     {"b.(a", module_of(3, 1)},    {"x.a+b", module_of(4, 2)}, {"y.a+b", module_of(5, 2)}};
  expect_described(described_config(LoraModelConfig{}, weights), weights);
}

// The experts of a Qwen3-30B-A3B: listed by name, they took more steps than a configuration may.
TEST(DescribedConfig, OfAModelOfManyModulesIsResolved) {
  for (const bool alike : {true, false}) {
    AdapterWeights<float> weights;
    std::vector<std::string> names;
    for (Index i = 0; i < 18432; ++i) {
      const char* const projections[] = {"gate_proj", "up_proj", "down_proj"};
      names.push_back("model.layers." + std::to_string(i / 384) + ".mlp.experts." + std::to_string(i % 384 / 3) + "." +
                      projections[i % 3]);
      weights.modules.emplace(names.back(), module_of(alike ? 1 : 1 + i % 2, 1));
    }
    const LoraModelConfig config = described_config(LoraModelConfig{}, weights);
    EXPECT_EQ(config.rank_pattern.size(), alike ? 0U : names.size() / 2);
    const TargetedModules targeted = resolve_targets(config, names);
    EXPECT_EQ(targeted.names, names);
    EXPECT_TRUE(targeted.warnings.empty());
    const ModuleMatcher matcher(config);
    for (std::size_t i = 0; i < names.size(); i += 97) {
      ASSERT_EQ(matcher.config_for(names[i]).rank, weights.modules.at(names[i]).rank());
    }
  }
}

LoraModelConfig described_saved(const std::vector<std::string>& saved) {
  AdapterWeights<float> weights;
  weights.modules = {{"a.q", module_of(4, 2)}};
  for (const std::string& name : saved) weights.saved[name] = {{1}, {0}};
  LoraModelConfig stale;
  stale.modules_to_save = {"stale"};
  stale.lora.bias = BiasMode::all;
  return described_config(stale, weights);
}

// Those of the configuration before stayed, so that its load asked for tensors that are not there.
TEST(DescribedConfig, WhatTrainsWholeIsThatOfTheWeights) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(described_saved({}).modules_to_save, Names{});
  EXPECT_EQ(described_saved({}).lora.bias, BiasMode::none);
  const auto head = described_saved({"head.bias", "head.weight", "scale"});
  EXPECT_EQ(head.modules_to_save, (Names{"head", "scale"}));
  EXPECT_EQ(head.lora.bias, BiasMode::none) << "a bias of a module to save is a part of it";
  EXPECT_EQ(described_saved({"a.q.bias"}).lora.bias, BiasMode::lora_only);
  EXPECT_EQ(described_saved({"a.q.bias", "b.v.bias"}).lora.bias, BiasMode::all);
  EXPECT_EQ(described_saved({"a.bias", "a.q.bias"}).lora.bias, BiasMode::all);
}

using Drawn = std::tuple<std::vector<std::string>, Index, double>;

// Names that often end in each other, or match with a dot for another character.
RC_GTEST_PROP(DescribedConfig, GivesEveryModuleItsOwnRankAndScaling, ()) {
  const auto part = rc::gen::element<std::string>("a", "1", ".", "a1", ".1", "+", "(", "\u00e9", "\\", "\n");
  const auto module = rc::gen::tuple(rc::gen::container<std::vector<std::string>>(part), rc::gen::inRange<Index>(1, 4),
                                     rc::gen::element(0.5, 1.0, 2.0));
  AdapterWeights<float> weights;
  for (const auto& [parts, rank, scaling] : *rc::gen::resize(20, rc::gen::container<std::vector<Drawn>>(module))) {
    std::string name;
    for (const std::string& text : parts) name += text;
    if (!name.empty()) weights.modules.emplace(name, module_of(rank, scaling));
  }
  LoraModelConfig by_root;
  by_root.lora.use_rslora = *rc::gen::arbitrary<bool>();
  const LoraModelConfig config = described_config(by_root, weights);
  for (const auto& [name, own] : weights.modules) {
    const LoraConfig lora = config_for(config, name);
    RC_ASSERT(lora.rank == own.rank());
    RC_ASSERT(std::abs(lora.scaling() - own.scaling) < 1e-12);
  }
}

}  // namespace
}  // namespace lora
