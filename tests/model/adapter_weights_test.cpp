// SPDX-License-Identifier: MIT
// The values of an adapter, apart from any layer.
#include "lora/model/adapter_weights.hpp"

#include <gtest/gtest.h>

namespace lora::testing::adapter_weights_test {
namespace {

TEST(AdapterWeights, IsAValue) {
  AdapterWeights<float> weights;
  weights.modules["q"].A = Matrix<float>::Ones(2, 3);
  weights.saved["head.bias"] = {{2}, {1, 2}};
  AdapterWeights<float> copy = weights;
  copy.modules["q"].A.setZero();
  copy.saved["head.bias"].values[0] = 7;
  EXPECT_EQ(weights.modules["q"].A.sum(), 6);
  EXPECT_EQ(weights.saved["head.bias"].values[0], 1);
}

TEST(AdapterWeights, AModuleIsALinearOneOfTheRankOfItsFactors) {
  ModuleWeights<double> module;
  EXPECT_EQ(module.kind, ModuleKind::linear);
  EXPECT_EQ(module.rank(), 0);
  module.A = Matrix<double>::Zero(4, 9);
  EXPECT_EQ(module.rank(), 4);
  EXPECT_EQ(module.scaling, 1);
}

}  // namespace
}  // namespace lora::testing::adapter_weights_test
