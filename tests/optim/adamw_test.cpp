// SPDX-License-Identifier: MIT
#include "lora/optim/adamw.hpp"

#include <bit>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "optim/two_factors.hpp"

namespace {

using lora::AdamW;
using lora::AdamWOptions;
using lora::ConfigError;
using lora::Index;
using lora::Matrix;
using lora::ParameterRole;
using lora::testing::TwoFactors;

template <class Scalar>
class AdamWTest : public testing::Test {
 protected:
  static constexpr double epsilon_of_scalar = std::numeric_limits<Scalar>::epsilon();
};

using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(AdamWTest, Scalars);

/// The formula, one element at a time, in double.
struct Oracle {
  AdamWOptions options;
  double value = 0;
  double first = 0;
  double second = 0;
  int time = 0;

  void step(double gradient) {
    ++time;
    value *= 1 - options.learning_rate * options.weight_decay;
    first = options.beta1 * first + (1 - options.beta1) * gradient;
    second = options.beta2 * second + (1 - options.beta2) * gradient * gradient;
    const double denominator = std::sqrt(second) / std::sqrt(1 - std::pow(options.beta2, time)) + options.epsilon;
    value -= options.learning_rate / (1 - std::pow(options.beta1, time)) * first / denominator;
  }
};

TEST(AdamWUsage, TakesOptionsByNameAndThoseOfPyTorchOtherwise) {
  const AdamW<float> optimizer({.learning_rate = 1e-2f});
  EXPECT_EQ(optimizer.learning_rate(), static_cast<double>(1e-2f));
  EXPECT_EQ(optimizer.options().beta1, 0.9);
  EXPECT_EQ(optimizer.options().beta2, 0.999);
  EXPECT_EQ(optimizer.options().epsilon, 1e-8);
  EXPECT_EQ(optimizer.options().weight_decay, 0.01);
  EXPECT_EQ(AdamW<float>().learning_rate(), 1e-3);
}

TYPED_TEST(AdamWTest, FirstStepIsTheClosedForm) {
  TwoFactors<TypeParam> model;
  const TwoFactors<TypeParam> before = model;
  AdamW<TypeParam>({.learning_rate = 0.25, .epsilon = 0.125, .weight_decay = 0.5}).step(model.parameters());
  for (Index i = 0; i < model.a.value.size(); ++i) {
    const double gradient = before.a.gradient.data()[i];
    const double expected =
        before.a.value.data()[i] * (1 - 0.25 * 0.5) - 0.25 * gradient / (std::abs(gradient) + 0.125);
    // Ten roundings, on numbers of at most 1 + 0.25.
    EXPECT_NEAR(model.a.value.data()[i], expected, 10 * 1.25 * TestFixture::epsilon_of_scalar) << i;
  }
}

// Sizes around the packet and the chunk; gradients of one sign per element, so that moments do not cancel.
TYPED_TEST(AdamWTest, AgreesWithTheFormulaElementByElement) {
  const AdamWOptions options{.learning_rate = 0.05, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-3, .weight_decay = 0.2};
  constexpr int steps = 5;
  for (const Index size : {1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 511, 512, 513, 1024, 1037}) {
    lora::Trainable<TypeParam> vector;
    vector.value = TwoFactors<TypeParam>::wave(1, size, 0.4);
    const Matrix<TypeParam> direction = TwoFactors<TypeParam>::wave(1, size, 1.9);
    const std::vector parameters = {vector.parameter("p", ParameterRole::weight)};
    std::vector<Oracle> oracles(static_cast<std::size_t>(size));
    for (Index i = 0; i < size; ++i) oracles[static_cast<std::size_t>(i)] = {options, vector.value(0, i)};
    AdamW<TypeParam> optimizer(options);
    for (int step = 1; step <= steps; ++step) {
      vector.gradient = direction * TypeParam(step);
      optimizer.step(parameters);
      for (Index i = 0; i < size; ++i) oracles[static_cast<std::size_t>(i)].step(vector.gradient(0, i));
    }
    // Per step: the product with 1 - rate * decay, and an update of at most 2 rates, of some twenty roundings.
    const double bound = steps * (1 + 2 * options.learning_rate * 20) * TestFixture::epsilon_of_scalar;
    for (Index i = 0; i < size; ++i) {
      ASSERT_NEAR(vector.value(0, i), oracles[static_cast<std::size_t>(i)].value, bound) << size << " " << i;
    }
  }
}

TYPED_TEST(AdamWTest, AConstantGradientMovesByTheRateWhateverItsSize) {
  TwoFactors<TypeParam> model;
  const TwoFactors<TypeParam> before = model;
  constexpr int steps = 8;
  AdamW<TypeParam> optimizer({.learning_rate = 0.125, .epsilon = 0, .weight_decay = 0});
  for (int step = 0; step < steps; ++step) optimizer.step(model.parameters());
  for (Index i = 0; i < model.a.value.size(); ++i) {
    const double expected = before.a.value.data()[i] - steps * std::copysign(0.125, before.a.gradient.data()[i]);
    // After t steps each moment carries t roundings relative to itself; values stay below 2.
    EXPECT_NEAR(model.a.value.data()[i], expected,
                steps * (2 + 0.125 * (2 * steps + 6)) * TestFixture::epsilon_of_scalar);
  }
}

TYPED_TEST(AdamWTest, WithoutEpsilonScalingAllGradientsByAPowerOfTwoChangesNoBit) {
  TwoFactors<TypeParam> model;
  TwoFactors<TypeParam> scaled;
  AdamW<TypeParam> optimizer({.learning_rate = 0.1, .epsilon = 0});
  for (int step = 1; step <= 4; ++step) {
    model.a.gradient = TwoFactors<TypeParam>::wave(3, 11, step);
    scaled.a.gradient = 0x1p-20 * model.a.gradient.template cast<double>().template cast<TypeParam>();
    optimizer.step(model.parameters());
    optimizer.step(scaled.parameters());
    EXPECT_EQ(model.a.value, scaled.a.value) << step;
  }
}

TYPED_TEST(AdamWTest, EpsilonDampsAStepByItsRatioToTheGradient) {
  for (const double size : {1.0, 16.0}) {
    lora::Trainable<TypeParam> scalar;
    scalar.value = Matrix<TypeParam>::Zero(1, 1);
    const std::vector parameters = {scalar.parameter("p", ParameterRole::weight)};
    scalar.gradient(0, 0) = static_cast<TypeParam>(size);
    AdamW<TypeParam>({.learning_rate = 1, .epsilon = 0.5}).step(parameters);
    EXPECT_NEAR(scalar.value(0, 0), -size / (size + 0.5), 8 * TestFixture::epsilon_of_scalar);
  }
}

TYPED_TEST(AdamWTest, WeightDecayStaysOutOfTheMoments) {
  TwoFactors<TypeParam> model;
  TwoFactors<TypeParam> decayed;
  AdamW<TypeParam>({.weight_decay = 0}).step(model.parameters());
  AdamW<TypeParam>({.weight_decay = 0.5}).step(decayed.parameters());
  EXPECT_EQ(model.a.moments.first, decayed.a.moments.first);
  EXPECT_EQ(model.a.moments.second, decayed.a.moments.second);
  EXPECT_NE(model.a.value, decayed.a.value);
}

TYPED_TEST(AdamWTest, ValuesWithoutGradientOnlyDecay) {
  TwoFactors<TypeParam> model;
  model.a.gradient.setZero();
  const TwoFactors<TypeParam> before = model;
  AdamW<TypeParam>({.learning_rate = 0.5, .weight_decay = 0.5}).step(model.parameters());
  EXPECT_EQ(model.a.value, TypeParam(0.75) * before.a.value);
}

TYPED_TEST(AdamWTest, WithBothBetasZeroItStepsByTheSign) {
  TwoFactors<TypeParam> model;
  model.a.value.setZero();
  AdamW<TypeParam> optimizer({.learning_rate = 0.25, .beta1 = 0, .beta2 = 0, .epsilon = 0});
  optimizer.step(model.parameters());
  for (Index i = 0; i < model.a.value.size(); ++i) {
    EXPECT_NEAR(model.a.value.data()[i], -std::copysign(0.25, model.a.gradient.data()[i]),
                2 * 0.25 * TestFixture::epsilon_of_scalar);
  }
}

// Nine equal elements, so that packets and tail meet the same numbers.
TYPED_TEST(AdamWTest, AGradientWhoseSquareOverflowsStopsTheElementInsteadOfSpoilingIt) {
  const auto huge = static_cast<TypeParam>(std::numeric_limits<TypeParam>::max() / 4);
  lora::Trainable<TypeParam> vector;
  vector.value = Matrix<TypeParam>::Constant(1, 9, 2);
  const std::vector parameters = {vector.parameter("p", ParameterRole::weight)};
  vector.gradient.setConstant(huge);
  AdamW<TypeParam>({.learning_rate = 0.5, .weight_decay = 0}).step(parameters);
  EXPECT_EQ(vector.value, (Matrix<TypeParam>::Constant(1, 9, 2)));
}

TYPED_TEST(AdamWTest, SquareRootIsRoundedToNearestEverywhere) {
  using Limits = std::numeric_limits<TypeParam>;
  std::vector<TypeParam> in = {0,
                               -TypeParam(0),
                               Limits::denorm_min(),
                               Limits::min() / 8,
                               Limits::min(),
                               Limits::max(),
                               Limits::infinity(),
                               1,
                               2,
                               3,
                               5,
                               TypeParam(0.1),
                               TypeParam(1e-20)};
  using Lanes = lora::detail::Pack<TypeParam>;
  for (const TypeParam x : in) {
    typename Lanes::Type pack{};
    pack[0] = x;
    pack[Lanes::lanes - 1] = x;
    Lanes::square_root(pack);
    for (const Index lane : {Index{0}, Lanes::lanes - 1}) {
      EXPECT_EQ(pack[lane], std::sqrt(x)) << x;
      EXPECT_EQ(std::signbit(pack[lane]), std::signbit(std::sqrt(x))) << x;
    }
  }
}

// Whatever its neighbours, an element has the bits it has alone: packs and the rest behind them compute alike.
TYPED_TEST(AdamWTest, AnElementDoesNotDependOnItsPlace) {
  TwoFactors<TypeParam> model(1, 37, 1);
  const TwoFactors<TypeParam> before = model;
  AdamW<TypeParam>().step(model.parameters());
  for (Index i = 0; i < 37; ++i) {
    lora::Trainable<TypeParam> one;
    one.value = before.a.value.col(i);
    one.gradient = before.a.gradient.col(i);
    const std::vector parameters = {one.parameter("p", ParameterRole::weight)};
    AdamW<TypeParam>().step(parameters);
    EXPECT_EQ(one.value(0, 0), model.a.value(0, i)) << i;
  }
}

TYPED_TEST(AdamWTest, RefusesOptionsOutOfRange) {
  const double nan = std::nan("");
  const double infinite = std::numeric_limits<double>::infinity();
  for (const double bad : {-0.5, nan, infinite}) {
    EXPECT_THROW(AdamW<TypeParam>({.learning_rate = bad}), ConfigError) << bad;
    EXPECT_THROW(AdamW<TypeParam>({.beta1 = bad}), ConfigError) << bad;
    EXPECT_THROW(AdamW<TypeParam>({.beta2 = bad}), ConfigError) << bad;
    EXPECT_THROW(AdamW<TypeParam>({.epsilon = bad}), ConfigError) << bad;
    EXPECT_THROW(AdamW<TypeParam>({.weight_decay = bad}), ConfigError) << bad;
  }
  EXPECT_THROW(AdamW<TypeParam>({.beta1 = 1}), ConfigError);
  EXPECT_THROW(AdamW<TypeParam>({.beta2 = 1}), ConfigError);
  EXPECT_NO_THROW(AdamW<TypeParam>({.learning_rate = 0, .beta1 = 0, .beta2 = 0, .epsilon = 0, .weight_decay = 0}));
}

TEST(AdamWOptionsRange, IsThatOfTheScalar) {
  EXPECT_THROW(AdamW<float>({.learning_rate = 1e300}), ConfigError);
  EXPECT_NO_THROW(AdamW<double>({.learning_rate = 1e300}));
}

}  // namespace
