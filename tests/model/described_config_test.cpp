// SPDX-License-Identifier: MIT
// A configuration made from an adapter must give every module its own rank and scaling back.
#include "lora/model/described_config.hpp"

#include <gtest/gtest.h>
#include <string>

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

}  // namespace
}  // namespace lora
