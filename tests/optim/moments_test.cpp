// SPDX-License-Identifier: MIT
#include "lora/optim/moments.hpp"

#include <gtest/gtest.h>
#include <span>

#include "lora/optim/adamw.hpp"
#include "lora/optim/sgd.hpp"
#include "optim/two_factors.hpp"

namespace {

using lora::AdamW;
using lora::SGD;
using lora::testing::same;
using lora::testing::TwoFactors;

template <class Scalar>
class OptimizerStateTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(OptimizerStateTest, Scalars);

TYPED_TEST(OptimizerStateTest, IsAbsentBeforeTheFirstStep) {
  TwoFactors<TypeParam> model;
  EXPECT_EQ(lora::moment_bytes(model.parameters()), 0U);
  EXPECT_EQ(model.a.moments.steps, 0);
}

TYPED_TEST(OptimizerStateTest, HasTheSizeOfTheMomentsOfWhatWasStepped) {
  TwoFactors<TypeParam> model;
  const auto parameters = model.parameters();
  const std::size_t bytes_of_b = static_cast<std::size_t>(model.b.value.size()) * sizeof(TypeParam);
  AdamW<TypeParam>().step(std::span(parameters).subspan(1));
  EXPECT_EQ(lora::moment_bytes(parameters), 2 * bytes_of_b);
  EXPECT_TRUE(model.a.moments.first.empty());

  lora::reset_moments(parameters);
  SGD<TypeParam>({.momentum = 0.5}).step(std::span(parameters).subspan(1));
  EXPECT_EQ(lora::moment_bytes(parameters), bytes_of_b);

  lora::reset_moments(parameters);
  SGD<TypeParam>().step(parameters);
  EXPECT_EQ(lora::moment_bytes(parameters), 0U);
}

TYPED_TEST(OptimizerStateTest, ResetMakesTheNextStepAFirstOne) {
  TwoFactors<TypeParam> fresh;
  TwoFactors<TypeParam> used;
  AdamW<TypeParam> optimizer;
  optimizer.step(used.parameters());
  used.a.value = fresh.a.value;
  used.b.value = fresh.b.value;
  lora::reset_moments(used.parameters());
  EXPECT_TRUE(same(used, fresh));

  SGD<TypeParam> other({.momentum = 0.9});
  other.step(used.parameters());
  other.step(fresh.parameters());
  EXPECT_TRUE(same(used, fresh));
}

TYPED_TEST(OptimizerStateTest, FollowsACopyWhichThenLivesOnItsOwn) {
  TwoFactors<TypeParam> model;
  AdamW<TypeParam> optimizer;
  optimizer.step(model.parameters());
  TwoFactors<TypeParam> copy = model;
  EXPECT_TRUE(same(copy, model));
  optimizer.step(copy.parameters());
  EXPECT_EQ(model.a.moments.steps, 1);
  EXPECT_EQ(copy.a.moments.steps, 2);
  EXPECT_FALSE(same(copy, model));
  optimizer.step(model.parameters());
  EXPECT_TRUE(same(copy, model));
}

TYPED_TEST(OptimizerStateTest, RestoredFromItsNumbersContinuesBitForBit) {
  TwoFactors<TypeParam> model;
  AdamW<TypeParam> optimizer;
  optimizer.step(model.parameters());
  TwoFactors<TypeParam> restored;
  restored.a.value = model.a.value;
  restored.b.value = model.b.value;
  restored.a.moments = {AdamW<TypeParam>::name, model.a.moments.steps, model.a.moments.first, model.a.moments.second};
  restored.b.moments = {AdamW<TypeParam>::name, model.b.moments.steps, model.b.moments.first, model.b.moments.second};
  optimizer.step(model.parameters());
  AdamW<TypeParam>().step(restored.parameters());
  EXPECT_TRUE(same(restored, model));
}

}  // namespace
