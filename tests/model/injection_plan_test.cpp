// What a configuration means for a model's layers and parameters, before anything changes.
#include "lora/model/injection_plan.hpp"

#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <vector>

#include "lora/model/model_layers.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using Linear = LoraLinear<double>;
using Plan = detail::InjectionPlan<double>;

class InjectionPlanTest : public ::testing::Test {
 protected:
  InjectionPlanTest() {
    layers.emplace_back("a.q", std::make_unique<HeldLayer<Linear>>(q));
    layers.emplace_back("a.v", std::make_unique<HeldLayer<Linear>>(v));
    parameters.emplace_back("head.weight", head, std::vector<Index>{});
    parameters.emplace_back("norm.bias", norm, std::vector<Index>{});
  }
  [[nodiscard]] Plan plan(const LoraModelConfig& config) const { return Plan("test", config, layers, parameters); }

  Linear q{testing::random_matrix<double>(4, 6, 1), {.rank = 0, .merge_weights = false}, 0};
  Linear v{testing::random_matrix<double>(6, 4, 2), {.rank = 0, .fan_in_fan_out = true}, 0};
  Trainable<double> head{Matrix<double>::Zero(2, 3), {}, {}};
  Trainable<double> norm{Matrix<double>::Zero(1, 3), {}, {}};
  detail::NamedLayers<double> layers;
  std::vector<ModelParameter<double>> parameters;
};

TEST_F(InjectionPlanTest, ALayerThatIsNotTargetedKeepsItsOptionsAndHasNoAdapter) {
  const Plan result = plan({.lora = {.rank = 3}, .target_modules = {"v"}});
  EXPECT_EQ(result.configs()[0].rank, 0);
  EXPECT_FALSE(result.configs()[0].merge_weights);
  EXPECT_EQ(result.configs()[1].rank, 3);
  EXPECT_TRUE(result.configs()[1].fan_in_fan_out);
}

TEST_F(InjectionPlanTest, ParametersTrainWhenTheyAreSavedOrBiasesOfModeAll) {
  Plan result =
      plan({.lora = {.rank = 3, .bias = BiasMode::all}, .target_modules = {"q"}, .modules_to_save = {"head"}});
  EXPECT_TRUE(result.saves(0));
  EXPECT_TRUE(result.trains(0));
  EXPECT_FALSE(result.saves(1));
  EXPECT_TRUE(result.trains(1));
  EXPECT_EQ(result.configs()[1].bias, BiasMode::all);
  EXPECT_TRUE(result.report().warnings.empty());
}

TEST_F(InjectionPlanTest, AModuleToSaveThatIsNotThereIsAWarning) {
  Plan result = plan({.lora = {.rank = 3}, .target_modules = {"q"}, .modules_to_save = {"score"}});
  ASSERT_EQ(result.report().warnings.size(), 1U);
  EXPECT_NE(result.report().warnings[0].find("score"), std::string::npos);
}

TEST_F(InjectionPlanTest, AStateMustHaveExactlyWhatIsTargeted) {
  const Plan result = plan({.lora = {.rank = 3}, .target_modules = {"q"}});
  AdapterWeights<double> weights;
  EXPECT_THROW(result.check_weights(weights), ConfigError);
  weights.modules["a.q"].A = Matrix<double>::Zero(3, 6);
  weights.modules["a.q"].B = Matrix<double>::Zero(4, 3);
  EXPECT_NO_THROW(result.check_weights(weights));
  weights.modules["a.v"] = weights.modules["a.q"];
  EXPECT_THROW(result.check_weights(weights), ConfigError);
}

}  // namespace
}  // namespace lora
