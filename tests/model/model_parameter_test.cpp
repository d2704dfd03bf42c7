// SPDX-License-Identifier: MIT
// A parameter that an adapter may train whole.
#include "lora/model/model_parameter.hpp"

#include <gtest/gtest.h>
#include <type_traits>
#include <vector>

#include "lora/model/adapter_weights.hpp"
#include "lora/optim/lora_plus.hpp"

namespace lora::testing::model_parameter_test {
namespace {

TEST(ModelParameter, HasTheShapeOfFiles) {
  Trainable<double> row{Matrix<double>::Zero(1, 6), {}, {}};
  Trainable<double> matrix{Matrix<double>::Zero(2, 3), {}, {}};
  EXPECT_EQ(ModelParameter<double>("a", row, {}).shape(), std::vector<Index>{6});
  EXPECT_EQ(ModelParameter<double>("a", matrix, {}).shape(), (std::vector<Index>{2, 3}));
  EXPECT_EQ(ModelParameter<double>("a", matrix, {1, 6, 1}).shape(), (std::vector<Index>{1, 6, 1}));
  EXPECT_THROW(ModelParameter<double>("a", matrix, {7}), ShapeError);
}

// Values, gradient and moments change places with those of an adapter together.
TEST(ModelParameter, ExchangesEverythingThatTrainingKeeps) {
  Trainable<double> users{Matrix<double>::Constant(2, 2, 1), Matrix<double>::Constant(2, 2, 5), {}};
  users.moments.steps = 3;
  ModelParameter<double> parameter("a", users, {});
  Trainable<double> other = parameter.copy();
  EXPECT_EQ(other.value, users.value);
  EXPECT_EQ(other.gradient.size(), 0);
  EXPECT_EQ(other.moments.steps, 0);
  other.value.setConstant(2);
  parameter.swap(other);
  EXPECT_EQ(users.value(0, 0), 2);
  EXPECT_EQ(users.moments.steps, 0);
  EXPECT_EQ(&parameter.current(), &users);
  EXPECT_EQ(parameter.saved(users).values, (std::vector<double>{2, 2, 2, 2}));
  EXPECT_EQ(parameter.saved(other).values, (std::vector<double>{1, 1, 1, 1}));
  parameter.swap(other);
  EXPECT_EQ(users.value(1, 1), 1);
  EXPECT_EQ(users.gradient(1, 1), 5);
  EXPECT_EQ(users.moments.steps, 3);
  static_assert(noexcept(parameter.swap(other)) && std::is_nothrow_move_assignable_v<Trainable<double>>);
}

TEST(ModelParameter, HandsOutAHandleWithItsGradient) {
  Trainable<double> value{Matrix<double>::Constant(1, 2, 1), {}, {}};
  ModelParameter<double> parameter("head.bias", value, {});
  auto handle = parameter.handle();
  EXPECT_EQ(handle.name(), "head.bias");
  handle.gradient().setOnes();
  EXPECT_EQ(value.gradient.sum(), 2);
  parameter.zero_grad();
  EXPECT_EQ(value.gradient.sum(), 0);
}

// PEFT gives LoRA+'s ratio to every tensor of one dimension; biases and norms that train whole had the rate of A.
TEST(ModelParameter, OfOneDimensionHasTheRatioOfLoraPlus) {
  Trainable<double> row{Matrix<double>::Zero(1, 6), {}, {}};
  Trainable<double> matrix{Matrix<double>::Zero(2, 3), {}, {}};
  const auto ratio = [](ModelParameter<double> parameter) { return lora_plus_scale(parameter.handle().role(), 16); };
  EXPECT_EQ(ratio({"head.bias", row, {}}), 16);
  EXPECT_EQ(ratio({"norm.weight", matrix, {6}}), 16);
  EXPECT_EQ(ratio({"head.weight", row, {1, 6}}), 1);
  EXPECT_EQ(ratio({"head.weight", matrix, {}}), 1);
}

}  // namespace
}  // namespace lora::testing::model_parameter_test
