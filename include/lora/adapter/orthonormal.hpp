// SPDX-License-Identifier: MIT
// The orthonormal factor of a tall matrix.
#pragma once

#include <algorithm>
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

/// The unit vector farthest from the first `p` columns of an orthonormal Q, the first of several: that of the row with
/// the smallest sum of squares. These sums add up to p, so (m - p) / m or more of its square is outside the columns'
/// span. `squares` has room for m. O(m p).
template <class Real>
[[nodiscard]] Index farthest_unit_vector(const Columns<Real>& q, Index p, Real* squares) noexcept {
  std::fill_n(squares, q.rows(), Real(0));
  for (Index k = 0; k < p; ++k) {
    const Real* const column = q.col(k);
    for (Index i = 0; i < q.rows(); ++i) squares[i] += column[i] * column[i];
  }
  return std::min_element(squares, squares + q.rows()) - squares;
}

}  // namespace detail

/// Replaces the columns of W (m x n, n <= m) by an orthonormal basis Q of their span: column p of Q is a positive
/// multiple of column p of W minus its projection on the columns before it, so W = Q R and the diagonal of R is not
/// negative. A column that depends on those before it counts as the unit vector farthest from their span, the first of
/// several.
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
  Real* const squares = scratch.col(1);
  for (Index p = 0; p < w.cols(); ++p) {
    Real* const column = w.col(p);
    const Real length = detail::norm<Real>(column, m);
    detail::project_out(w, p, column, along);
    Real rest = detail::norm<Real>(column, m);
    if (!(rest > dependent * length)) {
      const Index farthest = detail::farthest_unit_vector(w, p, squares);
      std::fill_n(column, m, Real(0));
      column[farthest] = 1;
      detail::project_out(w, p, column, along);
      rest = detail::norm<Real>(column, m);
    }
    for (Index j = 0; j < m; ++j) column[j] /= rest;
  }
}

}  // namespace lora
