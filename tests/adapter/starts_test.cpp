// SPDX-License-Identifier: MIT
#include "lora/adapter/starts.hpp"

#include <Eigen/LU>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>

#include "support/fnv1a.hpp"

namespace {

using lora::Index;
using lora::InitLoraWeights;
using lora::Matrix;
using lora::view_of;
using lora::testing::fnv1a;

template <class Scalar>
struct Factors {
  Matrix<Scalar> a;
  Matrix<Scalar> b;

  // Filled with a value that no initialisation leaves.
  Factors(Index rank, Index in_features, Index out_features)
      : a(Matrix<Scalar>::Constant(rank, in_features, 99)), b(Matrix<Scalar>::Constant(out_features, rank, 99)) {}

  Factors& start(InitLoraWeights init, std::uint64_t seed) {
    lora::initialize_factors(init, seed, view_of(a), view_of(b));
    return *this;
  }
};

// Mean 0 and variance `deviation`^2 within five standard errors. `kurtosis` is E[x^4] / deviation^4.
template <class Scalar>
void expect_moments(const Matrix<Scalar>& values, double deviation, double kurtosis) {
  const Matrix<double> wide = values.template cast<double>();
  const auto n = static_cast<double>(wide.size());
  const double variance = deviation * deviation;
  EXPECT_NEAR(wide.mean(), 0.0, 5 * deviation / std::sqrt(n));
  EXPECT_NEAR(wide.squaredNorm() / n, variance, 5 * variance * std::sqrt((kurtosis - 1) / n));
}

// Fills (-bound, bound): with n uniform deviates no end stays empty by more than 2 bound * 20 / n, but for e^-20.
template <class Scalar>
void expect_uniform(const Matrix<Scalar>& values, double bound) {
  const auto limit = static_cast<Scalar>(bound);
  const auto gap = static_cast<Scalar>(40 * bound / static_cast<double>(values.size()));
  EXPECT_LE(values.maxCoeff(), limit);
  EXPECT_GE(values.minCoeff(), -limit);
  EXPECT_GT(values.maxCoeff(), limit - gap);
  EXPECT_LT(values.minCoeff(), -limit + gap);
  expect_moments(values, bound / std::sqrt(3.0), 9.0 / 5.0);
}

template <class Scalar>
class Initialization : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Initialization, Scalars);

TYPED_TEST(Initialization, KaimingUniformFillsAUpToTheInverseRootOfInFeatures) {
  for (const Index in_features : {16, 300, 4096}) {
    Factors<TypeParam> factors(64, in_features, 5);
    factors.start(InitLoraWeights::kaiming_uniform, 1);
    expect_uniform(factors.a, 1.0 / std::sqrt(static_cast<double>(in_features)));
  }
}

TYPED_TEST(Initialization, KaimingUniformAndGaussianStartBAtZero) {
  for (const auto init : {InitLoraWeights::kaiming_uniform, InitLoraWeights::gaussian}) {
    Factors<TypeParam> factors(3, 7, 5);
    factors.start(init, 1);
    EXPECT_EQ(factors.b, (Matrix<TypeParam>::Zero(5, 3)));
    EXPECT_FALSE(std::signbit(factors.b.minCoeff()));
    EXPECT_GT(factors.a.cwiseAbs().minCoeff(), 0);
  }
}

TYPED_TEST(Initialization, GaussianHasDeviationOneOverRank) {
  for (const Index rank : {1, 4, 32}) {
    Factors<TypeParam> factors(rank, 40000 / rank, 2);
    factors.start(InitLoraWeights::gaussian, 3);
    expect_moments(factors.a, 1.0 / static_cast<double>(rank), 3.0);
    EXPECT_GT(factors.a.maxCoeff() * static_cast<TypeParam>(rank), 3);  // a uniform of that deviation ends at 1.73
  }
}

TYPED_TEST(Initialization, RandomFillsBUpToTheInverseRootOfRank) {
  Factors<TypeParam> factors(16, 20, 4000);
  factors.start(InitLoraWeights::random, 5);
  expect_uniform(factors.b, 0.25);
}

TYPED_TEST(Initialization, RandomStartsAAsKaimingUniformDoes) {
  Factors<TypeParam> kaiming(4, 9, 5);
  Factors<TypeParam> random(4, 9, 5);
  EXPECT_EQ(random.start(InitLoraWeights::random, 6).a, kaiming.start(InitLoraWeights::kaiming_uniform, 6).a);
}

TYPED_TEST(Initialization, AAndBAreIndependent) {
  Factors<TypeParam> factors(100, 100, 100);  // the same shape and bound: a shared stream would repeat the values
  factors.start(InitLoraWeights::random, 7);
  const double bound = 0.1;
  const double correlation =
      (factors.a.template cast<double>().array() * factors.b.template cast<double>().array()).sum() /
      (static_cast<double>(factors.a.size()) * bound * bound / 3);
  EXPECT_LT(std::abs(correlation), 5 / std::sqrt(static_cast<double>(factors.a.size())));
}

