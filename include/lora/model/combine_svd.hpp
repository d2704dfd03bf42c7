// Best approximations of given rank, as a pair of factors.
#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"

namespace lora::detail {

/// A product B A. SVDs are computed in double, by Eigen, which wants columns together.
struct FactorPair {
  Eigen::MatrixXd B;  ///< out_features x rank
  Eigen::MatrixXd A;  ///< rank x in_features
};

/// Thin singular value decomposition, singular values descending. Eigen 3.4 and its successors spell it differently.
[[nodiscard]] inline auto thin_svd(const Eigen::MatrixXd& matrix) {
#if EIGEN_VERSION_AT_LEAST(3, 4, 90)
  return Eigen::BDCSVD<Eigen::MatrixXd, Eigen::ComputeThinU | Eigen::ComputeThinV>(matrix);
#else
  return Eigen::BDCSVD<Eigen::MatrixXd>(matrix, Eigen::ComputeThinU | Eigen::ComputeThinV);
#endif
}

/// An SVD leaves the sign of each component open; here the largest element of each row of A is positive.
inline void fix_signs(FactorPair& pair) {
  for (Index p = 0; p < pair.A.rows(); ++p) {
    Index largest = 0;
    pair.A.row(p).cwiseAbs().maxCoeff(&largest);
    if (pair.A(p, largest) >= 0.0) continue;
    pair.A.row(p) = -pair.A.row(p);
    pair.B.col(p) = -pair.B.col(p);
  }
}

/// The first `rank` components of U S V^T as B = U S, A = V^T: no product of rank `rank` is closer to `matrix` in the
/// Frobenius norm. Pre: 1 <= rank <= rows, cols. Cost: that of a dense SVD, rows * cols * min(rows, cols).
/// Source: Eckart and Young, Psychometrika 1 (1936).
[[nodiscard]] inline FactorPair truncate_dense(const Eigen::MatrixXd& matrix, Index rank) {
  const auto svd = thin_svd(matrix);
  FactorPair pair{svd.matrixU().leftCols(rank) * svd.singularValues().head(rank).asDiagonal(),
                  svd.matrixV().leftCols(rank).transpose()};
  fix_signs(pair);
  return pair;
}

/// truncate_dense of B A without forming it: with B = Qb Rb and A^T = Qa Ra, the SVD of the small Rb Ra^T is that of
/// B A between Qb and Qa. Pre: 1 <= rank <= rows of B, columns of A, and their common extent R.
/// Cost: (rows + cols) * R^2.
[[nodiscard]] inline FactorPair truncate_product(const FactorPair& product, Index rank) {
  const auto reduce = [](const Eigen::MatrixXd& tall) {
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(tall);
    const Index extent = std::min(tall.rows(), tall.cols());
    Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(tall.rows(), extent);
    Eigen::MatrixXd r = qr.matrixQR().topRows(extent).template triangularView<Eigen::Upper>();
    return std::pair(std::move(q), std::move(r));
  };
  const auto [qb, rb] = reduce(product.B);
  const auto [qa, ra] = reduce(product.A.transpose());
  const FactorPair core = truncate_dense(rb * ra.transpose(), rank);
  FactorPair pair{qb * core.B, core.A * qa.transpose()};
  fix_signs(pair);
  return pair;
}

/// The q-quantile of the values, between the two nearest in proportion, as torch.quantile. Pre: not empty, finite.
[[nodiscard]] inline double quantile(std::vector<double> values, double q) {
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(position);
  const auto low = values.begin() + below;
  std::nth_element(values.begin(), low, values.end());
  const double fraction = position - static_cast<double>(below);
  if (fraction == 0.0) return *low;
  return *low + fraction * (*std::min_element(low + 1, values.end()) - *low);
}

/// Clamps the elements of both factors to [-h, h], where h is the q-quantile of all of them.
/// @throws ConfigError when h is negative.
inline void clamp_to_quantile(std::string_view operation, FactorPair& pair, double q) {
  std::vector<double> values(pair.B.data(), pair.B.data() + pair.B.size());
  values.insert(values.end(), pair.A.data(), pair.A.data() + pair.A.size());
  const double limit = quantile(std::move(values), q);
  if (limit < 0.0) {
    throw ConfigError(operation, "svd_clamp", "a quantile at which the factors' elements are not negative",
                      number_text(q) + ", where they are " + number_text(limit));
  }
  pair.B = pair.B.cwiseMax(-limit).cwiseMin(limit);
  pair.A = pair.A.cwiseMax(-limit).cwiseMin(limit);
}

}  // namespace lora::detail
