// SPDX-License-Identifier: MIT
#include "lora/core/finite.hpp"

#include <gtest/gtest.h>
#include <limits>

namespace {

using lora::is_finite;
using lora::is_nan;

template <class Scalar>
class Finite : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Finite, Scalars);

// The answers hold under -ffast-math too, where a compiler takes std::isfinite for true.
TYPED_TEST(Finite, LooksAtTheBits) {
  using Limits = std::numeric_limits<TypeParam>;
  static_assert(is_finite(TypeParam(0)) && is_finite(Limits::max()) && is_finite(Limits::denorm_min()));
  static_assert(!is_finite(Limits::infinity()) && !is_finite(-Limits::infinity()) && !is_finite(Limits::quiet_NaN()));
  for (const volatile TypeParam number :
       {TypeParam(0), TypeParam(-0.0), Limits::max(), Limits::lowest(), Limits::min(), Limits::denorm_min()}) {
    EXPECT_TRUE(is_finite(TypeParam(number)));
    EXPECT_FALSE(is_nan(static_cast<double>(number)));
  }
  for (const volatile TypeParam number :
       {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN()}) {
    EXPECT_FALSE(is_finite(TypeParam(number)));
  }
  EXPECT_TRUE(is_nan(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_TRUE(is_nan(-std::numeric_limits<double>::quiet_NaN()));
  EXPECT_FALSE(is_nan(std::numeric_limits<double>::infinity()));
}

}  // namespace
