// The leading part of a singular value decomposition.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/adapter/columns.hpp"
#include "lora/adapter/orthonormal.hpp"
#include "lora/core/random.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// W (m x n) ~ U diag(S) V^T: U (m x r) and V (n x r) have orthonormal columns, S (r) is descending. In each column of
/// V the first element of largest magnitude is positive, which makes the signs unique. If an element of S is 0 to
/// working precision, the columns of U and V that belong to it are 0 too.
template <class Real = double>
struct TruncatedSvd {
  Columns<Real> U;
  std::vector<Real> S;
  Columns<Real> V;
};

namespace detail {

/// A column-major copy of `w`, times the power of two that brings its largest element near 1: squares of elements of
/// any size can then be summed.
template <class Real>
struct ScaledCopy {
  Columns<Real> columns;
  int exponent = 0;
};

template <class Element>
[[nodiscard]] auto scaled_copy(const MatrixView<Element>& w) {
  using Real = std::remove_const_t<Element>;
  Real largest = 0;
  ScaledCopy<Real> copy{Columns<Real>(w.rows, w.cols)};
  for (Index j = 0; j < w.cols; ++j) {
    for (Index i = 0; i < w.rows; ++i) {
      const Real value = w(i, j);
      copy.columns(i, j) = value;
      if (std::abs(value) > largest) largest = std::abs(value);
    }
  }
  if (!(largest >= std::numeric_limits<Real>::min())) return copy;
  copy.exponent = std::ilogb(largest);
  const Real factor = std::ldexp(Real(1), -copy.exponent);
  for (Real& value : copy.columns.values()) value *= factor;
  return copy;
}

/// Rotates the columns of W until each is orthogonal to every other.
/// Source: Hestenes, J. SIAM 6 (1958); Golub and Van Loan, Matrix Computations, 4th ed., section 8.6.3.
template <class Real>
void orthogonalize_by_rotations(Columns<Real>& w) {
  constexpr int most_sweeps = 60;  // ten are typical: convergence is quadratic
  const Index m = w.rows();
  const Real negligible = std::numeric_limits<Real>::epsilon() * std::sqrt(static_cast<Real>(m));
  Columns<Real> lengths(w.cols(), 1);
  Real* const squares = lengths.col(0);
  bool rotated = true;
  for (int sweep = 0; rotated && sweep < most_sweeps; ++sweep) {
    rotated = false;
    for (Index p = 0; p < w.cols(); ++p) squares[p] = dot<Real>(w.col(p), w.col(p), m);
    for (Index p = 0; p + 1 < w.cols(); ++p) {
      for (Index q = p + 1; q < w.cols(); ++q) {
        const Real along = dot<Real>(w.col(p), w.col(q), m);
        if (!(std::abs(along) > negligible * std::sqrt(squares[p] * squares[q]))) continue;
        rotated = true;
        const Real zeta = (squares[q] - squares[p]) / (2 * along);
        const Real tangent = std::copysign(Real(1), zeta) / (std::abs(zeta) + std::hypot(Real(1), zeta));
        const Real cosine = 1 / std::hypot(Real(1), tangent);
        rotate(cosine, cosine * tangent, w.col(p), w.col(q), m);
        squares[p] = std::max(Real(0), squares[p] - tangent * along);
        squares[q] += tangent * along;
      }
    }
  }
}

/// Makes the first element of largest magnitude in each column of V positive, and flips the column of U to match.
template <class Real>
void fix_signs(Columns<Real>& u, Columns<Real>& v) noexcept {
  for (Index p = 0; p < v.cols(); ++p) {
    Index largest = 0;
    for (Index i = 1; i < v.rows(); ++i) {
      if (std::abs(v(i, p)) > std::abs(v(largest, p))) largest = i;
    }
    if (v.rows() == 0 || v(largest, p) >= 0) continue;
    for (Index i = 0; i < v.rows(); ++i) v(i, p) = -v(i, p);
    for (Index i = 0; i < u.rows(); ++i) u(i, p) = -u(i, p);
  }
}

/// Normalises the first columns of W, and orthogonalises again those that rounding has left less than orthogonal to the
/// ones before. The other columns stay.
template <class Real>
void orthonormalize_first(Columns<Real>& w, Index count) {
  Columns<Real> first(w.rows(), count);
  std::copy(w.values().begin(), w.values().begin() + w.rows() * count, first.values().begin());
  orthonormalize(first);
  std::copy(first.values().begin(), first.values().end(), w.values().begin());
}

/// The decomposition of a W with m >= n. With W = Q R, rotations turn R^T into V S. R^T is n x n however tall W is, and
/// its columns are closer to orthogonal than those of R. U is W V / S.
/// Source: Drmac and Veselic, "New fast and accurate Jacobi SVD algorithm", SIAM J. Matrix Anal. Appl. 29 (2008).
template <class Real>
[[nodiscard]] TruncatedSvd<Real> svd_of_tall(const Columns<Real>& w, Index rank) {
  const Index m = w.rows();
  const Index n = w.cols();
  Columns<Real> rotated(n, n);  // R^T, whose column p is row p of R
  {
    Columns<Real> q = w;
    orthonormalize(q);
    for (Index j = 0; j < n; ++j)
      for (Index p = 0; p <= j; ++p) rotated(j, p) = dot<Real>(q.col(p), w.col(j), m);
  }
  orthogonalize_by_rotations(rotated);
  std::vector<Real> lengths(static_cast<std::size_t>(n));
  Real largest = 0;
  for (Index p = 0; p < n; ++p) {
    lengths[static_cast<std::size_t>(p)] = norm<Real>(rotated.col(p), n);
    largest = std::max(largest, lengths[static_cast<std::size_t>(p)]);
  }
  const Real zero = largest * std::numeric_limits<Real>::epsilon() * static_cast<Real>(m);
  TruncatedSvd<Real> svd{Columns<Real>(m, rank), std::vector<Real>(static_cast<std::size_t>(rank)),
                         Columns<Real>(n, rank)};
  Index found = 0;
  for (; found < rank; ++found) {
    std::size_t from = 0;
    for (std::size_t p = 1; p < lengths.size(); ++p) {
      if (lengths[p] > lengths[from]) from = p;
    }
    const Real length = lengths[from];
    if (!(length > zero)) break;
    lengths[from] = 0;
    svd.S[static_cast<std::size_t>(found)] = length;
    for (Index i = 0; i < n; ++i) svd.V(i, found) = rotated(i, static_cast<Index>(from)) / length;
  }
  svd.U = product(w, svd.V);
  orthonormalize_first(svd.V, found);
  orthonormalize_first(svd.U, found);
  return svd;
}

/// randomized_svd of a W with m >= n.
template <class Real>
[[nodiscard]] TruncatedSvd<Real> randomized_svd_of_tall(const Columns<Real>& w, Index rank, Index iterations,
                                                        const RandomStream& stream) {
  Columns<Real> directions(w.cols(), rank);
  fill_normal(directions.view(), 1.0, stream);
  Columns<Real> basis = product(w, directions);
  orthonormalize(basis);
  for (Index i = 0; i < iterations; ++i) {
    directions = transposed_product(w, basis);
    orthonormalize(directions);
    basis = product(w, directions);
    orthonormalize(basis);
  }
  // Q^T W = (W^T Q)^T, and the decomposition of W^T Q is that of Q^T W with U and V exchanged.
  TruncatedSvd<Real> inner = svd_of_tall(transposed_product(w, basis), rank);
  return {product(basis, inner.V), std::move(inner.S), std::move(inner.U)};
}

/// Decomposes a copy of W, transposed if it is wide.
template <class Element, class Decompose>
[[nodiscard]] auto decompose_as_tall(const MatrixView<Element>& w, Decompose decompose) {
  const bool wide = w.rows < w.cols;
  const auto copy = scaled_copy(wide ? w.transpose() : w);
  auto svd = decompose(copy.columns);
  if (wide) std::swap(svd.U, svd.V);
  if (copy.exponent != 0) {
    for (auto& value : svd.S) value = std::ldexp(value, copy.exponent);
  }
  fix_signs(svd.U, svd.V);
  return svd;
}

}  // namespace detail

