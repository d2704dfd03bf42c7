// SPDX-License-Identifier: MIT
// What every optimiser does alike: it checks a whole step first, and changes nothing when one parameter is unfit.
#include "lora/optim/step_check.hpp"

#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "lora/optim/adamw.hpp"
#include "lora/optim/moments.hpp"
#include "lora/optim/sgd.hpp"
#include "optim/two_factors.hpp"

namespace {

using lora::ConfigError;
using lora::Parameter;
using lora::ParameterRole;
using lora::StateError;
using lora::testing::same;
using lora::testing::TwoFactors;

template <class Scalar>
struct WithAdamW {
  using Number = Scalar;
  using Optimizer = lora::AdamW<Scalar>;
  using Other = lora::SGD<Scalar>;
  Optimizer optimizer;
};

template <class Scalar>
struct WithPlainSgd {
  using Number = Scalar;
  using Optimizer = lora::SGD<Scalar>;
  using Other = lora::AdamW<Scalar>;
  Optimizer optimizer;
};

template <class Scalar>
struct WithMomentum : WithPlainSgd<Scalar> {
  WithMomentum() { this->optimizer = lora::SGD<Scalar>({.momentum = 0.9, .weight_decay = 0.01}); }
};

template <class Case>
class StepCheckTest : public testing::Test {
 protected:
  /// Expects a step to throw Failure and to leave the model as it was.
  template <class Failure>
  void expect_refusal(const std::vector<Parameter<typename Case::Number>>& parameters) {
    const auto before = model;
    EXPECT_THROW(optimizer.step(parameters), Failure);
    EXPECT_TRUE(same(model, before));
  }

