// A configuration made from an adapter must give every module its own rank and scaling back.
#include "lora/model/described_config.hpp"

#include <gtest/gtest.h>
#include <string>

namespace lora {
namespace {

ModuleState<float> module_of(Index rank, double scaling) {
  ModuleState<float> module;
  module.A = Matrix<float>::Zero(rank, 3);
  module.B = Matrix<float>::Zero(2, rank);
  module.scaling = scaling;
  return module;
}

void expect_described(const LoraModelConfig& config, const AdapterState<float>& state) {
  for (const auto& [name, module] : state.modules) {
    const LoraConfig own = config_for(config, name);
    EXPECT_TRUE(targets(config, name)) << name;
    EXPECT_EQ(own.rank, module.rank()) << name;
    EXPECT_DOUBLE_EQ(own.scaling(), module.scaling) << name;
  }
}

TEST(DescribedConfig, EqualModulesNeedNoPattern) {
  AdapterState<float> state;
  state.modules = {{"a.q", module_of(4, 2)}, {"a.v", module_of(4, 2)}};
  const auto config = described_config(LoraModelConfig{}, state);
  EXPECT_TRUE(config.rank_pattern.empty());
  EXPECT_EQ(config.lora.alpha, 8);
  expect_described(config, state);
}

TEST(DescribedConfig, RanksAndScalingsThatDifferBecomePatterns) {
  AdapterState<float> state;
  state.modules = {{"a.q", module_of(4, 2)}, {"a.v", module_of(2, 2)}, {"b.v", module_of(4, 0.5)}};
  expect_described(described_config(LoraModelConfig{}, state), state);
  LoraModelConfig by_root;
  by_root.lora.use_rslora = true;
  expect_described(described_config(by_root, state), state);
}

TEST(DescribedConfig, ANameThatEndsAnotherDoesNotTakeItsPattern) {
  AdapterState<float> state;
  state.modules = {{"a.q", module_of(4, 2)}, {"q", module_of(2, 1)}, {"x.a.q", module_of(3, 1)}};
  expect_described(described_config(LoraModelConfig{}, state), state);
}

}  // namespace
}  // namespace lora
