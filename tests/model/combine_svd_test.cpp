// SPDX-License-Identifier: MIT
// Truncation is the nearest of its rank, dense or as a product; quantiles are torch's.
#include "lora/model/combine_svd.hpp"

#include <Eigen/SVD>
#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "support/random_matrix.hpp"

namespace lora::testing {
namespace {

/// The library's result as Eigen matrices.
struct Pair {
  explicit Pair(const detail::FactorPair<double>& pair)
      : B(pair.B.view().map()), A(pair.A_transposed.view().map().transpose()) {}
  Eigen::MatrixXd B;
  Eigen::MatrixXd A;
};

Columns<double> columns_of(const Eigen::MatrixXd& matrix) {
  Columns<double> columns(matrix.rows(), matrix.cols());
  columns.view().map() = matrix;
  return columns;
}

Pair truncate_dense(const Eigen::MatrixXd& matrix, Index rank) {
  return Pair(detail::truncate_dense<double>(view_of(matrix), rank));
}

Pair truncate_product(const Eigen::MatrixXd& B, const Eigen::MatrixXd& A, Index rank) {
  return Pair(detail::truncate_product(detail::FactorPair<double>{columns_of(B), columns_of(A.transpose())}, rank));
}

Eigen::MatrixXd random(Index rows, Index cols, std::uint64_t seed) { return random_matrix<double>(rows, cols, seed); }

/// Norm of the singular values beyond the first `rank`: the distance that no approximation of that rank can beat.
double best_distance(const Eigen::MatrixXd& matrix, Index rank) {
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(matrix);
  return svd.singularValues().tail(svd.singularValues().size() - rank).norm();
}

class Truncation : public ::testing::TestWithParam<std::array<Index, 3>> {};

TEST_P(Truncation, OfADenseMatrixIsTheNearest) {
  const auto [rows, cols, rank] = GetParam();
  const Eigen::MatrixXd matrix = random(rows, cols, 1);
  const Pair pair = truncate_dense(matrix, rank);
  ASSERT_EQ(pair.B.cols(), rank);
  ASSERT_EQ(pair.A.rows(), rank);
  EXPECT_NEAR((matrix - pair.B * pair.A).norm(), best_distance(matrix, rank), 1e-12 * matrix.norm());
}

TEST_P(Truncation, OfAProductIsThatOfTheDenseMatrix) {
  const auto [rows, cols, rank] = GetParam();
  for (const Index inner : {rank, rank + 2, rows + cols}) {
    const Eigen::MatrixXd B = random(rows, inner, 2);
    const Eigen::MatrixXd A = random(inner, cols, 3);
    const Eigen::MatrixXd dense = B * A;
    const Pair pair = truncate_product(B, A, rank);
    EXPECT_NEAR((dense - pair.B * pair.A).norm(), best_distance(dense, rank), 1e-12 * dense.norm()) << inner;
    const Pair other = truncate_dense(dense, rank);
    EXPECT_LT((pair.A - other.A).norm(), 1e-9) << inner;
  }
}

TEST_P(Truncation, RowsOfAAreOrthonormalWithTheirLargestElementPositive) {
  const auto [rows, cols, rank] = GetParam();
  const Pair pair = truncate_dense(random(rows, cols, 4), rank);
  EXPECT_LT((pair.A * pair.A.transpose() - Eigen::MatrixXd::Identity(rank, rank)).norm(), 1e-12);
  for (Index p = 0; p < rank; ++p) EXPECT_EQ(pair.A.row(p).maxCoeff(), pair.A.row(p).cwiseAbs().maxCoeff());
}

INSTANTIATE_TEST_SUITE_P(Shapes, Truncation,
                         ::testing::Values(std::array<Index, 3>{1, 1, 1}, std::array<Index, 3>{5, 9, 2},
                                           std::array<Index, 3>{9, 5, 5}, std::array<Index, 3>{40, 30, 7}));

TEST(Truncation, OfZeroIsZero) {
  const Pair pair = truncate_dense(Eigen::MatrixXd::Zero(4, 3), 2);
  EXPECT_EQ(pair.B.norm(), 0.0);
}

// Components beyond the rank of the matrix add nothing and can still be trained: their rows of A are not zero.
TEST(Truncation, BeyondTheRankOfTheMatrixRowsOfAStayOrthonormal) {
  const Eigen::MatrixXd matrix = random(9, 2, 5) * random(2, 7, 6);
  for (const Pair& pair : {truncate_dense(matrix, 5), truncate_product(random(9, 2, 5), random(2, 7, 6), 2),
                           truncate_product(random(9, 6, 7) * 0, random(6, 7, 8), 4)}) {
    const Index rank = pair.A.rows();
    EXPECT_LT((pair.A * pair.A.transpose() - Eigen::MatrixXd::Identity(rank, rank)).norm(), 1e-13);
  }
  EXPECT_LT((matrix - truncate_dense(matrix, 5).B * truncate_dense(matrix, 5).A).norm(), 1e-13 * matrix.norm());
}

// Where singular values lie close together every sweep of a decomposition counts.
TEST(Truncation, IsTheNearestAtASlowSpectrum) {
  const auto basis = [](const Eigen::MatrixXd& w) {
    return Eigen::MatrixXd(Eigen::HouseholderQR<Eigen::MatrixXd>(w).householderQ());
  };
  const Eigen::VectorXd values = Eigen::VectorXd::LinSpaced(40, 1, 0.8);
  const Eigen::MatrixXd matrix = basis(random(40, 40, 9)) * values.asDiagonal() * basis(random(40, 40, 10));
  for (const Index rank : {1, 8, 39}) {
    const Pair pair = truncate_dense(matrix, rank);
    EXPECT_NEAR((matrix - pair.B * pair.A).norm(), values.tail(40 - rank).norm(), 1e-13) << rank;
    for (Index p = 0; p < rank; ++p) EXPECT_NEAR(pair.B.col(p).norm(), values[p], 1e-13) << rank;
  }
}

// torch.quantile(torch.tensor([3., 1., 2., 10.]), q)
TEST(Quantile, LiesBetweenNeighbours) {
  const std::vector<double> values = {3, 1, 2, 10};
  EXPECT_DOUBLE_EQ(detail::quantile(values, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(detail::quantile(values, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(detail::quantile(values, 0.75), 4.75);
  EXPECT_DOUBLE_EQ(detail::quantile(values, 1.0), 10.0);
  EXPECT_DOUBLE_EQ(detail::quantile(std::vector<double>{7}, 0.3), 7.0);
}

TEST(ClampToQuantile, CutsBothFactorsAtTheQuantileOfAll) {
  detail::FactorPair<double> pair{columns_of(Eigen::Vector2d(-9, 1)), columns_of(Eigen::Vector3d(2, 3, 4))};
  detail::clamp_to_quantile("combine", pair, 0.75);  // sorted: -9 1 2 3 4
  EXPECT_EQ(pair.B.values(), (std::vector<double>{-3, 1}));
  EXPECT_EQ(pair.A_transposed.values(), (std::vector<double>{2, 3, 3}));
}

TEST(ClampToQuantile, RefusesANegativeBound) {
  detail::FactorPair<double> pair{columns_of(-Eigen::Vector2d::Ones()), columns_of(Eigen::Vector3d::Ones())};
  EXPECT_THROW(detail::clamp_to_quantile("combine", pair, 0.1), ConfigError);
}

}  // namespace
}  // namespace lora::testing