  TwoFactors<typename Case::Number> model;
  typename Case::Optimizer optimizer = Case().optimizer;
};

using Cases = testing::Types<WithAdamW<float>, WithAdamW<double>, WithMomentum<float>, WithMomentum<double>,
                             WithPlainSgd<float>, WithPlainSgd<double>>;
TYPED_TEST_SUITE(StepCheckTest, Cases);

TYPED_TEST(StepCheckTest, AcceptsAnEmptyList) { EXPECT_NO_THROW(this->optimizer.step({})); }

TYPED_TEST(StepCheckTest, StepsAnArrayAndAVectorAlike) {
  using Scalar = typename TypeParam::Number;
  TwoFactors<Scalar> twin = this->model;
  const auto handles = twin.parameters();
  const std::array<Parameter<Scalar>, 2> list = {handles[0], handles[1]};
  this->optimizer.step(list);
  this->optimizer.step(this->model.parameters());
  EXPECT_TRUE(same(this->model, twin));
}

TYPED_TEST(StepCheckTest, AdvancesTimeOncePerStepAndReadsGradientsOnly) {
  const auto gradient = this->model.a.gradient;
  const auto value = this->model.a.value;
  for (int step = 1; step <= 3; ++step) {
    this->optimizer.step(this->model.parameters());
    EXPECT_EQ(this->model.a.moments.steps, step);
    EXPECT_EQ(this->model.b.moments.steps, step);
  }
  EXPECT_EQ(this->model.a.gradient, gradient);
  EXPECT_NE(this->model.a.value, value);
}

TYPED_TEST(StepCheckTest, GivesEachParameterItsOwnTime) {
  const auto parameters = this->model.parameters();
  this->optimizer.step(std::span(parameters).first(1));
  this->optimizer.step(parameters);
  EXPECT_EQ(this->model.a.moments.steps, 2);
  EXPECT_EQ(this->model.b.moments.steps, 1);
}

TYPED_TEST(StepCheckTest, RefusesALockedParameter) {
  bool locked = true;
  this->template expect_refusal<StateError>(this->model.parameters(&locked));
  locked = false;
  this->optimizer.step(this->model.parameters(&locked));
  locked = true;
  this->template expect_refusal<StateError>(this->model.parameters(&locked));
}

TYPED_TEST(StepCheckTest, RefusesALockedParameterWithoutElements) {
  using Scalar = typename TypeParam::Number;
  const bool locked = true;
  TwoFactors<Scalar> rank_zero(0);
  EXPECT_THROW(this->optimizer.step(rank_zero.parameters(&locked)), StateError);
}

TYPED_TEST(StepCheckTest, RefusesAParameterListedTwice) {
  auto parameters = this->model.parameters();
  parameters.push_back(parameters.front());
  this->template expect_refusal<StateError>(parameters);
}

TYPED_TEST(StepCheckTest, RefusesValuesThatOverlap) {
  using Scalar = typename TypeParam::Number;
  lora::Moments<Scalar> state;
  auto parameters = this->model.parameters();
  parameters.emplace_back("last row", ParameterRole::weight, &this->model.a.value(2, 0), &this->model.a.gradient(2, 0),
                          1, 11, state);
  this->template expect_refusal<StateError>(parameters);
  EXPECT_EQ(state.steps, 0);
}

TYPED_TEST(StepCheckTest, AcceptsNeighboursInOneBuffer) {
  using Scalar = typename TypeParam::Number;
  lora::Moments<Scalar> upper_state;
  lora::Moments<Scalar> lower_state;
  auto& a = this->model.a;
  const std::vector<Parameter<Scalar>> halves = {
      {"upper", ParameterRole::weight, &a.value(1, 0), &a.gradient(1, 0), 2, 11, upper_state},
      {"lower", ParameterRole::weight, &a.value(0, 0), &a.gradient(0, 0), 1, 11, lower_state}};
  TwoFactors<Scalar> twin;
  this->optimizer.step(halves);
  this->optimizer.step(twin.parameters());
  // Packets fall differently on the halves, so products may or may not be fused with sums.
  const Scalar bound = 8 * std::numeric_limits<Scalar>::epsilon() * (a.value.cwiseAbs().maxCoeff() + 1);
  EXPECT_LE((a.value - twin.a.value).cwiseAbs().maxCoeff(), bound);
}

TYPED_TEST(StepCheckTest, RefusesAStateThatTwoParametersShare) {
  using Scalar = typename TypeParam::Number;
  auto& [a, b] = this->model;
  const std::vector<Parameter<Scalar>> parameters = {
      {"A", ParameterRole::lora_A, a.value.data(), a.gradient.data(), 3, 7, a.moments},
      {"B", ParameterRole::lora_B, b.value.data(), b.gradient.data(), 7, 3, a.moments}};
  this->template expect_refusal<StateError>(parameters);
}

TYPED_TEST(StepCheckTest, RefusesAParameterWithoutMemory) {
  using Scalar = typename TypeParam::Number;
  lora::Moments<Scalar> state;
  auto parameters = this->model.parameters();
  parameters.emplace_back("no gradient", ParameterRole::weight, parameters[0].value().data(), nullptr, 1, 1, state);
  this->template expect_refusal<StateError>(parameters);
  parameters.back() = {"no value", ParameterRole::weight, nullptr, parameters[0].gradient().data(), 1, 1, state};
  this->template expect_refusal<StateError>(parameters);
}

TYPED_TEST(StepCheckTest, SkipsParametersWithoutElements) {
  using Scalar = typename TypeParam::Number;
  TwoFactors<Scalar> rank_zero(0);
  auto parameters = rank_zero.parameters();
  parameters.emplace_back();
  this->optimizer.step(parameters);
  EXPECT_EQ(rank_zero.a.moments.steps, 0);
  EXPECT_TRUE(rank_zero.a.moments.owner.empty());
  EXPECT_EQ(lora::moment_bytes(parameters), 0U);
  lora::reset_moments(parameters);
}

TYPED_TEST(StepCheckTest, RefusesTheStateOfAnotherOptimizer) {
  typename TypeParam::Other other;
  const auto parameters = this->model.parameters();
  other.step(std::span(parameters).subspan(1));
  this->template expect_refusal<StateError>(parameters);
  lora::reset_moments(parameters);
  EXPECT_NO_THROW(this->optimizer.step(parameters));
}

TYPED_TEST(StepCheckTest, RefusesAStateThatContradictsItself) {
  using Scalar = typename TypeParam::Number;
  const auto parameters = this->model.parameters();
  auto& state = this->model.b.moments;
  const auto elements = static_cast<std::size_t>(this->model.b.value.size());
  const lora::Moments<Scalar> contradictions[] = {
      {"", 3, {}, {}},
      {"", 0, std::vector<Scalar>(elements), {}},
      {"", 0, {}, std::vector<Scalar>(elements)},
      {TypeParam::Optimizer::name, 0, std::vector<Scalar>(elements), std::vector<Scalar>(elements)},
      {TypeParam::Optimizer::name, -1, std::vector<Scalar>(elements), std::vector<Scalar>(elements)},
      {TypeParam::Optimizer::name, 1, std::vector<Scalar>(elements - 1), std::vector<Scalar>(elements)},
      {TypeParam::Optimizer::name, 1, std::vector<Scalar>(elements), std::vector<Scalar>(elements + 1)}};
  for (const auto& contradiction : contradictions) {
    state = contradiction;
    this->template expect_refusal<StateError>(parameters);
  }
}

TYPED_TEST(StepCheckTest, RefusesAnUnusableLearningRateScale) {
  auto parameters = this->model.parameters();
  const double largest = std::numeric_limits<double>::max();
  for (const double scale : {-1.0, std::nan(""), std::numeric_limits<double>::infinity(), -largest}) {
    parameters[1].set_learning_rate_scale(scale);
    this->template expect_refusal<ConfigError>(parameters);
  }
  this->optimizer.set_learning_rate(1e30);
  parameters[1].set_learning_rate_scale(1e300);
  this->template expect_refusal<ConfigError>(parameters);
}

TYPED_TEST(StepCheckTest, RefusesAnUnusableLearningRateAndKeepsTheOldOne) {
  const double rate = this->optimizer.learning_rate();
  for (const double unusable : {-1e-3, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(this->optimizer.set_learning_rate(unusable), ConfigError);
    EXPECT_EQ(this->optimizer.learning_rate(), rate);
  }
}

TYPED_TEST(StepCheckTest, ALearningRateOfZeroMovesNothingButTime) {
  const auto value = this->model.a.value;
  this->optimizer.set_learning_rate(0);
  this->optimizer.step(this->model.parameters());
  EXPECT_EQ(this->model.a.value, value);
  EXPECT_EQ(this->model.a.moments.steps, 1);
}

TYPED_TEST(StepCheckTest, AScaledRateIsThatRate) {
  using Scalar = typename TypeParam::Number;
  TwoFactors<Scalar> twin;
  auto parameters = this->model.parameters();
  for (auto& parameter : parameters) parameter.set_learning_rate_scale(16);
  auto faster = this->optimizer;
  faster.set_learning_rate(16 * this->optimizer.learning_rate());
  for (int step = 0; step < 3; ++step) {
    this->optimizer.step(parameters);
    faster.step(twin.parameters());
  }
  EXPECT_TRUE(same(this->model, twin));
}

TYPED_TEST(StepCheckTest, NamesTheParameterAtFault) {
  const bool locked = true;
  try {
    this->optimizer.step(this->model.parameters(&locked));
    FAIL() << "accepted";
  } catch (const StateError& error) {
    EXPECT_NE(std::string(error.what()).find("lora_B.weight"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(TypeParam::Optimizer::name), std::string::npos) << error.what();
  }
}

}  // namespace
