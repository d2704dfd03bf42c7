// SPDX-License-Identifier: MIT
#include "lora/core/parameter.hpp"

#include <gtest/gtest.h>
#include <vector>

namespace {

using lora::Index;
using lora::Matrix;
using lora::Moments;
using lora::ParameterRole;
using Parameter = lora::Parameter<float>;
using Trainable = lora::Trainable<float>;

Trainable two_by_three() {
  Trainable trainable;
  trainable.value.resize(2, 3);
  trainable.value << 1, 2, 3, 4, 5, 6;
  return trainable;
}

TEST(Moments, IsEmptyBeforeTheFirstStepAndCountsItsBytes) {
  Moments<double> state;
  EXPECT_TRUE(state.owner.empty());
  EXPECT_EQ(state.steps, 0);
  EXPECT_EQ(state.bytes(), 0U);
  state.first.resize(6);
  EXPECT_EQ(state.bytes(), 6 * sizeof(double));
  state.second.resize(6);
  EXPECT_EQ(state.bytes(), 12 * sizeof(double));
}

TEST(Parameter, IsAHandleOnValueGradientAndState) {
  Trainable trainable = two_by_three();
  const Parameter parameter = trainable.parameter("lora_A.weight", ParameterRole::lora_A);
  EXPECT_EQ(parameter.name(), "lora_A.weight");
  EXPECT_EQ(parameter.role(), ParameterRole::lora_A);
  EXPECT_EQ(parameter.rows(), 2);
  EXPECT_EQ(parameter.cols(), 3);
  EXPECT_EQ(parameter.size(), 6);
  parameter.value()(1, 2) = 60;
  parameter.gradient()(0, 1) = 7;
  parameter.moments().steps = 4;
  EXPECT_EQ(trainable.value(1, 2), 60);
  EXPECT_EQ(trainable.gradient(0, 1), 7);
  EXPECT_EQ(trainable.moments.steps, 4);
}

TEST(Parameter, MapsShareTheOwnersMemory) {
  Trainable trainable = two_by_three();
  const Parameter parameter = trainable.parameter("p", ParameterRole::weight);
  EXPECT_EQ(parameter.value().data(), trainable.value.data());
  EXPECT_EQ(parameter.gradient().data(), trainable.gradient.data());
  EXPECT_EQ(&parameter.moments(), &trainable.moments);
  EXPECT_EQ(parameter.value(), trainable.value);
}

TEST(Parameter, RenamingChangesNothingElse) {
  Trainable trainable = two_by_three();
  Parameter parameter = trainable.parameter("p", ParameterRole::bias);
  parameter.rename("layers.0.p");
  EXPECT_EQ(parameter.name(), "layers.0.p");
  EXPECT_EQ(parameter.role(), ParameterRole::bias);
  EXPECT_EQ(parameter.value().data(), trainable.value.data());
}

TEST(Parameter, TrainsAtTheOptimizersRateUnlessToldOtherwise) {
  Trainable trainable = two_by_three();
  EXPECT_EQ(trainable.parameter("p", ParameterRole::lora_B).learning_rate_scale(), 1.0);
}

TEST(Parameter, TheLockIsReadAtEachCallAndGuardsTheValueOnly) {
  Trainable trainable = two_by_three();
  bool merged = false;
  const Parameter parameter = trainable.parameter("lora_B.weight", ParameterRole::lora_B, &merged);
  EXPECT_NO_THROW((void)parameter.value());
  merged = true;
  EXPECT_THROW((void)parameter.value(), lora::StateError);
  EXPECT_NO_THROW((void)parameter.gradient());
  EXPECT_NO_THROW((void)parameter.moments());
  merged = false;
  EXPECT_NO_THROW((void)parameter.value());
}

TEST(Parameter, TheLockMessageNamesOperationAndParameter) {
  Trainable trainable = two_by_three();
  const bool merged = true;
  const Parameter parameter = trainable.parameter("lora_B.weight", ParameterRole::lora_B, &merged);
  try {
    parameter.require_unlocked("AdamW::step");
    FAIL() << "accepted";
  } catch (const lora::StateError& error) {
    EXPECT_STREQ(
        error.what(),
        "AdamW::step: lora_B.weight: expected an unmerged layer (call train() or unmerge() first), got a merged "
        "one");
  }
}

TEST(Trainable, GradientMemoryComesWithItsFirstUseAndStartsAtZero) {
  Trainable trainable = two_by_three();
  EXPECT_EQ(trainable.gradient.size(), 0);
  const Parameter parameter = trainable.parameter("p", ParameterRole::weight);
  EXPECT_EQ(parameter.gradient(), (Matrix<float>::Zero(2, 3)));
}

TEST(Trainable, AGradientOfTheRightShapeIsKept) {
  Trainable trainable = two_by_three();
  trainable.ensure_gradient();
  trainable.gradient.setConstant(3);
  trainable.ensure_gradient();
  EXPECT_EQ(trainable.gradient, (Matrix<float>::Constant(2, 3, 3)));
}

// As many elements are not the same shape.
TEST(Trainable, AGradientOfAnotherShapeIsReplaced) {
  Trainable trainable = two_by_three();
  trainable.gradient = Matrix<float>::Constant(3, 2, 3);
  trainable.ensure_gradient();
  EXPECT_EQ(trainable.gradient, (Matrix<float>::Zero(2, 3)));
}

TEST(Trainable, StateFollowsACopy) {
  Trainable trainable = two_by_three();
  trainable.moments.first.assign(6, 1.5F);
  Trainable copy = trainable;
  copy.parameter("p", ParameterRole::weight).moments().first[0] = 9;
  EXPECT_EQ(trainable.moments.first[0], 1.5F);
  EXPECT_EQ(copy.moments.first[1], 1.5F);
}

// Defect: the scale lived in the handle and was lost with it.
TEST(Parameter, TheLearningRateScaleStandsBesideTheValue) {
  Trainable trainable = two_by_three();
  trainable.parameter("p", ParameterRole::lora_B).set_learning_rate_scale(16);
  EXPECT_EQ(trainable.parameter("p", ParameterRole::lora_B).learning_rate_scale(), 16.0);
  trainable.moments.forget();
  EXPECT_EQ(trainable.moments.learning_rate_scale, 16.0);
  EXPECT_EQ(Parameter().learning_rate_scale(), 1.0);
  Parameter().set_learning_rate_scale(2);  // a handle on nothing has none
}

TEST(Moments, ForgettingFreesTheMemory) {
  Moments<float> moments{"AdamW", 3, std::vector<float>(6), std::vector<float>(6)};
  moments.forget();
  EXPECT_TRUE(moments.owner.empty());
  EXPECT_EQ(moments.steps, 0);
  EXPECT_EQ(moments.first.capacity() + moments.second.capacity(), 0U);
}

}  // namespace
