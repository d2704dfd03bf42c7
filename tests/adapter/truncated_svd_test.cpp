// SPDX-License-Identifier: MIT
#include "lora/adapter/truncated_svd.hpp"

#include <Eigen/SVD>
#include <gtest/gtest.h>
#include <utility>

#include "support/random_matrix.hpp"

namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;
using lora::Index;
using lora::RandomStream;

constexpr double epsilon = 2.2e-16;

MatrixXd random(Index rows, Index cols, unsigned seed = 1) {
  return lora::testing::random_matrix<double>(rows, cols, seed);
}

/// The library's result as Eigen matrices.
struct TruncatedSvd {
  explicit TruncatedSvd(const lora::TruncatedSvd<double>& svd)
      : U(svd.U.view().map()),
        S(VectorXd::Map(svd.S.data(), static_cast<Index>(svd.S.size()))),
        V(svd.V.view().map()) {}
  MatrixXd U;
  VectorXd S;
  MatrixXd V;
};

TruncatedSvd truncated_svd(const MatrixXd& w, Index rank) {
  return TruncatedSvd(lora::truncated_svd(lora::view_of(w), rank));
}

TruncatedSvd randomized_svd(const MatrixXd& w, Index rank, Index iterations, const RandomStream& stream) {
  return TruncatedSvd(lora::randomized_svd(lora::view_of(w), rank, iterations, stream));
}

/// An orthonormal basis of what the columns span.
MatrixXd basis_of(const MatrixXd& w) {
  return Eigen::HouseholderQR<MatrixXd>(w).householderQ() * MatrixXd::Identity(w.rows(), w.cols());
}

MatrixXd rebuilt(const TruncatedSvd& svd) { return svd.U * svd.S.asDiagonal() * svd.V.transpose(); }

void expect_orthonormal(const MatrixXd& q, double bound) {
  EXPECT_LE((q.transpose() * q - MatrixXd::Identity(q.cols(), q.cols())).cwiseAbs().maxCoeff(), bound);
}

void expect_signs_fixed(const TruncatedSvd& svd) {
  for (Index p = 0; p < svd.V.cols(); ++p) {
    Index largest = 0;
    svd.V.col(p).cwiseAbs().maxCoeff(&largest);
    EXPECT_GE(svd.V(largest, p), 0);
  }
}

const std::pair<Index, Index> shapes[] = {{1, 1}, {1, 9}, {9, 1}, {14, 20}, {20, 14}, {33, 33}};

// Eigen's two-sided rotations are the oracle. Both are backward stable: errors of some m epsilon of the largest value.
TEST(TruncatedSvd, AgreesWithEigen) {
  for (const auto& [m, n] : shapes) {
    const MatrixXd w = random(m, n);
    const Eigen::JacobiSVD<MatrixXd> exact(w);
    const Index most = std::min(m, n);
    const TruncatedSvd svd = truncated_svd(w, most);
    const double bound = 32 * epsilon * static_cast<double>(m + n) * exact.singularValues()[0];
    EXPECT_LE((svd.S - exact.singularValues()).cwiseAbs().maxCoeff(), bound);
    EXPECT_LE((rebuilt(svd) - w).norm(), 4 * bound);
    expect_orthonormal(svd.U, bound / svd.S[most - 1]);
    expect_orthonormal(svd.V, bound / svd.S[most - 1]);
    expect_signs_fixed(svd);
  }
}

TEST(TruncatedSvd, ItsPartsAreTheFirstOfTheWhole) {
  const MatrixXd w = random(14, 20);
  const TruncatedSvd whole = truncated_svd(w, 14);
  const TruncatedSvd part = truncated_svd(w, 4);
  EXPECT_EQ(part.U, whole.U.leftCols(4));
  EXPECT_EQ(part.S, whole.S.head(4));
  EXPECT_EQ(part.V, whole.V.leftCols(4));
}

