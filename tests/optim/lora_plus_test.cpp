// SPDX-License-Identifier: MIT
#include "lora/optim/lora_plus.hpp"

#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "lora/optim/adamw.hpp"
#include "lora/optim/clip.hpp"
#include "lora/optim/sgd.hpp"
#include "optim/two_factors.hpp"

namespace {

using lora::Parameter;
using lora::ParameterRole;
using lora::testing::TwoFactors;

/// A layer, as far as optimisers are concerned.
struct Layer {
  TwoFactors<float> factors;
  std::vector<Parameter<float>> parameters() { return factors.parameters(); }
};

struct Model {
  Layer layer;
  std::vector<Parameter<float>> parameters() { return {}; }
  std::vector<Parameter<float>> trainable_parameters() { return layer.parameters(); }
};

template <class Source>
concept TakesLoraPlus = requires(Source&& source) {
  lora::lora_plus(std::forward<Source>(source), 16.0);
};

static_assert(TakesLoraPlus<std::vector<Parameter<double>>&>);
static_assert(TakesLoraPlus<std::vector<Parameter<double>>>);
static_assert(TakesLoraPlus<const std::vector<Parameter<double>>&>);
static_assert(TakesLoraPlus<std::span<Parameter<double>>>);
static_assert(TakesLoraPlus<std::span<const Parameter<double>>>);
static_assert(TakesLoraPlus<std::array<Parameter<double>, 2>&>);
static_assert(TakesLoraPlus<Layer&> && TakesLoraPlus<Model&> && TakesLoraPlus<Model>);
static_assert(!TakesLoraPlus<std::vector<double>&> && !TakesLoraPlus<int>);

// Defect: the scale lived in the handles, so that stepping with new handles, as the examples do, trained B at A's rate.
TEST(LoraPlus, TheRatioStaysWithTheParameterWhateverHandleSteps) {
  Layer raised;
  Layer plain;
  const TwoFactors<float> before;
  auto parameters = raised.parameters();
  lora::lora_plus(parameters, 16);
  lora::SGD<float> optimizer({.learning_rate = 0.25});
  optimizer.step(raised.parameters());
  optimizer.set_learning_rate(16 * 0.25);
  optimizer.step(plain.parameters());
  EXPECT_EQ(raised.factors.b.value, plain.factors.b.value);
  EXPECT_NE(raised.factors.a.value, plain.factors.a.value);
}

TEST(LoraPlus, TakesATemporaryALayerAndAModel) {
  Layer layer;
  lora::lora_plus(layer.parameters(), 16.0);
  EXPECT_EQ(layer.factors.b.moments.learning_rate_scale, 16.0);
  lora::lora_plus(layer, 4.0);
  EXPECT_EQ(layer.factors.b.moments.learning_rate_scale, 4.0);
  Model model;
  lora::lora_plus(model, 8.0);
  EXPECT_EQ(model.layer.factors.b.moments.learning_rate_scale, 8.0);
}

TEST(LoraPlus, TheRatioFollowsACopyAndSurvivesForgettingTheMoments) {
  Layer layer;
  lora::lora_plus(layer, 16.0);
  lora::reset_moments(layer);
  EXPECT_EQ(layer.parameters()[1].learning_rate_scale(), 16.0);
  Layer copy = layer;
  EXPECT_EQ(copy.parameters()[1].learning_rate_scale(), 16.0);
}

TEST(ParameterSource, OptimizersAndClippingTakeLayersAndModels) {
  Layer layer;
  Layer twin;
  Model model;
  EXPECT_EQ(lora::gradient_norm(layer), lora::gradient_norm(twin.parameters()));
  EXPECT_EQ(lora::clip_gradient_norm(layer, 0.5), lora::clip_gradient_norm(twin.parameters(), 0.5));
  lora::clip_gradient_norm(model, 0.5);
  lora::AdamW<float> optimizer;
  optimizer.step(layer);
  optimizer.step(twin.parameters());
  optimizer.step(model);
  EXPECT_EQ(layer.factors.b.value, twin.factors.b.value);
  EXPECT_EQ(model.layer.factors.b.value, twin.factors.b.value);
  EXPECT_EQ(lora::moment_bytes(layer), lora::moment_bytes(twin.parameters()));
  const auto few = std::array{twin.parameters()[0]};
  optimizer.step(few);
  EXPECT_EQ(twin.factors.a.moments.steps, 2);
  lora::SGD<float> other;
  lora::reset_moments(model);
  other.step(model);
  EXPECT_EQ(model.layer.factors.a.moments.steps, 1);
}

TEST(LoraPlus, RaisesAllButAAndWeights) {
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::lora_A, 16), 1.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::weight, 16), 1.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::lora_B, 16), 16.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::lora_bias, 16), 16.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::magnitude, 16), 16.0);
  EXPECT_EQ(lora::lora_plus_scale(ParameterRole::bias, 16), 16.0);
}

TEST(LoraPlus, SetsTheScaleOfEveryParameterAnew) {
  TwoFactors<float> model;
  auto parameters = model.parameters();
  lora::lora_plus(parameters, 16.0);
  EXPECT_EQ(parameters[0].learning_rate_scale(), 1.0);
  EXPECT_EQ(parameters[1].learning_rate_scale(), 16.0);
  lora::lora_plus(parameters, 2.0);
  EXPECT_EQ(parameters[1].learning_rate_scale(), 2.0);
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
    EXPECT_EQ(parameters[1].learning_rate_scale(), 1.0);
  }
}

}  // namespace
