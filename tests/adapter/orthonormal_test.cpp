// SPDX-License-Identifier: MIT
#include "lora/adapter/orthonormal.hpp"

#include <gtest/gtest.h>

#include "support/random_matrix.hpp"

namespace {

using Eigen::MatrixXd;
using lora::Index;

constexpr double epsilon = 2.2e-16;

MatrixXd random(Index rows, Index cols) { return lora::testing::random_matrix<double>(rows, cols, 1); }

void orthonormalize(MatrixXd& w) {
  lora::Columns<double> columns(w.rows(), w.cols());
  columns.view().map() = w;
  lora::orthonormalize(columns);
  w = columns.view().map();
}

void expect_orthonormal(const MatrixXd& q) {
  const MatrixXd gram = q.transpose() * q;
  const double bound = 16 * epsilon * static_cast<double>(q.rows());
  EXPECT_LE((gram - MatrixXd::Identity(q.cols(), q.cols())).norm(), bound);
}

TEST(Orthonormalize, GivesTheQOfAFactorisationWhoseRHasAPositiveDiagonal) {
  for (const auto& [m, n] : {std::pair<Index, Index>{1, 1}, {5, 0}, {5, 5}, {40, 7}, {64, 64}}) {
    const MatrixXd w = random(m, n);
    MatrixXd q = w;
    orthonormalize(q);
    expect_orthonormal(q);
    MatrixXd r = q.transpose() * w;
    for (Index p = 0; p < n; ++p) {
      EXPECT_GT(r(p, p), 0);
      for (Index i = p + 1; i < n; ++i) EXPECT_NEAR(r(i, p), 0, 64 * epsilon * static_cast<double>(m));
    }
    EXPECT_LE((q * r - w).norm(), 16 * epsilon * static_cast<double>(m) * (1 + w.norm()));
  }
}

// Once made orthogonal, these columns would be so to 1e-6 only; twice is enough.
TEST(Orthonormalize, StaysOrthogonalWhereColumnsAreNearlyParallel) {
  MatrixXd w = random(30, 1) * MatrixXd::Ones(1, 6) + 1e-10 * random(30, 6);
  orthonormalize(w);
  expect_orthonormal(w);
}

TEST(Orthonormalize, FillsUpWhatColumnsThatDependOnOthersDoNotSpan) {
  for (const Index n : {3, 5}) {
    for (MatrixXd w : {MatrixXd(MatrixXd::Zero(5, n)), MatrixXd(random(5, 1) * random(1, n))}) {
      orthonormalize(w);
      expect_orthonormal(w);
    }
  }
  MatrixXd repeated = random(5, 4);
  repeated.col(2) = repeated.col(0);
  orthonormalize(repeated);
  expect_orthonormal(repeated);
}

}  // namespace
