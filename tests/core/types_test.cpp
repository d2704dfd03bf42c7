// SPDX-License-Identifier: MIT
#include "lora/core/types.hpp"

#include <gtest/gtest.h>
#include <type_traits>

namespace {

TEST(RealScalar, IsFloatOrDoubleAndNothingElse) {
  EXPECT_TRUE(lora::RealScalar<float>);
  EXPECT_TRUE(lora::RealScalar<double>);
  EXPECT_FALSE(lora::RealScalar<int>);
  EXPECT_FALSE(lora::RealScalar<long double>);
  EXPECT_FALSE(lora::RealScalar<const float>);
  EXPECT_FALSE(lora::RealScalar<float&>);
}

TEST(Matrix, IsRowMajor) {
  lora::Matrix<float> matrix(2, 3);
  matrix << 1, 2, 3, 4, 5, 6;
  for (lora::Index i = 0; i < 6; ++i) EXPECT_EQ(matrix.data()[i], static_cast<float>(i + 1));
}

TEST(RowVector, IsOneContiguousRow) {
  const lora::RowVector<double> vector(5);
  EXPECT_EQ(vector.rows(), 1);
  EXPECT_EQ(vector.cols(), 5);
  EXPECT_EQ(vector.innerStride(), 1);
}

TEST(Index, IsSignedAndAsWideAsAnAddress) {
  EXPECT_TRUE(std::is_signed_v<lora::Index>);
  EXPECT_EQ(sizeof(lora::Index), sizeof(void*));
}

}  // namespace
