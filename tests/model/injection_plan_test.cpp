// SPDX-License-Identifier: MIT
// What a configuration means for a model's layers and parameters, before anything changes.
#include "lora/model/injection_plan.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <vector>

#include "lora/layers/linear.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::injection_plan_test {
namespace {

using Linear = LoraLinear<double>;
using Plan = detail::InjectionPlan<double>;

class InjectionPlanTest : public ::testing::Test {
 protected:
  InjectionPlanTest() {
    layers.emplace_back("a.q", std::make_unique<HeldLayer<LinearKind<double>>>(q));
    layers.emplace_back("a.v", std::make_unique<HeldLayer<LinearKind<double>>>(v));
    parameters.emplace_back("head.weight", head, std::vector<Index>{});
    parameters.emplace_back("norm.bias", norm, std::vector<Index>{});
    parameters.emplace_back("score.dense.weight", score, std::vector<Index>{});
  }
  [[nodiscard]] Plan plan(const LoraModelConfig& config) const { return Plan("test", config, layers, parameters); }

  Linear q{random_matrix<double>(4, 6, 1), LoraConfig{.rank = 0}, std::uint64_t{0}};
  Linear v{random_matrix<double>(6, 4, 2), LoraConfig{.rank = 0, .fan_in_fan_out = true}, std::uint64_t{0}};
  Trainable<double> head{Matrix<double>::Zero(2, 3), {}, {}};
  Trainable<double> norm{Matrix<double>::Zero(1, 3), {}, {}};
  Trainable<double> score{Matrix<double>::Zero(1, 3), {}, {}};
  detail::NamedLayers<double> layers;
  std::vector<ModelParameter<double>> parameters;
};

TEST_F(InjectionPlanTest, ALayerThatIsNotTargetedGetsNoFactors) {
  const Plan result = plan({.lora = {.rank = 3, .merge_weights = false}, .target_modules = {"v"}});
  EXPECT_EQ(result.configs()[0].rank, 0);
  EXPECT_FALSE(detail::is_adapter(result.configs()[0], 4));
  EXPECT_EQ(result.configs()[1].rank, 3);
  EXPECT_TRUE(result.configs()[1].fan_in_fan_out);
  EXPECT_FALSE(result.configs()[1].merge_weights);
}

TEST_F(InjectionPlanTest, ParametersTrainWhenTheyAreSavedOrBiasesOfModeAll) {
  Plan result =
      plan({.lora = {.rank = 3, .bias = BiasMode::all}, .target_modules = {"q"}, .modules_to_save = {"head"}});
  EXPECT_TRUE(result.saves(0));
  EXPECT_TRUE(result.trains(0));
  EXPECT_FALSE(result.saves(1));
  EXPECT_TRUE(result.trains(1));
  EXPECT_FALSE(result.trains(2));
  EXPECT_EQ(result.configs()[1].bias, BiasMode::all);
  EXPECT_TRUE(detail::is_adapter(result.configs()[1], 4));
  EXPECT_FALSE(detail::is_adapter(result.configs()[1], 0));
  EXPECT_TRUE(result.report().warnings.empty());
}

TEST_F(InjectionPlanTest, AModuleToSaveThatIsNotThereIsAWarning) {
  Plan result = plan({.lora = {.rank = 3}, .target_modules = {"q"}, .modules_to_save = {"classifier", "head"}});
  ASSERT_EQ(result.report().warnings.size(), 1U);
  EXPECT_NE(result.report().warnings[0].find("classifier"), std::string::npos);
}

// A module of parts, as the head of RoBERTa.
TEST_F(InjectionPlanTest, AModuleToSaveIsThereWhenItsPartsAre) {
  Plan result = plan({.lora = {.rank = 3}, .target_modules = {"q"}, .modules_to_save = {"score"}});
  EXPECT_TRUE(result.saves(2));
  EXPECT_TRUE(result.report().warnings.empty());
}

TEST_F(InjectionPlanTest, WeightsMustHaveExactlyWhatIsTargeted) {
  const Plan result = plan({.lora = {.rank = 3, .alpha = 3}, .target_modules = {"q"}});
  AdapterWeights<double> weights;
  EXPECT_THROW(result.check_weights(weights), ConfigError);
  weights.modules["a.q"].A = Matrix<double>::Zero(3, 6);
  weights.modules["a.q"].B = Matrix<double>::Zero(4, 3);
  EXPECT_NO_THROW(result.check_weights(weights));
  weights.modules["a.v"] = weights.modules["a.q"];
  EXPECT_THROW(result.check_weights(weights), ConfigError);
}

TEST_F(InjectionPlanTest, PlanningChangesNothing) {
  EXPECT_THROW(static_cast<void>(plan({.target_modules = {"k"}})), ConfigError);
  static_cast<void>(plan({.lora = {.rank = 3}, .target_modules = {"q"}, .modules_to_save = {"head"}}));
  EXPECT_EQ(q.adapter_count(), 0);
  EXPECT_TRUE(parameters[0].trainable());
}

}  // namespace
}  // namespace lora::testing::injection_plan_test
