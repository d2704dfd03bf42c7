// The leading part of a singular value decomposition. Small to compile: Eigen's own would cost every user of a layer
// more to compile than all the rest of the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "lora/adapter/orthonormal.hpp"
#include "lora/core/random.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// W (m x n) ~ U diag(S) V^T: U (m x r) and V (n x r) of orthonormal columns, S (r) descending. In each column of V the
/// element of the largest magnitude, the first of them, is positive, which makes signs unique. Where S is 0 to working
/// precision, so are the columns of U and V.
struct TruncatedSvd {
  Eigen::MatrixXd U;
  Eigen::VectorXd S;
  Eigen::MatrixXd V;
};

namespace detail {

/// Rotates the columns of W until each is orthogonal to every other.
/// Source: Hestenes, J. SIAM 6 (1958); Golub and Van Loan, Matrix Computations, 4th ed., section 8.6.3.
inline void orthogonalize_by_rotations(Eigen::MatrixXd& w) {
  constexpr int most_sweeps = 60;  // ten are usual: convergence is quadratic
  const double negligible = std::numeric_limits<double>::epsilon() * std::sqrt(static_cast<double>(w.rows()));
  bool rotated = true;
  for (int sweep = 0; rotated && sweep < most_sweeps; ++sweep) {
    rotated = false;
    Eigen::VectorXd squares = w.colwise().squaredNorm();
    for (Index p = 0; p + 1 < w.cols(); ++p) {
      for (Index q = p + 1; q < w.cols(); ++q) {
        const double product = w.col(p).dot(w.col(q));
        if (!(std::abs(product) > negligible * std::sqrt(squares[p] * squares[q]))) continue;
        rotated = true;
        const double zeta = (squares[q] - squares[p]) / (2 * product);
        const double tangent = std::copysign(1.0, zeta) / (std::abs(zeta) + std::hypot(1.0, zeta));
        const double cosine = 1 / std::hypot(1.0, tangent);
        const double sine = cosine * tangent;
        double* const a = w.col(p).data();
        double* const b = w.col(q).data();
        for (Index i = 0; i < w.rows(); ++i) {
          const double kept = a[i];
          a[i] = cosine * kept - sine * b[i];
          b[i] = sine * kept + cosine * b[i];
        }
        squares[p] = std::max(0.0, squares[p] - tangent * product);
        squares[q] += tangent * product;
      }
    }
  }
}

inline void fix_signs(TruncatedSvd& svd) {
  for (Index p = 0; p < svd.V.cols(); ++p) {
    Index largest = 0;
    svd.V.col(p).cwiseAbs().maxCoeff(&largest);
    if (svd.V(largest, p) >= 0) continue;
    svd.V.col(p) *= -1.0;
    svd.U.col(p) *= -1.0;
  }
}

}  // namespace detail

/// The first `rank` <= min(m, n) parts of W, exact to rounding. About 60 m n min(m, n) operations: seconds for a
/// thousand columns, many minutes for some thousands, where randomized_svd() serves. @throws std::bad_alloc
[[nodiscard]] inline TruncatedSvd truncated_svd(const Eigen::MatrixXd& w, Index rank) {
  if (w.rows() < w.cols()) {
    TruncatedSvd svd = truncated_svd(w.transpose(), rank);
    std::swap(svd.U, svd.V);
    detail::fix_signs(svd);
    return svd;
  }
  Eigen::MatrixXd rotated = w;
  detail::orthogonalize_by_rotations(rotated);
  const Eigen::VectorXd lengths = rotated.colwise().norm();
  std::vector<Index> order(static_cast<std::size_t>(w.cols()));
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index p, Index q) { return lengths[p] > lengths[q]; });
  const double zero = lengths.maxCoeff() * std::numeric_limits<double>::epsilon() * static_cast<double>(w.rows());
  TruncatedSvd svd{Eigen::MatrixXd::Zero(w.rows(), rank), Eigen::VectorXd::Zero(rank),
                   Eigen::MatrixXd::Zero(w.cols(), rank)};
  for (Index p = 0; p < rank; ++p) {
    const Index from = order[static_cast<std::size_t>(p)];
    if (!(lengths[from] > zero)) break;
    svd.S[p] = lengths[from];
    svd.U.col(p) = rotated.col(from) / lengths[from];
    svd.V.col(p).noalias() = w.transpose() * svd.U.col(p) / lengths[from];
  }
  detail::fix_signs(svd);
  return svd;
}

/// The same by random projection on `rank` directions with `iterations` power iterations, as torch.svd_lowrank does:
/// O(m n rank (iterations + 1)). The directions are drawn from `stream`. Only near W's own parts where the singular
/// values fall quickly or the iterations are many.
/// Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1. @throws std::bad_alloc
[[nodiscard]] inline TruncatedSvd randomized_svd(const Eigen::MatrixXd& w, Index rank, Index iterations,
                                                 const RandomStream& stream) {
  if (w.rows() < w.cols()) {
    TruncatedSvd svd = randomized_svd(w.transpose(), rank, iterations, stream);
    std::swap(svd.U, svd.V);
    detail::fix_signs(svd);
    return svd;
  }
  Eigen::MatrixXd directions(w.cols(), rank);
  fill_normal(view_of(directions), 1.0, stream);
  Eigen::MatrixXd basis = w * directions;
  orthonormalize(basis);
  for (Index i = 0; i < iterations; ++i) {
    directions.noalias() = w.transpose() * basis;
    orthonormalize(directions);
    basis.noalias() = w * directions;
    orthonormalize(basis);
  }
  TruncatedSvd svd = truncated_svd(basis.transpose() * w, rank);
  svd.U = (basis * svd.U).eval();
  return svd;
}

}  // namespace lora
