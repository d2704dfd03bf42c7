// The parts of DoRA; tests/layers/linear_dora_test.cpp holds its passes to the dense formula.
#include "lora/adapter/dora.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"
#include "support/random_matrix.hpp"

namespace {

using lora::DenseWeight;
using lora::DoraMagnitude;
using lora::Index;
using lora::LowRankUpdate;
using lora::Matrix;
using lora::PackedWeight;
using lora::RowVector;
using lora::view_of;
using lora::Workspace;
using lora::testing::random_matrix;

template <class Scalar>
Scalar epsilon() {
  return std::numeric_limits<Scalar>::epsilon();
}

TEST(SquaredRowNorms, AreThoseOfEveryKindOfWeight) {
  const auto w = random_matrix<float>(70, 300, 1);
  const Matrix<float> stored = w.transpose();
  const RowVector<double> exact = w.cast<double>().rowwise().squaredNorm().transpose();
  RowVector<float> packed(70), by_rows(70), by_columns(70);
  lora::squared_row_norms(PackedWeight<float>(view_of(w)), packed.data());
  lora::squared_row_norms(DenseWeight<float>(view_of(w)), by_rows.data());
  lora::squared_row_norms(DenseWeight<float>(view_of(stored).transpose()), by_columns.data());
  for (Index j = 0; j < 70; ++j) {
    EXPECT_EQ(packed[j], static_cast<float>(exact[j]));
    EXPECT_EQ(by_rows[j], packed[j]);
    EXPECT_EQ(by_columns[j], packed[j]);
  }
}

template <class Scalar>
struct Adapted {
  Matrix<Scalar> w = random_matrix<Scalar>(20, 30, 1);
  Matrix<Scalar> a = random_matrix<Scalar>(4, 30, 2);
  Matrix<Scalar> b = random_matrix<Scalar>(20, 4, 3);
  PackedWeight<Scalar> weight{view_of(std::as_const(w))};

  [[nodiscard]] LowRankUpdate<Scalar> update() const { return {view_of(a), view_of(b), Scalar(1.5)}; }
  [[nodiscard]] Matrix<double> sum() const {
    return w.template cast<double>() + 1.5 * b.template cast<double>() * a.template cast<double>();
  }
};

template <class Scalar>
class Dora : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Dora, Scalars);

TYPED_TEST(Dora, WithoutItThereIsNothing) {
  const DoraMagnitude<TypeParam> none;
  EXPECT_FALSE(none.active());
  EXPECT_EQ(none.value().size(), 0);
  EXPECT_EQ(none.bytes(), 0U);
}

TYPED_TEST(Dora, StartsAsTheNormsSoThatEveryFactorIsExactlyOne) {
  const Adapted<TypeParam> adapted;
  const DoraMagnitude<TypeParam> dora(adapted.weight, adapted.update());
  ASSERT_TRUE(dora.active());
  const Matrix<double> sum = adapted.sum();
  for (Index j = 0; j < 20; ++j) {
    EXPECT_NEAR(dora.value()[j], sum.row(j).norm(), 64 * epsilon<TypeParam>() * sum.row(j).norm());
  }
  Workspace workspace;
  for (const TypeParam factor : dora.factors(adapted.weight, adapted.update(), workspace)) EXPECT_EQ(factor, 1);
  EXPECT_EQ(dora.bytes(), 2 * 20 * sizeof(TypeParam));
}

TYPED_TEST(Dora, FactorsAreMagnitudeOverTheNormOfNow) {
  Adapted<TypeParam> adapted;
  DoraMagnitude<TypeParam> dora(adapted.weight, adapted.update());
  dora.value().setConstant(TypeParam(2.5));
  adapted.b *= TypeParam(-3);
  const Matrix<double> sum = adapted.sum();
  Workspace workspace;
  const auto factors = dora.factors(adapted.weight, adapted.update(), workspace);
  for (Index j = 0; j < 20; ++j) {
    EXPECT_NEAR(factors[static_cast<std::size_t>(j)] * sum.row(j).norm(), 2.5, 256 * epsilon<TypeParam>());
  }
}

// The difference of squares would lose half the digits here: 1e-6 of n is 1e-12 of the terms.
TYPED_TEST(Dora, NormsAreExactWhereTheRowsNearlyCancel) {
  Adapted<TypeParam> adapted;
  const Matrix<double> update = 1.5 * adapted.b.template cast<double>() * adapted.a.template cast<double>();
  const auto noise = random_matrix<double>(20, 30, 9, 1e-4);
  adapted.w = (noise - update).template cast<TypeParam>();
  const Matrix<TypeParam> stored = adapted.w.transpose();
  const Matrix<double> sum = adapted.sum();
  RowVector<TypeParam> packed(20), by_columns(20);
  Workspace workspace;
  const PackedWeight<TypeParam> weight(view_of(std::as_const(adapted.w)));
  const DenseWeight<TypeParam> view(view_of(stored).transpose());
  const DoraMagnitude<TypeParam> dora(weight, adapted.update());
  dora.row_norms(weight, adapted.update(), packed.data(), workspace);
  DoraMagnitude<TypeParam>(view, adapted.update()).row_norms(view, adapted.update(), by_columns.data(), workspace);
  for (Index j = 0; j < 20; ++j) {
    EXPECT_NEAR(packed[j] / sum.row(j).norm(), 1, 4 * epsilon<TypeParam>());
    EXPECT_EQ(by_columns[j], packed[j]);
  }
}

TYPED_TEST(Dora, ARowWithoutDirectionHasTheFactorOne) {
  Adapted<TypeParam> adapted;
  adapted.w.row(3).setZero();
  adapted.b.row(3).setZero();
  const PackedWeight<TypeParam> weight(view_of(std::as_const(adapted.w)));
  DoraMagnitude<TypeParam> dora(weight, adapted.update());
  EXPECT_EQ(dora.value()[3], 0);
  dora.value()[3] = TypeParam(7);
  Workspace workspace;
  EXPECT_EQ(dora.factors(weight, adapted.update(), workspace)[3], 1);
}

}  // namespace