TYPED_TEST(Initialization, TheSeedDecidesEveryBit) {
  Factors<TypeParam> one(4, 9, 5);
  Factors<TypeParam> same(4, 9, 5);
  Factors<TypeParam> other(4, 9, 5);
  EXPECT_EQ(one.start(InitLoraWeights::random, 8).a, same.start(InitLoraWeights::random, 8).a);
  EXPECT_EQ(one.b, same.b);
  other.start(InitLoraWeights::random, 9);
  EXPECT_TRUE((one.a.array() != other.a.array()).all());
  EXPECT_TRUE((one.b.array() != other.b.array()).all());
}

// A is rank x in_features whatever the orientation of the weight, so the storage of A decides nothing.
TYPED_TEST(Initialization, FanInIsInFeaturesWhateverTheStorageOrder) {
  Factors<TypeParam> rows(4, 9, 5);
  rows.start(InitLoraWeights::random, 10);
  Matrix<TypeParam> a_transposed(9, 4);
  Matrix<TypeParam> b_transposed(4, 5);
  lora::initialize_factors(InitLoraWeights::random, 10, view_of(a_transposed).transpose(),
                           view_of(b_transposed).transpose());
  EXPECT_EQ(a_transposed.transpose(), rows.a);
  EXPECT_EQ(b_transposed.transpose(), rows.b);
}

TYPED_TEST(Initialization, RankZeroIsNoWork) {
  Factors<TypeParam> factors(0, 9, 5);
  for (const auto init : {InitLoraWeights::kaiming_uniform, InitLoraWeights::gaussian, InitLoraWeights::random}) {
    factors.start(init, 11);
    EXPECT_EQ(factors.a.size() + factors.b.size(), 0);
  }
}

// A = (G_A P)^T / 10 and B = G_B Q / 10 with P Q^T = 0: products of half the rank, of elements of N(0, 1) along unit
// rows, so that the mean square of A's elements is half / (100 rank) = 1 / 200, whatever the rank.
TYPED_TEST(Initialization, OrthogonalFillsBothFactorsAndTheirProductIsZero) {
  for (const Index rank : {2, 8, 32}) {
    Factors<TypeParam> factors(rank, 400, 300);
    lora::initialize_orthogonal(3, view_of(factors.a), view_of(factors.b));
    const auto epsilon = std::numeric_limits<TypeParam>::epsilon();
    EXPECT_LE((factors.b * factors.a).norm(), 4 * epsilon * factors.b.norm() * factors.a.norm());
    const auto samples_a = 200.0 * static_cast<double>(rank);  // independent normal deviates in A
    EXPECT_NEAR(static_cast<double>(factors.a.squaredNorm()) / (400.0 * static_cast<double>(rank)), 1.0 / 200,
                5 * std::sqrt(2 / samples_a) / 200);
    EXPECT_NEAR(static_cast<double>(factors.b.squaredNorm()) / (300.0 * static_cast<double>(rank)), 1.0 / 200,
                5 * std::sqrt(2 / (samples_a * 0.75)) / 200);
    EXPECT_EQ(Eigen::FullPivLU<Eigen::MatrixXd>(factors.a.template cast<double>()).setThreshold(1e-5).rank(), rank / 2);
  }
}

TYPED_TEST(Initialization, OrthogonalIsDecidedByTheSeed) {
  Factors<TypeParam> one(4, 9, 5), same(4, 9, 5), other(4, 9, 5);
  for (auto* factors : {&one, &same}) lora::initialize_orthogonal(8, view_of(factors->a), view_of(factors->b));
  lora::initialize_orthogonal(9, view_of(other.a), view_of(other.b));
  EXPECT_EQ(one.a, same.a);
  EXPECT_EQ(one.b, same.b);
  EXPECT_NE(one.a, other.a);
  EXPECT_NE(one.b, other.b);
}

// Hashes from a separate program in another language, which wrote Philox and the formula anew.
TEST(InitializationBits, AreTheSameEverywhere) {
  Factors<double> wide(4, 9, 5);
  wide.start(InitLoraWeights::random, 42);
  EXPECT_EQ(wide.a(0, 0), 0.24116653916950065);
  EXPECT_EQ(fnv1a(wide.a.data(), 36 * sizeof(double)), 0x35a0612142f8b6baU);
  EXPECT_EQ(fnv1a(wide.b.data(), 20 * sizeof(double)), 0xf7a8a421f8fd4715U);
  Factors<float> narrow(4, 9, 5);
  narrow.start(InitLoraWeights::random, 42);
  EXPECT_EQ(fnv1a(narrow.a.data(), 36 * sizeof(float)), 0x46a1fbb11fcc34ebU);
  EXPECT_EQ(fnv1a(narrow.b.data(), 20 * sizeof(float)), 0x559352323a862c8aU);
}

// Dropout takes the streams from 0 on, one a step.
TEST(InitializationStreams, AreApartFromThoseOfDropout) {
  EXPECT_GE(lora::detail::stream_of_A, std::uint64_t{1} << 63U);
  EXPECT_GE(lora::detail::stream_of_B, std::uint64_t{1} << 63U);
  EXPECT_NE(lora::detail::stream_of_A, lora::detail::stream_of_B);
}

}  // namespace
