#include "lora/adapter/magnitude.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>

#include "support/random_matrix.hpp"

namespace {

using lora::Index;
using lora::Matrix;
using lora::view_of;
using Wide = long double;

template <class Scalar>
struct Rows {
  Matrix<Scalar> w, a, b;
  Scalar scale;

  Rows(Index d, Index k, Index r, Scalar s)
      : w(lora::testing::random_matrix<Scalar>(d, k, 1)),
        a(lora::testing::random_matrix<Scalar>(r, k, 2)),
        b(lora::testing::random_matrix<Scalar>(d, r, 3)),
        scale(s) {}

  [[nodiscard]] lora::RowVector<Scalar> norms() const {
    const lora::RowVector<Scalar> squared = w.rowwise().squaredNorm().transpose();
    const Matrix<Scalar> projected = w * a.transpose();
    const Matrix<Scalar> gram = a * a.transpose();
    lora::RowVector<Scalar> result(w.rows());
    lora::adapted_row_norms<Scalar>(squared.data(), view_of(projected), view_of(gram), view_of(b), scale,
                                    result.data());
    return result;
  }

  [[nodiscard]] Matrix<Wide> sum() const {
    return w.template cast<Wide>() +
           static_cast<Wide>(scale) * (b.template cast<Wide>() * a.template cast<Wide>()).eval();
  }
};

template <class Scalar>
class Magnitude : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Magnitude, Scalars);

// The square is a sum of three terms, each of at most 2 (k + r) roundings of numbers that do not pass its magnitude.
TYPED_TEST(Magnitude, IsTheNormOfTheDenseSum) {
  for (const Index d : {1, 7, 8, 9, 40}) {
    for (const Index r : {0, 1, 3, 16}) {
      for (const double s : {1.0, -2.5, 0.0}) {
        const Rows<TypeParam> rows(d, 33, r, static_cast<TypeParam>(s));
        const auto norms = rows.norms();
        const auto sum = rows.sum();
        for (Index j = 0; j < d; ++j) {
          const Wide exact = sum.row(j).norm();
          Wide size = rows.w.row(j).template cast<Wide>().norm();
          for (Index p = 0; p < r; ++p) {
            size += std::abs(static_cast<Wide>(s) * rows.b(j, p)) * rows.a.row(p).template cast<Wide>().norm();
          }
          const Wide bound = 2 * (33 + static_cast<Wide>(r) + 2) * std::numeric_limits<TypeParam>::epsilon() * size *
                             size / (2 * exact);
          EXPECT_LE(std::abs(static_cast<Wide>(norms[j]) - exact), bound) << d << " " << r << " " << s << " " << j;
        }
      }
    }
  }
}

TYPED_TEST(Magnitude, IsExactlyTheNormOfWWhereBIsZero) {
  Rows<TypeParam> rows(9, 20, 3, TypeParam(2));
  rows.b.setZero();
  const auto norms = rows.norms();
  for (Index j = 0; j < 9; ++j) {
    const double squared = static_cast<double>(rows.w.row(j).squaredNorm());
    EXPECT_EQ(norms[j], static_cast<TypeParam>(std::sqrt(squared)));
  }
}

TYPED_TEST(Magnitude, IsZeroAndNotNaNWhereTheRowCancels) {
  Rows<TypeParam> rows(9, 20, 3, TypeParam(0.5));
  rows.w = -TypeParam(0.5) * rows.b * rows.a;
  const auto norms = rows.norms();
  for (Index j = 0; j < 9; ++j) {
    EXPECT_GE(norms[j], TypeParam(0));
    EXPECT_LE(norms[j], 16 * std::sqrt(std::numeric_limits<TypeParam>::epsilon()));
  }
}

TYPED_TEST(Magnitude, MayBeWrittenOverTheSquaredNorms) {
  const Rows<TypeParam> rows(19, 20, 3, TypeParam(2));
  const Matrix<TypeParam> projected = rows.w * rows.a.transpose();
  const Matrix<TypeParam> gram = rows.a * rows.a.transpose();
  lora::RowVector<TypeParam> in_place = rows.w.rowwise().squaredNorm().transpose();
  lora::adapted_row_norms<TypeParam>(in_place.data(), view_of(projected), view_of(gram), view_of(rows.b), rows.scale,
                                     in_place.data());
  EXPECT_EQ(in_place, rows.norms());
}

}  // namespace
