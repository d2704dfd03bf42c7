// SPDX-License-Identifier: MIT
#include "lora/optim/sgd.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <type_traits>
#include <vector>

#include "optim/two_factors.hpp"

namespace {

using lora::ConfigError;
using lora::Matrix;
using lora::ParameterRole;
using lora::SGD;
using lora::SGDOptions;
using lora::testing::TwoFactors;

template <class Scalar>
class SgdTest : public testing::Test {
 protected:
  /// The values of one scalar that starts at `value`, over steps with the gradients given.
  static std::vector<Scalar> path(const SGDOptions& options, Scalar value, const std::vector<Scalar>& gradients) {
    lora::Trainable<Scalar> scalar;
    scalar.value = Matrix<Scalar>::Constant(1, 1, value);
    const std::vector parameters = {scalar.parameter("p", ParameterRole::weight)};
    SGD<Scalar> optimizer(options);
    std::vector<Scalar> values;
    for (const Scalar gradient : gradients) {
      scalar.gradient(0, 0) = gradient;
      optimizer.step(parameters);
      values.push_back(scalar.value(0, 0));
    }
    return values;
  }
};

using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SgdTest, Scalars);

// The numbers of these tests are sums of few powers of two: no operation rounds.

TYPED_TEST(SgdTest, Plain) {
  const std::vector<TypeParam> expected = {1.5, 2.0};
  EXPECT_EQ(this->path({.learning_rate = 0.5}, 2, {1, -1}), expected);
}

TYPED_TEST(SgdTest, WeightDecayJoinsTheGradient) {
  const std::vector<TypeParam> expected = {1.25, 0.59375};  // 2 - (1 + 2/4)/2, 1.25 - (1 + 1.25/4)/2
  EXPECT_EQ(this->path({.learning_rate = 0.5, .weight_decay = 0.25}, 2, {1, 1}), expected);
}

TYPED_TEST(SgdTest, MomentumStartsAtTheGradient) {
  const std::vector<TypeParam> expected = {1.5, 0.75, -0.125};  // b = 1, 1.5, 1.75
  EXPECT_EQ(this->path({.learning_rate = 0.5, .momentum = 0.5}, 2, {1, 1, 1}), expected);
}

TYPED_TEST(SgdTest, DampeningSparesTheFirstGradient) {
  // d = 1.5, 1.3125; b = 1.5, 0.5 * 1.5 + 0.5 * 1.3125
  const std::vector<TypeParam> expected = {1.25, 0.546875};
  EXPECT_EQ(this->path({.learning_rate = 0.5, .momentum = 0.5, .dampening = 0.5, .weight_decay = 0.25}, 2, {1, 1}),
            expected);
}

TYPED_TEST(SgdTest, NesterovLooksAhead) {
  const std::vector<TypeParam> expected = {1.25, 0.375};  // steps 1 + 0.5 * 1, 1 + 0.5 * 1.5
  EXPECT_EQ(this->path({.learning_rate = 0.5, .momentum = 0.5, .nesterov = true}, 2, {1, 1}), expected);
}

TYPED_TEST(SgdTest, NesterovWithWeightDecayDecaysTheValueBeforeTheStep) {
  // d = 1.5, b = 1.5, step 1.5 + 0.75 = 2.25, p = 0.875; d = 1.21875, b = 1.96875, step 2.203125
  const std::vector<TypeParam> expected = {0.875, -0.2265625};
  EXPECT_EQ(this->path({.learning_rate = 0.5, .momentum = 0.5, .weight_decay = 0.25, .nesterov = true}, 2, {1, 1}),
            expected);
}

TYPED_TEST(SgdTest, MomentumTakenUpLaterStartsAtItsFirstGradient) {
  lora::Trainable<TypeParam> scalar;
  scalar.value = Matrix<TypeParam>::Constant(1, 1, 2);
  const std::vector parameters = {scalar.parameter("p", ParameterRole::weight)};
  scalar.gradient(0, 0) = 1;
  SGD<TypeParam>({.learning_rate = 0.5}).step(parameters);
  EXPECT_TRUE(scalar.moments.first.empty());
  SGD<TypeParam>({.learning_rate = 0.5, .momentum = 0.5, .dampening = 0.5}).step(parameters);
  EXPECT_EQ(scalar.value(0, 0), TypeParam(1));
  EXPECT_EQ(scalar.moments.first, std::vector<TypeParam>{1});
  EXPECT_EQ(scalar.moments.steps, 2);
}

TYPED_TEST(SgdTest, EveryElementFollowsTheFormula) {
  TwoFactors<TypeParam> model(5, 123, 67);
  const TwoFactors<TypeParam> before = model;
  SGD<TypeParam>({.learning_rate = 0.3, .weight_decay = 0.1}).step(model.parameters());
  const Matrix<double> value = before.b.value.template cast<double>();
  const Matrix<double> gradient = before.b.gradient.template cast<double>();
  const Matrix<double> expected = value - 0.3 * (gradient + 0.1 * value);
  // Two products, two sums and two coefficients round, on numbers of at most 1 + 0.3 * 1.1.
  const double bound = 6 * 1.33 * std::numeric_limits<TypeParam>::epsilon();
  EXPECT_LE((model.b.value.template cast<double>() - expected).cwiseAbs().maxCoeff(), bound);
}

TYPED_TEST(SgdTest, RefusesOptionsOutOfRange) {
  const double nan = std::nan("");
  const double infinite = std::numeric_limits<double>::infinity();
  for (const double bad : {-0.5, nan, infinite}) {
    EXPECT_THROW(SGD<TypeParam>({.learning_rate = bad}), ConfigError) << bad;
    EXPECT_THROW(SGD<TypeParam>({.momentum = bad}), ConfigError) << bad;
    EXPECT_THROW(SGD<TypeParam>({.dampening = bad}), ConfigError) << bad;
    EXPECT_THROW(SGD<TypeParam>({.weight_decay = bad}), ConfigError) << bad;
  }
  EXPECT_THROW(SGD<TypeParam>({.nesterov = true}), ConfigError);
  EXPECT_THROW(SGD<TypeParam>({.momentum = 0.9, .dampening = 0.1, .nesterov = true}), ConfigError);
  EXPECT_NO_THROW(SGD<TypeParam>({.learning_rate = 0, .momentum = 0.9, .nesterov = true}));
}

}  // namespace
