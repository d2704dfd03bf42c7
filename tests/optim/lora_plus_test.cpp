#include "lora/optim/lora_plus.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "lora/optim/sgd.hpp"
#include "optim/two_factors.hpp"

namespace {

using lora::Parameter;
using lora::ParameterList;
using lora::ParameterRole;
using lora::testing::TwoFactors;

template <class Range>
concept TakesLoraPlus = requires(Range&& range) {
  lora::lora_plus(std::forward<Range>(range), 16.0);
};

// On handles that nobody keeps, or that are const, the scale would be lost.
static_assert(TakesLoraPlus<ParameterList<float>&>);
static_assert(TakesLoraPlus<std::vector<Parameter<double>>&>);
static_assert(TakesLoraPlus<std::span<Parameter<double>>&>);
static_assert(!TakesLoraPlus<ParameterList<float>>);
static_assert(!TakesLoraPlus<const ParameterList<float>&>);
static_assert(!TakesLoraPlus<std::span<const Parameter<double>>&>);

TEST(LoraPlus, RaisesAllButAAndWeights) {
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::lora_A, 16), 1.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::weight, 16), 1.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::lora_B, 16), 16.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::lora_bias, 16), 16.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::magnitude, 16), 16.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::bias, 16), 16.0);
}

TEST(LoraPlus, SetsTheScaleOfEveryHandleAnew) {
  TwoFactors<float> model;
  auto parameters = model.parameters();
  lora::lora_plus(parameters, 16.0);
  EXPECT_EQ(parameters[0].learning_rate_scale, 1.0);
  EXPECT_EQ(parameters[1].learning_rate_scale, 16.0);
  lora::lora_plus(parameters, 2.0);
  EXPECT_EQ(parameters[1].learning_rate_scale, 2.0);
}

TEST(LoraPlus, MovesBByTheRatioAndABesideItAsBefore) {
  TwoFactors<double> model;
  TwoFactors<double> raised;
  const TwoFactors<double> before;
  auto parameters = raised.parameters();
  lora::lora_plus(parameters, 16.0);
  lora::SGD<double> optimizer({.learning_rate = 0.25});
  optimizer.step(model.parameters());
  optimizer.step(parameters);
  EXPECT_EQ(raised.a.value, model.a.value);
  // Gradients are at most 1, so values are at most 5, and difference and product round on those.
  EXPECT_LE(((raised.b.value - before.b.value) - 16 * (model.b.value - before.b.value)).cwiseAbs().maxCoeff(),
            16 * 5 * std::numeric_limits<double>::epsilon());
}

TEST(LoraPlus, RefusesARatioOutOfRangeAndChangesNothing) {
  TwoFactors<float> model;
  auto parameters = model.parameters();
  for (const double ratio : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(lora::lora_plus(parameters, ratio), lora::ConfigError) << ratio;
    EXPECT_EQ(parameters[1].learning_rate_scale, 1.0);
  }
}

}  // namespace
