// SPDX-License-Identifier: MIT
// One adapter as a value: its name, its scaling, its parameters.
#include "lora/adapter/adapter.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "support/random_matrix.hpp"

namespace lora::adapter_test {
namespace {

template <class Scalar>
class Adapter : public ::testing::Test {
 protected:
  static LoraAdapter<Scalar> make(const LoraConfig& config = {.rank = 3, .alpha = 6}, std::string_view name = "a") {
    return LoraAdapter<Scalar>("test", name, config, 42,
                               {testing::random_matrix<Scalar>(3, 9, 1), testing::random_matrix<Scalar>(7, 3, 2)});
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Adapter, Scalars);

TYPED_TEST(Adapter, HoldsWhatItIsGiven) {
  const auto adapter = this->make();
  EXPECT_EQ(adapter.name(), "a");
  EXPECT_EQ(adapter.rank(), 3);
  EXPECT_EQ(adapter.total_rank(), 3);
  EXPECT_EQ(adapter.seed(), 42U);
  EXPECT_EQ(adapter.scaling(), TypeParam(2));
  EXPECT_EQ(adapter.scale(), 1);
  EXPECT_EQ(adapter.A, testing::random_matrix<TypeParam>(3, 9, 1));
  EXPECT_FALSE(adapter.merged());
  EXPECT_FALSE(adapter.drops());
  EXPECT_FALSE(adapter.uses_dora());
  EXPECT_EQ(adapter.parameter_count(), 3 * 9 + 7 * 3);
  EXPECT_EQ(adapter.bytes(), (3 * 9 + 7 * 3) * sizeof(TypeParam));
}

TYPED_TEST(Adapter, AStartCountsAsRankAndBytesAndDoesNotTrain) {
  auto adapter = this->make();
  adapter.start = {adapter.A, adapter.B};
  EXPECT_EQ(adapter.total_rank(), 6);
  EXPECT_EQ(adapter.parameter_count(), 3 * 9 + 7 * 3);
  EXPECT_EQ(adapter.bytes(), 2 * (3 * 9 + 7 * 3) * sizeof(TypeParam));
}

TYPED_TEST(Adapter, RefusesBadNamesAndConfigurationsInTheCallersName) {
  for (const char* name : {"", "a.b", "__base__"}) EXPECT_THROW(this->make({.rank = 3}, name), ConfigError);
  try {
    this->make({.rank = -2});
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "test: rank: expected 0 or more, got -2");
  }
}

// A finite alpha that is infinite in the layer's scalar would make every answer NaN: 0 * inf.
TYPED_TEST(Adapter, TheScalingIsFiniteOrNothingChanges) {
  auto adapter = this->make();
  adapter.set_alpha("set_alpha", 3);
  adapter.set_scale("set_scale", -2.5);
  EXPECT_EQ(adapter.scaling(), TypeParam(-2.5));
  adapter.set_alpha("set_alpha", 6);
  EXPECT_EQ(adapter.scaling(), TypeParam(-5));
  std::vector<double> bad = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()};
  if (sizeof(TypeParam) == 4) bad.push_back(1e300);
  for (const double number : bad) {
    EXPECT_THROW(adapter.set_alpha("set_alpha", number), ConfigError);
    EXPECT_THROW(adapter.set_scale("set_scale", number), ConfigError);
    EXPECT_THROW(adapter.check_scale("check", number), ConfigError);
    EXPECT_THROW(this->make({.rank = 3, .alpha = number}), ConfigError);
  }
  EXPECT_EQ(adapter.config().alpha, 6);
  EXPECT_EQ(adapter.scale(), -2.5);
  EXPECT_EQ(adapter.scaling(), TypeParam(-5));
}

TYPED_TEST(Adapter, WhileMergedItSaysWhoItIs) {
  auto adapter = this->make();
  EXPECT_NO_THROW(adapter.require_unmerged("call"));
  adapter.set_merged(true);
  EXPECT_TRUE(*adapter.merged_flag());
  try {
    adapter.require_unmerged("call");
    FAIL() << "accepted";
  } catch (const StateError& error) {
    EXPECT_STREQ(error.what(),
                 "call: adapter \"a\": expected an unmerged one (call train() or unmerge() first), got a merged one");
  }
}

TYPED_TEST(Adapter, ParametersComeInAFixedOrderWithTheirGradients) {
  auto adapter = this->make();
  adapter.lora_bias.setOnes(7);
  adapter.bias.setOnes(7);
  adapter.magnitude.setOnes(7);
  std::vector<ParameterRole> roles;
  std::vector<TypeParam*> gradients;
  adapter.for_each_parameter([&](ParameterRole role, TypeParam* value, TypeParam* gradient, Index rows, Index cols,
                                 Moments<TypeParam>& moments) {
    roles.push_back(role);
    gradients.push_back(gradient);
    moments.steps = static_cast<std::int64_t>(roles.size());
    for (Index i = 0; i < rows * cols; ++i) EXPECT_EQ(gradient[i], 0);
    EXPECT_NE(value, nullptr);
    gradient[0] = TypeParam(5);
  });
  using enum ParameterRole;
  EXPECT_EQ(roles, (std::vector<ParameterRole>{lora_A, lora_B, magnitude, lora_bias, ParameterRole::bias}));
  EXPECT_EQ(gradients[0], adapter.gradients().A.data());
  EXPECT_EQ(gradients[4], adapter.gradients().bias.data());
  const auto copy = adapter;
  adapter.zero_grad();
  EXPECT_EQ(adapter.gradients().A(0, 0), 0);
  auto mutable_copy = copy;
  EXPECT_EQ(mutable_copy.gradients().A(0, 0), 5);
  std::int64_t steps = 0;
  mutable_copy.for_each_parameter(
      [&](ParameterRole, TypeParam*, TypeParam*, Index, Index, Moments<TypeParam>& moments) {
        EXPECT_EQ(moments.steps, ++steps);  // moments follow the adapter
      });
}

}  // namespace
}  // namespace lora::adapter_test
