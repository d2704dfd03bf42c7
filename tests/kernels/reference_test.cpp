// SPDX-License-Identifier: MIT
#include "lora/kernels/reference.hpp"

#include <gtest/gtest.h>

namespace {

using lora::Index;
using lora::Matrix;
using lora::MatrixView;
using lora::view_of;
using lora::reference::add_product;

// Small integers, so that every product is exact in any order.
template <class Scalar>
Matrix<Scalar> integers(Index rows, Index cols, Index seed) {
  return Matrix<Scalar>::NullaryExpr(
      rows, cols, [=](Index i, Index j) { return static_cast<Scalar>((7 * i + 3 * j + seed) % 11 - 5); });
}

TEST(AddProduct, IsTheProductOnPaper) {
  Matrix<double> a(2, 3);
  Matrix<double> b(3, 2);
  Matrix<double> c(2, 2);
  a << 1, 2, 3, 4, 5, 6;
  b << 7, 8, 9, 10, 11, 12;
  c << 1000, 0, 0, 1000;
  add_product(2.0, view_of(a), view_of(b), view_of(c));
  Matrix<double> expected(2, 2);
  expected << 1116, 128, 278, 1308;  // 2 * {{58, 64}, {139, 154}} + c
  EXPECT_EQ(c, expected);
}

TEST(AddProduct, AgreesWithEigenOnIntegersOverOddSizes) {
  for (const Index n : {0, 1, 5}) {
    for (const Index p : {0, 1, 3, 8}) {
      for (const Index m : {0, 1, 7}) {
        const auto a = integers<float>(n, p, 1);
        const auto b = integers<float>(p, m, 2);
        Matrix<float> c = integers<float>(n, m, 3);
        // An empty sum adds nothing; Eigen would take rows of a null pointer for it.
        const Matrix<float> expected = p == 0 ? c : Matrix<float>(c - 3 * a.lazyProduct(b));
        add_product(-3.0, view_of(a), view_of(b), view_of(c));
        EXPECT_EQ(c, expected) << n << " x " << p << " x " << m;
      }
    }
  }
}

TEST(AddProduct, IsDistributiveInItsFirstFactor) {
  const auto a = integers<double>(4, 5, 1);
  const auto other = integers<double>(4, 5, 6);
  const auto b = integers<double>(5, 3, 2);
  const Matrix<double> sum = a + other;
  Matrix<double> at_once = Matrix<double>::Zero(4, 3);
  Matrix<double> one_by_one = Matrix<double>::Zero(4, 3);
  add_product(1.0, view_of(sum), view_of(b), view_of(at_once));
  add_product(1.0, view_of(a), view_of(b), view_of(one_by_one));
  add_product(1.0, view_of(other), view_of(b), view_of(one_by_one));
  EXPECT_EQ(at_once, one_by_one);
}

TEST(AddProduct, TransposesThroughItsViews) {
  const auto a = integers<double>(4, 5, 1);
  const auto b = integers<double>(5, 3, 2);
  Matrix<double> c = Matrix<double>::Zero(4, 3);
  Matrix<double> c_transposed = Matrix<double>::Zero(3, 4);
  add_product(1.0, view_of(a), view_of(b), view_of(c));
  add_product(1.0, view_of(b).transpose(), view_of(a).transpose(), view_of(c_transposed));
  EXPECT_EQ(c_transposed, c.transpose());
}

TEST(AddProduct, WritesNothingBesideItsView) {
  const auto a = integers<double>(2, 3, 1);
  const auto b = integers<double>(3, 2, 2);
  Matrix<double> frame = Matrix<double>::Constant(4, 4, 9);
  add_product(1.0, view_of(a), view_of(b), view_of(frame).middle_rows(1, 2).middle_cols(1, 2));
  Matrix<double> expected = Matrix<double>::Constant(4, 4, 9);
  expected.block(1, 1, 2, 2) += a.lazyProduct(b);
  EXPECT_EQ(frame, expected);
}

// 2^24 + 1 is no float: a sum in float would lose every one.
TEST(AddProduct, SumsInTheWiderType) {
  Matrix<float> a(1, 1001);
  a.setOnes();
  a(0, 0) = 16777216.0F;
  const Matrix<float> b = Matrix<float>::Ones(1001, 1);
  Matrix<double> wide = Matrix<double>::Zero(1, 1);
  Matrix<float> narrow = Matrix<float>::Zero(1, 1);
  add_product(1.0, view_of(a), view_of(b), view_of(wide));
  add_product(1.0F, view_of(a), view_of(b), view_of(narrow));
  EXPECT_EQ(wide(0, 0), 16778216.0);
  EXPECT_EQ(narrow(0, 0), 16777216.0F);
}

TEST(AddProduct, AnEmptyInnerDimensionAddsNothing) {
  Matrix<double> c = Matrix<double>::Constant(2, 2, 3);
  add_product(1.0, MatrixView<const double>{nullptr, 2, 0, 0, 1}, MatrixView<const double>{nullptr, 0, 2, 2, 1},
              view_of(c));
  EXPECT_EQ(c, (Matrix<double>::Constant(2, 2, 3)));
}

}  // namespace