TEST(TruncatedSvd, OfAMatrixOfSmallerRankEndsInZeros) {
  const MatrixXd w = random(12, 2, 1) * random(2, 9, 2);
  const TruncatedSvd svd = truncated_svd(w, 5);
  EXPECT_GT(svd.S[1], 0.1);
  EXPECT_EQ(svd.S.tail(3).norm(), 0);
  EXPECT_EQ(svd.U.rightCols(3).norm() + svd.V.rightCols(3).norm(), 0);
  EXPECT_LE((rebuilt(svd) - w).norm(), 1e-13 * w.norm());
  EXPECT_EQ(truncated_svd(MatrixXd::Zero(4, 6), 3).S.norm(), 0);
}

TEST(TruncatedSvd, OfEqualSingularValuesFindsThemAll) {
  const TruncatedSvd svd = truncated_svd(5 * MatrixXd::Identity(8, 6), 4);
  EXPECT_EQ(svd.S, VectorXd::Constant(4, 5.0));
  expect_orthonormal(svd.U, epsilon);
}

TEST(TruncatedSvd, IsFreeOfScale) {
  const MatrixXd w = random(14, 20);
  for (const double scale : {1e-60, 1e60}) {
    const TruncatedSvd svd = truncated_svd(scale * w, 4);
    EXPECT_LE((svd.S / scale - truncated_svd(w, 4).S).norm(), 1e-13);
  }
}

MatrixXd with_spectrum(Index m, const VectorXd& s) {
  return basis_of(random(m, s.size(), 3)) * s.asDiagonal() * basis_of(random(s.size(), s.size(), 4)).transpose();
}

// Singular values 2^-p: each power iteration squares the distance twice over.
MatrixXd decaying(Index m, Index n) {
  VectorXd s(n);
  for (Index p = 0; p < n; ++p) s[p] = std::ldexp(1.0, static_cast<int>(-p));
  return with_spectrum(m, s);
}

// Singular values 1, 1 - 1/100, 1 - 2/100, ...: no gap helps.
MatrixXd slow(Index m, Index n) {
  return with_spectrum(m, VectorXd::LinSpaced(n, 1, 1 - 0.01 * static_cast<double>(n - 1)));
}

// A sweep of rotations that is missing shows where values lie close together and where they span the whole range.
TEST(TruncatedSvd, IsExactAtASlowSpectrumAndAtAGradedOne) {
  VectorXd graded(30);
  for (Index p = 0; p < 30; ++p) graded[p] = std::pow(10.0, -0.4 * static_cast<double>(p));
  for (const MatrixXd& w : {slow(50, 40), slow(40, 40), with_spectrum(60, graded), random(64, 64, 5)}) {
    const Eigen::JacobiSVD<MatrixXd> exact(w, Eigen::ComputeThinU | Eigen::ComputeThinV);
    const Index n = w.cols();
    const TruncatedSvd svd = truncated_svd(w, n);
    const double bound = 4 * epsilon * static_cast<double>(w.rows());
    EXPECT_LE((svd.S - exact.singularValues()).cwiseAbs().maxCoeff(), bound * exact.singularValues()[0]);
    EXPECT_LE((rebuilt(svd) - w).norm(), 4 * bound * w.norm());
    expect_orthonormal(svd.U, bound);
    expect_orthonormal(svd.V, bound);
    const MatrixXd best = exact.matrixU().leftCols(n / 2) * exact.singularValues().head(n / 2).asDiagonal() *
                          exact.matrixV().leftCols(n / 2).transpose();
    EXPECT_LE((w - rebuilt(truncated_svd(w, n / 2))).norm(), (w - best).norm() + bound * w.norm());
  }
}

MatrixXd bidiagonal(const VectorXd& diagonal, double above) {
  MatrixXd w = diagonal.asDiagonal();
  for (Index i = 0; i + 1 < w.cols(); ++i) w(i, i + 1) = above;
  return w;
}

