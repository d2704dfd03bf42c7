// SPDX-License-Identifier: MIT
// The orthonormal factor of a tall matrix.
#pragma once

#include <cmath>
#include <limits>

#include "lora/adapter/columns.hpp"
#include "lora/core/types.hpp"

namespace lora {

namespace detail {

/// Subtracts from `column` its projection on the first `p` columns of an orthonormal Q, twice. `along` has room for p.
template <class Real>
void project_out(const Columns<Real>& q, Index p, Real* column, Real* along) noexcept {
  for (int pass = 0; pass < 2 && p > 0; ++pass) {
    for (Index k = 0; k < p; ++k) along[k] = dot(q.col(k), static_cast<const Real*>(column), q.rows());
    for (Index k = 0; k < p; ++k) add_multiple(-along[k], q.col(k), column, q.rows());
  }
}

}  // namespace detail

/// Replaces the columns of W (m x n, n <= m) by an orthonormal basis Q of their span: column p of Q is a positive
/// multiple of column p of W minus its projection on the columns before it, so W = Q R and the diagonal of R is not
/// negative. A column that depends on those before it is replaced by the first unit vector that does not.
///
/// Gram-Schmidt with each column orthogonalised twice, which is as accurate as Householder's method: Giraud et al.,
/// "Rounding error analysis of the classical Gram-Schmidt orthogonalization process", Numer. Math. 101 (2005). O(m
/// n^2).
/// @throws std::bad_alloc
template <class Real>
void orthonormalize(Columns<Real>& w) {
  const Index m = w.rows();
  constexpr Real dependent = 45 * std::numeric_limits<Real>::epsilon();
  Columns<Real> scratch(w.cols() > m ? w.cols() : m, 2);
  Real* const along = scratch.col(0);
  Real* const unit = scratch.col(1);
  for (Index p = 0; p < w.cols(); ++p) {
    Real* const column = w.col(p);
    const Real length = detail::norm<Real>(column, m);
    detail::project_out(w, p, column, along);
    Real rest = detail::norm<Real>(column, m);
    const Real unit_share = static_cast<Real>(m - p) / static_cast<Real>(2 * m);
    for (Index i = 0; i < m && !(rest > dependent * length); ++i) {
      for (Index j = 0; j < m; ++j) unit[j] = Real(j == i);
      detail::project_out(w, p, unit, along);
      const Real square = detail::dot<Real>(unit, unit, m);
      if (square < unit_share) continue;
      for (Index j = 0; j < m; ++j) column[j] = unit[j];
      rest = std::sqrt(square);
      break;
    }
    for (Index j = 0; j < m; ++j) column[j] /= rest;
  }
}

}  // namespace lora
