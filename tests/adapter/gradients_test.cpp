// SPDX-License-Identifier: MIT
#include "lora/adapter/gradients.hpp"

#include <gtest/gtest.h>
#include <numeric>

namespace {

using lora::LoraGradients;
using lora::Matrix;
using lora::RowVector;

template <class Scalar>
class Gradients : public ::testing::Test {
 protected:
  // Every element of every member differs from the others.
  static LoraGradients<Scalar> numbered(Scalar first) {
    LoraGradients<Scalar> gradients{Matrix<Scalar>(2, 5), Matrix<Scalar>(3, 2), RowVector<Scalar>(3),
                                    RowVector<Scalar>(3), RowVector<Scalar>(3), {}};
    std::iota(gradients.A.data(), gradients.A.data() + 10, first);
    std::iota(gradients.B.data(), gradients.B.data() + 6, first + 10);
    std::iota(gradients.lora_bias.data(), gradients.lora_bias.data() + 3, first + 16);
    std::iota(gradients.bias.data(), gradients.bias.data() + 3, first + 19);
    std::iota(gradients.magnitude.data(), gradients.magnitude.data() + 3, first + 22);
    return gradients;
  }
};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Gradients, Scalars);

TYPED_TEST(Gradients, AddMemberByMember) {
  const auto one = this->numbered(1);
  const auto other = this->numbered(100);
  auto sum = one;
  EXPECT_EQ(&(sum += other), &sum);
  EXPECT_EQ(sum.A, one.A + other.A);
  EXPECT_EQ(sum.B, one.B + other.B);
  EXPECT_EQ(sum.lora_bias, one.lora_bias + other.lora_bias);
  EXPECT_EQ(sum.bias, one.bias + other.bias);
  EXPECT_EQ(sum.magnitude, one.magnitude + other.magnitude);
}

TYPED_TEST(Gradients, AddWhereSomeDoNotTrain) {
  LoraGradients<TypeParam> sum{Matrix<TypeParam>::Ones(2, 5), Matrix<TypeParam>::Ones(3, 2), {}, {}, {}, {}};
  const LoraGradients<TypeParam> other = sum;
  sum += other;
  EXPECT_EQ(sum.A, (Matrix<TypeParam>::Constant(2, 5, 2)));
  EXPECT_EQ(sum.B, (Matrix<TypeParam>::Constant(3, 2, 2)));
  EXPECT_EQ(sum.lora_bias.size() + sum.bias.size() + sum.magnitude.size(), 0);
}

TYPED_TEST(Gradients, SetZeroKeepsShapesAndMemory) {
  auto gradients = this->numbered(1);
  const TypeParam* memory = gradients.A.data();
  gradients.set_zero();
  EXPECT_EQ(gradients.A, (Matrix<TypeParam>::Zero(2, 5)));
  EXPECT_EQ(gradients.B, (Matrix<TypeParam>::Zero(3, 2)));
  EXPECT_EQ(gradients.lora_bias, (RowVector<TypeParam>::Zero(3)));
  EXPECT_EQ(gradients.bias, (RowVector<TypeParam>::Zero(3)));
  EXPECT_EQ(gradients.magnitude, (RowVector<TypeParam>::Zero(3)));
  EXPECT_EQ(gradients.A.data(), memory);
}

TYPED_TEST(Gradients, BytesCountWhatTrains) {
  EXPECT_EQ(this->numbered(1).bytes(), (10 + 6 + 3 + 3 + 3) * sizeof(TypeParam));
  EXPECT_EQ((LoraGradients<TypeParam>{}).bytes(), 0U);
}

// Those of a layer with several active adapters, in their order.
TYPED_TEST(Gradients, OfSeveralAdaptersAreAddedEach) {
  auto sum = this->numbered(1);
  sum.others = {this->numbered(200), this->numbered(3000)};
  EXPECT_EQ(sum.size(), 3U);
  EXPECT_EQ(&sum[0], &sum);
  EXPECT_EQ(&sum[1], &sum.others[0]);
  EXPECT_EQ(&sum[2], &sum.others[1]);
  EXPECT_EQ(sum.bytes(), 3 * this->numbered(1).bytes());
  auto other = this->numbered(10);
  other.others = {this->numbered(1000), this->numbered(20000)};
  sum += other;
  EXPECT_EQ(sum[0].B, this->numbered(1).B + this->numbered(10).B);
  EXPECT_EQ(sum[1].B, this->numbered(200).B + this->numbered(1000).B);
  EXPECT_EQ(sum[2].B, this->numbered(3000).B + this->numbered(20000).B);
  sum.set_zero();
  EXPECT_TRUE(sum[1].magnitude.isZero(0));
  EXPECT_TRUE(sum[2].magnitude.isZero(0));
}

TYPED_TEST(Gradients, NoneIsHeldBeforeSomethingTrains) {
  LoraGradients<TypeParam> none;
  none.set_zero();
  none += LoraGradients<TypeParam>{};
  EXPECT_EQ(none.A.size() + none.B.size() + none.lora_bias.size() + none.bias.size() + none.magnitude.size(), 0);
}

}  // namespace
