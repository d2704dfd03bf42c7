// SPDX-License-Identifier: MIT
#include "lora/adapter/orthonormal.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <utility>

#include "support/random_matrix.hpp"

namespace lora::testing::orthonormal_test {
namespace {

template <class Scalar>
class Orthonormalize : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Orthonormalize, Scalars);

template <class Scalar>
constexpr Scalar epsilon = std::numeric_limits<Scalar>::epsilon();

template <class Scalar>
Matrix<Scalar> random(Index rows, Index cols, std::uint64_t seed = 1) {
  return random_matrix<Scalar>(rows, cols, seed);
}

template <class Scalar>
Matrix<Scalar> orthonormalized(const Matrix<Scalar>& w) {
  Columns<Scalar> columns(w.rows(), w.cols());
  columns.view().map() = w;
  orthonormalize(columns);
  return columns.view().map();
}

template <class Scalar>
void expect_orthonormal(const Matrix<Scalar>& q) {
  const Matrix<Scalar> gram = q.transpose() * q;
  const Scalar bound = 16 * epsilon<Scalar> * static_cast<Scalar>(q.rows());
  EXPECT_LE((gram - Matrix<Scalar>::Identity(q.cols(), q.cols())).norm(), bound);
}

TYPED_TEST(Orthonormalize, GivesTheQOfAFactorisationWhoseRHasAPositiveDiagonal) {
  constexpr TypeParam eps = epsilon<TypeParam>;
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {5, 0}, {5, 5}, {40, 7}, {64, 64}}) {
    const Matrix<TypeParam> w = random<TypeParam>(m, n);
    const Matrix<TypeParam> q = orthonormalized(w);
    expect_orthonormal(q);
    const Matrix<TypeParam> r = q.transpose() * w;
    const auto size = static_cast<TypeParam>(m);
    for (Index p = 0; p < n; ++p) {
      EXPECT_GT(r(p, p), 0);
      for (Index i = p + 1; i < n; ++i) EXPECT_NEAR(r(i, p), 0, 64 * eps * size);
    }
    EXPECT_LE((q * r - w).norm(), 16 * eps * size * (1 + w.norm()));
  }
}

// Once made orthogonal, these columns would be so to the root of epsilon only; twice is enough.
TYPED_TEST(Orthonormalize, StaysOrthogonalWhereColumnsAreNearlyParallel) {
  const TypeParam apart = std::sqrt(epsilon<TypeParam>);
  const Matrix<TypeParam> parallel = random<TypeParam>(30, 1) * Matrix<TypeParam>::Ones(1, 6);
  expect_orthonormal(orthonormalized<TypeParam>(parallel + apart * random<TypeParam>(30, 6)));
}

TYPED_TEST(Orthonormalize, FillsUpWhatColumnsThatDependOnOthersDoNotSpan) {
  for (const auto& [m, n] : {std::pair<Index, Index>{5, 3}, {5, 5}, {70, 1}, {70, 64}, {70, 70}}) {
    expect_orthonormal(orthonormalized<TypeParam>(Matrix<TypeParam>::Zero(m, n)));
    expect_orthonormal(orthonormalized<TypeParam>(random<TypeParam>(m, 1) * random<TypeParam>(1, n)));
    expect_orthonormal(orthonormalized<TypeParam>(random<TypeParam>(m, 2) * random<TypeParam>(2, n)));
    Matrix<TypeParam> each_twice = random<TypeParam>(m, n);
    for (Index p = 1; p < n; p += 2) each_twice.col(p) = each_twice.col(p - 1);
    expect_orthonormal(orthonormalized(each_twice));
    Matrix<TypeParam> mixed = each_twice;
    for (Index p = 0; p < n; p += 3) mixed.col(p).setZero();
    expect_orthonormal(orthonormalized(mixed));
  }
}

TYPED_TEST(Orthonormalize, AColumnOfZerosChangesNoneBeforeIt) {
  const Matrix<TypeParam> w = random<TypeParam>(9, 4);
  Matrix<TypeParam> followed = Matrix<TypeParam>::Zero(9, 7);
  followed.leftCols(4) = w;
  EXPECT_EQ(orthonormalized(followed).leftCols(4), orthonormalized(w));
}

// The rows' sums of squares are 9/25, 0 and 16/25, and with the second column 9/25, 1 and 16/25.
TYPED_TEST(Orthonormalize, ADependentColumnCountsAsTheUnitVectorFarthestFromThoseBefore) {
  Matrix<TypeParam> w = Matrix<TypeParam>::Zero(3, 3);
  w.leftCols(2) << 3, 6, 0, 0, 4, 8;
  const Matrix<TypeParam> q = orthonormalized(w);
  EXPECT_EQ(q.col(1), (Matrix<TypeParam>::Identity(3, 3).col(1)));
  EXPECT_NEAR(q(0, 2), 0.8, 4 * epsilon<TypeParam>);
  EXPECT_NEAR(q(1, 2), 0, 4 * epsilon<TypeParam>);
  EXPECT_NEAR(q(2, 2), -0.6, 4 * epsilon<TypeParam>);
}

TYPED_TEST(Orthonormalize, OfZerosItIsTheIdentity) {
  EXPECT_EQ(orthonormalized<TypeParam>(Matrix<TypeParam>::Zero(6, 4)), (Matrix<TypeParam>::Identity(6, 4)));
}

}  // namespace
}  // namespace lora::testing::orthonormal_test