// Zeros on the diagonal of the bidiagonal matrix split it, at its beginning, inside and at its end, and values that
// grow run against the direction of the iteration.
TEST(TruncatedSvd, IsExactWhereTheIterationHasToSplit) {
  VectorXd growing(24);
  for (Index p = 0; p < 24; ++p) growing[p] = std::pow(10.0, -12 + 0.5 * static_cast<double>(p));
  VectorXd holes = VectorXd::Ones(12);
  holes[0] = holes[5] = holes[6] = holes[11] = 0;
  MatrixXd ones_and_zeros = random(40, 30, 9).unaryExpr([](double x) { return x > 0.5 ? 1.0 : 0.0; });
  ones_and_zeros.col(3).setZero();
  ones_and_zeros.row(7).setZero();
  ones_and_zeros.col(8) = ones_and_zeros.col(9);
  for (const MatrixXd& w : {bidiagonal(growing, 1e-7), bidiagonal(growing, 1), bidiagonal(holes, 1),
                            bidiagonal(VectorXd::Zero(9), 1), bidiagonal(VectorXd::Constant(20, 1e-170), 1),
                            MatrixXd(MatrixXd::Ones(30, 20)), ones_and_zeros, MatrixXd(random(300, 2))}) {
    const Eigen::JacobiSVD<MatrixXd> exact(w);
    const TruncatedSvd svd = truncated_svd(w, w.cols());
    const double bound = 4 * epsilon * static_cast<double>(w.rows()) * exact.singularValues()[0];
    EXPECT_LE((svd.S - exact.singularValues()).cwiseAbs().maxCoeff(), bound);
    EXPECT_LE((rebuilt(svd) - w).norm(), 4 * bound);
    const Index found = (svd.S.array() > 0).count();
    expect_orthonormal(svd.U.leftCols(found), 4 * epsilon * static_cast<double>(w.rows()));
    expect_orthonormal(svd.V.leftCols(found), 4 * epsilon * static_cast<double>(w.rows()));
  }
}

// The method in the plain words of the paper: the range of (W W^T)^q W G, and W within it. At a slow spectrum every
// iteration moves the result, so that one more or one less is far from the other.
TEST(RandomizedSvd, TakesAsManyIterationsAsItIsTold) {
  const MatrixXd w = slow(40, 30);
  const RandomStream stream(7, 1);
  lora::Matrix<double> directions(30, 5);
  lora::fill_normal(lora::view_of(directions), 1.0, stream);
  MatrixXd range = w * directions;
  MatrixXd before = MatrixXd::Zero(40, 30);
  for (Index iterations = 0; iterations < 6; ++iterations) {
    const MatrixXd basis = basis_of(range);
    const MatrixXd expected = basis * (basis.transpose() * w);
    EXPECT_LE((rebuilt(randomized_svd(w, 5, iterations, stream)) - expected).norm(), 1e-12) << iterations;
    EXPECT_GT((expected - before).norm(), 1e-3) << iterations;
    before = expected;
    range = w * (w.transpose() * range);
  }
}

TEST(RandomizedSvd, ComesToTheExactOneWithPowerIterations) {
  for (const bool wide : {false, true}) {
    const MatrixXd tall = decaying(40, 20);
    const MatrixXd w = wide ? MatrixXd(tall.transpose()) : tall;
    const TruncatedSvd exact = truncated_svd(w, 5);
    double before = 1;
    for (const Index iterations : {0, 2, 8, 24}) {
      const TruncatedSvd svd = randomized_svd(w, 5, iterations, RandomStream(7, 1));
      expect_orthonormal(svd.U, 1e-13);
      expect_orthonormal(svd.V, 1e-13);
      expect_signs_fixed(svd);
      const double distance = (rebuilt(svd) - rebuilt(exact)).norm();
      EXPECT_LT(distance, before);
      before = std::max(distance, 1e-12);
    }
    EXPECT_LE(before, 1e-12);
  }
}

// Halko, Martinsson and Tropp, theorem 1.1 without oversampling: within a modest factor of the best approximation.
TEST(RandomizedSvd, IsNearTheBestApproximationOfAnyMatrix) {
  const MatrixXd w = random(60, 50);
  const double best = (w - rebuilt(truncated_svd(w, 8))).norm();
  EXPECT_LT((w - rebuilt(randomized_svd(w, 8, 4, RandomStream(7, 1)))).norm(), 1.1 * best);
}

TEST(RandomizedSvd, IsDecidedByItsStream) {
  const MatrixXd w = random(30, 40);
  const auto one = randomized_svd(w, 4, 1, RandomStream(7, 1));
  EXPECT_EQ(one.U, randomized_svd(w, 4, 1, RandomStream(7, 1)).U);
  EXPECT_NE(one.U, randomized_svd(w, 4, 1, RandomStream(8, 1)).U);
}

}  // namespace
