// Truncation is the nearest of its rank, dense or as a product; quantiles are torch's.
#include "lora/model/combine_svd.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "support/random_matrix.hpp"

namespace lora::testing {
namespace {

using detail::FactorPair;

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
  const FactorPair pair = detail::truncate_dense(matrix, rank);
  ASSERT_EQ(pair.B.cols(), rank);
  ASSERT_EQ(pair.A.rows(), rank);
  EXPECT_NEAR((matrix - pair.B * pair.A).norm(), best_distance(matrix, rank), 1e-12 * matrix.norm());
}

TEST_P(Truncation, OfAProductIsThatOfTheDenseMatrix) {
  const auto [rows, cols, rank] = GetParam();
  for (const Index inner : {rank, rank + 2, rows + cols}) {
    const FactorPair product{random(rows, inner, 2), random(inner, cols, 3)};
    const Eigen::MatrixXd dense = product.B * product.A;
    const FactorPair pair = detail::truncate_product(product, rank);
    EXPECT_NEAR((dense - pair.B * pair.A).norm(), best_distance(dense, rank), 1e-12 * dense.norm()) << inner;
    const FactorPair other = detail::truncate_dense(dense, rank);
    EXPECT_LT((pair.A - other.A).norm(), 1e-9) << inner;
  }
}

TEST_P(Truncation, RowsOfAAreOrthonormalWithTheirLargestElementPositive) {
  const auto [rows, cols, rank] = GetParam();
  const FactorPair pair = detail::truncate_dense(random(rows, cols, 4), rank);
  EXPECT_LT((pair.A * pair.A.transpose() - Eigen::MatrixXd::Identity(rank, rank)).norm(), 1e-12);
  for (Index p = 0; p < rank; ++p) EXPECT_EQ(pair.A.row(p).maxCoeff(), pair.A.row(p).cwiseAbs().maxCoeff());
}

INSTANTIATE_TEST_SUITE_P(Shapes, Truncation,
                         ::testing::Values(std::array<Index, 3>{1, 1, 1}, std::array<Index, 3>{5, 9, 2},
                                           std::array<Index, 3>{9, 5, 5}, std::array<Index, 3>{40, 30, 7}));

TEST(Truncation, OfZeroIsZero) {
  const FactorPair pair = detail::truncate_dense(Eigen::MatrixXd::Zero(4, 3), 2);
  EXPECT_EQ(pair.B.norm(), 0.0);
}

// torch.quantile(torch.tensor([3., 1., 2., 10.]), q)
TEST(Quantile, LiesBetweenNeighbours) {
  const std::vector<double> values = {3, 1, 2, 10};
  EXPECT_DOUBLE_EQ(detail::quantile(values, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(detail::quantile(values, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(detail::quantile(values, 0.75), 4.75);
  EXPECT_DOUBLE_EQ(detail::quantile(values, 1.0), 10.0);
  EXPECT_DOUBLE_EQ(detail::quantile({7}, 0.3), 7.0);
}

TEST(ClampToQuantile, CutsBothFactorsAtTheQuantileOfAll) {
  FactorPair pair{Eigen::MatrixXd(2, 1), Eigen::MatrixXd(1, 3)};
  pair.B << -9, 1;
  pair.A << 2, 3, 4;  // sorted: -9 1 2 3 4
  detail::clamp_to_quantile("combine", pair, 0.75);
  EXPECT_EQ(pair.B, (Eigen::MatrixXd(2, 1) << -3, 1).finished());
  EXPECT_EQ(pair.A, (Eigen::MatrixXd(1, 3) << 2, 3, 3).finished());
}

TEST(ClampToQuantile, RefusesANegativeBound) {
  FactorPair pair{Eigen::MatrixXd::Constant(2, 1, -1), Eigen::MatrixXd::Constant(1, 3, 1)};
  EXPECT_THROW(detail::clamp_to_quantile("combine", pair, 0.1), ConfigError);
}

}  // namespace
}  // namespace lora::testing
