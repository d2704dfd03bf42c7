// SPDX-License-Identifier: MIT
// The parts of DoRA; the laws in tests/layers hold its passes to the dense formula.
#include "lora/adapter/dora.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <utility>
#include <vector>

#include "lora/layers/factor_pass.hpp"
#include "lora/weight/dense.hpp"
#include "lora/weight/matrix_weight.hpp"
#include "lora/weight/packed.hpp"
#include "support/random_matrix.hpp"

namespace lora::dora_test {
namespace {

using testing::random_matrix;
using Wide = long double;

TEST(SquaredRowNorms, AreThoseOfEveryKindOfWeightInDouble) {
  const auto w = random_matrix<float>(70, 300, 1);
  const Matrix<float> stored = w.transpose();
  const RowVector<double> exact = w.cast<double>().rowwise().squaredNorm().transpose();
  const PackedWeight<float> packed(view_of(w));
  const DenseWeight<float> dense(view_of(w)), by_columns(view_of(stored).transpose());
  const MatrixWeight<float> matrix(w);
  for (const WeightRef<float>& weight :
       {WeightRef<float>(packed), WeightRef<float>(dense), WeightRef<float>(by_columns), WeightRef<float>(matrix)}) {
    const auto squares = squared_row_norms(weight);
    ASSERT_EQ(squares.size(), 70U);
    for (Index j = 0; j < 70; ++j) {
      EXPECT_NEAR(squares[static_cast<std::size_t>(j)], exact[j],
                  300 * std::numeric_limits<double>::epsilon() * exact[j]);
    }
  }
}

template <class Scalar>
struct Adapted {
  Matrix<Scalar> w, a, b;
  Scalar scale;

  Adapted(Index outputs, Index inputs, Index rank, double s)
      : w(random_matrix<Scalar>(outputs, inputs, 1)),
        a(random_matrix<Scalar>(rank, inputs, 2)),
        b(random_matrix<Scalar>(outputs, rank, 3)),
        scale(static_cast<Scalar>(s)) {}

  [[nodiscard]] Matrix<Wide> update() const {
    return static_cast<Wide>(scale) * (b.template cast<Wide>() * a.template cast<Wide>()).eval();
  }
  [[nodiscard]] std::vector<double> norms() const {
    const PackedWeight<Scalar> weight(view_of(w));
    std::vector<double> result(static_cast<std::size_t>(w.rows()));
    Workspace workspace;
    const auto squares = squared_row_norms<Scalar>(weight);
    row_norms<Scalar>(weight, {view_of(a), view_of(b), scale}, squares, result.data(), workspace);
    return result;
  }
  // Relative to the size of the three terms of the square, which cancel by no more than a twentieth.
  void check(double scale_of_terms) const {
    const auto got = norms();
    const Matrix<Wide> sum = w.template cast<Wide>() + update();
    for (Index j = 0; j < w.rows(); ++j) {
      const Wide exact = sum.row(j).norm();
      const Wide bound = static_cast<Wide>(w.cols() + a.rows() + 4) * std::numeric_limits<Scalar>::epsilon() * exact *
                         static_cast<Wide>(scale_of_terms);
      EXPECT_LE(std::abs(static_cast<Wide>(got[static_cast<std::size_t>(j)]) - exact), bound) << j << " at " << scale;
    }
  }
};

template <class Scalar>
class RowNorms : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RowNorms, Scalars);

TYPED_TEST(RowNorms, AreThoseOfTheDenseSum) {
  for (const Index outputs : {1, 7, 8, 9, 40}) {
    for (const Index rank : {0, 1, 3, 16}) {
      for (const double scale : {1.0, -2.5, 0.0, 1e-6, 1e6}) Adapted<TypeParam>(outputs, 33, rank, scale).check(40);
    }
  }
}

// The difference of squares would lose all digits here, whatever the scale: 1e-6 of n is 1e-12 of the terms.
TYPED_TEST(RowNorms, AreExactWhereTermsCancelAtScalesFarFromOne) {
  for (const double scale : {1.5, 1e-3, 300.0, -0.01, 1e5}) {
    Adapted<TypeParam> adapted(20, 30, 4, scale);
    const Matrix<Wide> noise = random_matrix<double>(20, 30, 9, 1e-4).cast<Wide>();
    adapted.b = (adapted.b.template cast<Wide>() / static_cast<Wide>(adapted.scale)).template cast<TypeParam>();
    adapted.w = (noise - adapted.update()).template cast<TypeParam>();
    const auto got = adapted.norms();
    const Matrix<Wide> sum = adapted.w.template cast<Wide>() + adapted.update();
    for (Index j = 0; j < 20; ++j) {
      EXPECT_NEAR(got[static_cast<std::size_t>(j)] / static_cast<double>(sum.row(j).norm()), 1,
                  8 * std::numeric_limits<double>::epsilon() * 1e5)
          << scale;
    }
  }
}

TYPED_TEST(RowNorms, OfRowsThatCancelWhollyAreZeroAndNotNaN) {
  Adapted<TypeParam> adapted(9, 20, 3, 0.5);
  adapted.w = (-adapted.update()).template cast<TypeParam>();
  for (const double norm : adapted.norms()) {
    EXPECT_GE(norm, 0);
    EXPECT_LE(norm, 20 * std::numeric_limits<TypeParam>::epsilon());
  }
}

TYPED_TEST(RowNorms, OfHugeRowsDoNotOverflow) {
  Adapted<TypeParam> adapted(9, 20, 3, 1.0);
  const double huge = sizeof(TypeParam) == 4 ? 1e25 : 1e120;
  adapted.w *= static_cast<TypeParam>(huge);
  const auto norms = adapted.norms();
  for (Index j = 0; j < 9; ++j) {
    const auto exact = static_cast<double>(adapted.w.row(j).template cast<Wide>().norm());
    EXPECT_NEAR(norms[static_cast<std::size_t>(j)] / exact, 1, 64 * std::numeric_limits<TypeParam>::epsilon());
  }
}

// Two blocks of two outputs of six: the others have the factor 1, and so has a row without direction.
TEST(MagnitudeFactors, AreOfTheAdaptedOutputs) {
  const OutputBlocks blocks{6, 2, {0, 4}};
  RowVector<float> magnitude(4);
  magnitude << 1, 2, 3, 4;
  const std::vector<double> norms = {2, 0, 9, 9, 4, 1};
  std::vector<float> factors(6, -1);
  magnitude_factors(blocks, magnitude, norms.data(), factors.data());
  EXPECT_EQ(factors, (std::vector<float>{0.5F, 1, 1, 1, 0.75F, 4}));
  const std::vector<float> sums = {8, 7, 6, 5, 4, 3};
  RowVector<float> gradient = RowVector<float>::Ones(4);
  add_magnitude_gradient(blocks, sums.data(), norms.data(), gradient);
  EXPECT_EQ(gradient, (RowVector<float>(4) << 5, 1, 2, 4).finished());
}

}  // namespace
}  // namespace lora::dora_test
