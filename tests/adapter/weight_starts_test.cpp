// SPDX-License-Identifier: MIT
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "lora/adapter/starts.hpp"
#include "support/random_matrix.hpp"

namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;
using lora::ConfigError;
using lora::Index;
using lora::InitLoraWeights;
using lora::LoraConfig;
using lora::Matrix;
using lora::view_of;

MatrixXd random_weight(Index rows, Index cols) { return lora::testing::random_matrix<double>(rows, cols, 1); }

lora::MatrixView<const double> view(const MatrixXd& w) { return view_of(w); }

auto pissa_factors(const MatrixXd& w, Index rank, double scaling, Index iterations, std::uint64_t seed) {
  return lora::pissa_factors(view(w), rank, scaling, iterations, seed);
}

// s*B*A is the best approximation of rank r: what is left has the norm of the other singular values (Eckart and Young).
TEST(PissaFactors, TakeThePrincipalPart) {
  for (const double s : {0.5, 2.0}) {
    const MatrixXd w = random_weight(14, 20);
    const auto factors = pissa_factors(w, 4, s, 0, 1);
    const auto whole = lora::truncated_svd(view(w), 14);
    const VectorXd values = VectorXd::Map(whole.S.data(), 14);
    const MatrixXd residual = w - s * factors.B * factors.A;
    EXPECT_NEAR(residual.norm(), values.tail(10).norm(), 1e-12);
    // Both factors carry the root of the value: |A_p| = |B_p| = sqrt(S_p / s).
    for (Index p = 0; p < 4; ++p) {
      EXPECT_NEAR(factors.A.row(p).norm(), std::sqrt(values[p] / s), 1e-12);
      EXPECT_NEAR(factors.B.col(p).norm(), std::sqrt(values[p] / s), 1e-12);
    }
  }
}

TEST(PissaFactors, WithIterationsApproachTheExactOnes) {
  // Each iteration brings the parts nearer by the square of the gap between the fourth and the fifth singular value.
  const MatrixXd w = random_weight(14, 4) * random_weight(4, 20) + 0.05 * random_weight(14, 20);
  const auto exact = pissa_factors(w, 4, 2, 0, 1);
  const auto close = pissa_factors(w, 4, 2, 30, 1);
  EXPECT_LE((close.A - exact.A).norm() + (close.B - exact.B).norm(), 1e-9);
  const auto rough = pissa_factors(random_weight(14, 20), 4, 2, 1, 1);
  EXPECT_GT((rough.A - pissa_factors(random_weight(14, 20), 4, 2, 0, 1).A).norm(), 1e-3);
  EXPECT_NE(rough.A, pissa_factors(random_weight(14, 20), 4, 2, 1, 2).A);
}

TEST(OloraFactors, AreTheFirstPartOfTheFactorisation) {
  const MatrixXd w = random_weight(14, 20);
  const auto factors = lora::olora_factors(view(w), 4);
  EXPECT_LE((factors.B.transpose() * factors.B - MatrixXd::Identity(4, 4)).norm(), 1e-14);
  const MatrixXd residual = w - factors.B * factors.A;
  EXPECT_LE(residual.leftCols(4).norm(), 1e-13);                // the first columns are taken whole
  EXPECT_LE((factors.B.transpose() * residual).norm(), 1e-13);  // and all that lies along Q
  for (Index p = 0; p < 4; ++p) {
    EXPECT_GT(factors.A(p, p), 0);
    for (Index j = 0; j < p; ++j) EXPECT_EQ(factors.A(p, j), 0);
  }
}

TEST(OloraFactors, OfAnyRankUpToTheSmallerSide) {
  for (const auto& [m, n] : {std::pair<Index, Index>{5, 9}, {9, 5}, {1, 1}}) {
    const MatrixXd w = random_weight(m, n);
    const auto factors = lora::olora_factors(view(w), std::min(m, n));
    EXPECT_LE((w - factors.B * factors.A).norm(), 1e-13);
  }
}

std::string refusal(const Matrix<double>& w, const LoraConfig& config) {
  try {
    (void)lora::factors_from_weight<double>("LoraLinear", view_of(w), config, 1);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(FactorsFromWeight, RefuseWhatCannotBe) {
  Matrix<double> w = random_weight(5, 9);
  const auto pissa = InitLoraWeights::pissa;
  const auto olora = InitLoraWeights::olora;
  EXPECT_EQ(refusal(w, {.rank = 5, .init_lora_weights = pissa}), "accepted");
  EXPECT_EQ(refusal(w, {.rank = 6, .init_lora_weights = pissa}),
            "LoraLinear: rank: expected at most 5 with pissa and olora, got 6");
  EXPECT_EQ(refusal(w, {.rank = 2, .alpha = 0, .init_lora_weights = pissa}),
            "LoraLinear: alpha: expected more than 0 with pissa, got 0");
  EXPECT_EQ(refusal(w, {.rank = 2, .alpha = -1, .init_lora_weights = olora}), "accepted");
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    w(4, 8) = bad;
    EXPECT_EQ(refusal(w, {.rank = 2, .init_lora_weights = olora}),
              "LoraLinear: init_lora_weights: expected a finite weight with pissa and olora, got an infinity or NaN");
  }
}

TEST(FactorsFromWeight, ReadTheWeightByOutputs) {
  const Matrix<double> w = random_weight(6, 4);
  const Matrix<double> stored = w.transpose();
  const LoraConfig config{.rank = 3, .alpha = 6, .init_lora_weights = InitLoraWeights::pissa};
  const auto one = lora::factors_from_weight<double>("test", view_of(w), config, 1);
  const auto two = lora::factors_from_weight<double>("test", view_of(stored).transpose(), config, 1);
  EXPECT_EQ(one.A.cols(), 4);
  EXPECT_EQ(one.B.rows(), 6);
  EXPECT_EQ(one.A, two.A);
  EXPECT_EQ(one.B, two.B);
}

}  // namespace
