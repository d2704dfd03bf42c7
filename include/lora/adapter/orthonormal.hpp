// The orthonormal factor of a tall matrix. Small to compile, unlike a general QR factorisation.
#pragma once

#include "lora/core/types.hpp"

namespace lora {

/// Replaces the columns of W (m x n, n <= m) by an orthonormal basis Q of what they span, so that column p of Q is a
/// positive multiple of column p of W less its projection on those before: W = Q R with a diagonal of R that is not
/// negative. A column that depends on those before gives way to the first unit vector that does not.
///
/// Gram-Schmidt, each column made orthogonal twice, which is as good as Householder's method: Giraud et al., "Rounding
/// error analysis of the classical Gram-Schmidt orthogonalization process", Numer. Math. 101 (2005). O(m n^2).
/// @throws std::bad_alloc
inline void orthonormalize(Eigen::MatrixXd& w) {
  for (Index p = 0; p < w.cols(); ++p) {
    const auto before = w.leftCols(p);
    const auto project_out = [&](Eigen::VectorXd& column) {
      for (int pass = 0; pass < 2 && p > 0; ++pass) {
        const Eigen::VectorXd along = before.transpose() * column;
        column.noalias() -= before * along;
      }
    };
    Eigen::VectorXd column = w.col(p);
    const double length = column.norm();
    project_out(column);
    double rest = column.norm();
    const auto unit_share = static_cast<double>(w.rows() - p) / static_cast<double>(2 * w.rows());
    for (Index i = 0; i < w.rows() && !(rest > 1e-14 * length); ++i) {
      Eigen::VectorXd unit = Eigen::VectorXd::Unit(w.rows(), i);
      project_out(unit);
      if (unit.squaredNorm() < unit_share) continue;
      column = unit;
      rest = column.norm();
      break;
    }
    w.col(p) = column / rest;
  }
}

}  // namespace lora