/// The first `rank` <= min(m, n) parts of W, exact to rounding. With n <= m about 4 m n^2 + 40 n^3 operations: seconds
/// for a thousand columns, many minutes for several thousand; use randomized_svd() for those. @throws std::bad_alloc
template <class Element>
[[nodiscard]] TruncatedSvd<std::remove_const_t<Element>> truncated_svd(const MatrixView<Element>& w, Index rank) {
  using Real = std::remove_const_t<Element>;
  return detail::decompose_as_tall(w, [&](const Columns<Real>& tall) { return detail::svd_of_tall(tall, rank); });
}

/// The same by random projection on `rank` directions with `iterations` power iterations, as torch.svd_lowrank does:
/// O(m n rank (iterations + 1)). The directions are drawn from `stream`. Close to the exact parts of W only if the
/// singular values fall quickly or there are many iterations.
/// Source: Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1. @throws std::bad_alloc
template <class Element>
[[nodiscard]] TruncatedSvd<std::remove_const_t<Element>> randomized_svd(const MatrixView<Element>& w, Index rank,
                                                                        Index iterations, const RandomStream& stream) {
  using Real = std::remove_const_t<Element>;
  return detail::decompose_as_tall(
      w, [&](const Columns<Real>& tall) { return detail::randomized_svd_of_tall(tall, rank, iterations, stream); });
}

}  // namespace lora
