// SPDX-License-Identifier: MIT
#include "lora/optim/clip.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "optim/two_factors.hpp"

namespace {

using lora::clip_gradient_norm;
using lora::ConfigError;
using lora::gradient_norm;
using lora::Matrix;
using lora::Parameter;
using lora::StateError;
using lora::testing::same;
using lora::testing::TwoFactors;

constexpr double infinity = std::numeric_limits<double>::infinity();

template <class Scalar>
class ClipTest : public testing::Test {
 protected:
  static constexpr double epsilon_of_scalar = std::numeric_limits<Scalar>::epsilon();

  /// Gradients of zeros but for one element in each factor.
  void set_gradients(Scalar in_a, Scalar in_b) {
    model.a.gradient.setZero();
    model.b.gradient.setZero();
    model.a.gradient(2, 5) = in_a;
    model.b.gradient(6, 1) = in_b;
  }

  TwoFactors<Scalar> model;
};

using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ClipTest, Scalars);

TYPED_TEST(ClipTest, NormIsOverAllParameters) {
  this->set_gradients(3, -4);
  EXPECT_EQ(gradient_norm(this->model.parameters()), 5.0);
}

TYPED_TEST(ClipTest, NormOfNothingIsZero) {
  this->set_gradients(0, 0);
  EXPECT_EQ(gradient_norm(this->model.parameters()), 0.0);
  EXPECT_EQ(gradient_norm(std::vector<Parameter<TypeParam>>(2)), 0.0);
  EXPECT_EQ(clip_gradient_norm(std::vector<Parameter<TypeParam>>(), 1.0), 0.0);
}

TYPED_TEST(ClipTest, ScalesToTheLargestNormAllowedAndReturnsTheOneBefore) {
  const TwoFactors<TypeParam> before = this->model;
  const auto parameters = this->model.parameters();
  const double norm = gradient_norm(parameters);
  EXPECT_NEAR(norm, std::hypot(before.a.gradient.norm(), before.b.gradient.norm()),
              54 * TestFixture::epsilon_of_scalar * norm);  // the reference sums up 54 squares in Scalar
  EXPECT_EQ(clip_gradient_norm(parameters, 0.5), norm);
  const double factor = 0.5 / (norm + 1e-6);
  const Matrix<double> expected = factor * before.a.gradient.template cast<double>();
  EXPECT_LE((this->model.a.gradient.template cast<double>() - expected).cwiseAbs().maxCoeff(),
            TestFixture::epsilon_of_scalar * factor);
  EXPECT_LE(gradient_norm(parameters), 0.5);
  EXPECT_GE(gradient_norm(parameters), 0.5 * (1 - 1e-6 / norm - 2 * TestFixture::epsilon_of_scalar));
  EXPECT_EQ(this->model.a.value, before.a.value);
}

TYPED_TEST(ClipTest, LeavesEveryBitOfGradientsWithinTheLimit) {
  const TwoFactors<TypeParam> before = this->model;
  const double norm = gradient_norm(this->model.parameters());
  EXPECT_EQ(clip_gradient_norm(this->model.parameters(), norm + 1e-5), norm);
  EXPECT_EQ(clip_gradient_norm(this->model.parameters(), infinity), norm);
  EXPECT_TRUE(same(this->model, before));
}

// As in PyTorch, the 1e-6 in the denominator makes a norm that equals the limit shrink by a hair.
TYPED_TEST(ClipTest, ShrinksANormEqualToTheLimitByTheDenominatorsTerm) {
  this->set_gradients(0, TypeParam(0x1p-10));
  clip_gradient_norm(this->model.parameters(), 0x1p-10);
  EXPECT_NEAR(this->model.b.gradient(6, 1), 0x1p-10 * (0x1p-10 / (0x1p-10 + 1e-6)),
              0x1p-10 * TestFixture::epsilon_of_scalar);
}

TYPED_TEST(ClipTest, ALimitOfZeroStopsTheStep) {
  clip_gradient_norm(this->model.parameters(), 0.0);
  EXPECT_EQ(this->model.a.gradient.cwiseAbs().maxCoeff(), TypeParam(0));
  EXPECT_EQ(this->model.b.gradient.cwiseAbs().maxCoeff(), TypeParam(0));
}

TYPED_TEST(ClipTest, NeitherHugeNorTinyGradientsAreLost) {
  using Limits = std::numeric_limits<TypeParam>;
  const std::vector<TypeParam> units = {std::scalbn(TypeParam(1), Limits::max_exponent - 4), Limits::min(),
                                        Limits::denorm_min()};
  for (const TypeParam unit : units) {
    this->set_gradients(3 * unit, 4 * unit);
    const double expected = 5 * static_cast<double>(unit);
    EXPECT_EQ(gradient_norm(this->model.parameters()), expected) << unit;
  }
}

TYPED_TEST(ClipTest, ClipsGradientsWhoseSquaresOverflow) {
  const TypeParam huge = std::scalbn(TypeParam(1), std::numeric_limits<TypeParam>::max_exponent - 100);
  this->set_gradients(3 * huge, 4 * huge);
  EXPECT_EQ(clip_gradient_norm(this->model.parameters(), 1.0), 5 * static_cast<double>(huge));
  EXPECT_NEAR(this->model.a.gradient(2, 5), 0.6, 2 * TestFixture::epsilon_of_scalar + 1e-6 / static_cast<double>(huge));
  EXPECT_NEAR(this->model.b.gradient(6, 1), 0.8, 2 * TestFixture::epsilon_of_scalar + 1e-6 / static_cast<double>(huge));
}

TYPED_TEST(ClipTest, ReportsANonFiniteNormAndTouchesNothing) {
  for (const double spoiled : {std::nan(""), infinity, -infinity}) {
    this->set_gradients(2, static_cast<TypeParam>(spoiled));
    const Matrix<TypeParam> untouched = this->model.a.gradient;
    const double norm = gradient_norm(this->model.parameters());
    EXPECT_EQ(std::isnan(norm), std::isnan(spoiled));
    EXPECT_FALSE(std::isfinite(norm));
    try {
      clip_gradient_norm(this->model.parameters(), 1.0);
      FAIL() << "accepted " << spoiled;
    } catch (const StateError& error) {
      EXPECT_NE(std::string(error.what()).find("lora_B.weight"), std::string::npos) << error.what();
    }
    EXPECT_EQ(this->model.a.gradient, untouched);
  }
}

TYPED_TEST(ClipTest, NaNWinsOverInfinity) {
  this->set_gradients(static_cast<TypeParam>(infinity), static_cast<TypeParam>(std::nan("")));
  EXPECT_TRUE(std::isnan(gradient_norm(this->model.parameters())));
}

TEST(ClipLimits, ANormBeyondTheLargestDoubleIsNotFinite) {
  TwoFactors<double> model;
  model.a.gradient.setConstant(std::numeric_limits<double>::max());
  EXPECT_EQ(gradient_norm(model.parameters()), infinity);
  EXPECT_THROW(clip_gradient_norm(model.parameters(), 1.0), StateError);
}

TYPED_TEST(ClipTest, RefusesALimitThatIsNone) {
  const TwoFactors<TypeParam> before = this->model;
  for (const double limit : {-1.0, -infinity, std::nan("")}) {
    EXPECT_THROW(clip_gradient_norm(this->model.parameters(), limit), ConfigError) << limit;
  }
  EXPECT_TRUE(same(this->model, before));
}

}  // namespace
