// SPDX-License-Identifier: MIT
// The leading part of a singular value decomposition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
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
  Columns<Real> U;      ///< m x r, left singular vectors
  std::vector<Real> S;  ///< r singular values, descending
  Columns<Real> V;      ///< n x r, right singular vectors
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

/// H = I - scale v v^T, which maps a vector x to (image, 0, ..., 0). The first element of v is 1; `scale` is 0 if H is
/// I.
template <class Real>
struct Reflector {
  Real scale = 0;
  Real image = 0;
};

/// Replaces x, which has n > 0 elements, by v.
template <class Real>
[[nodiscard]] Reflector<Real> reflect(Real* x, Index n) noexcept {
  const Real head = x[0];
  const Real rest = norm<Real>(x + 1, n - 1);
  if (rest == 0) {
    x[0] = 0;
    return {0, head};
  }
  const Real image = -std::copysign(std::hypot(head, rest), head);
  for (Index i = 1; i < n; ++i) x[i] /= head - image;
  x[0] = 1;
  return {(image - head) / image, image};
}

/// W = U B V^T with orthogonal U and V, where B has a diagonal and a superdiagonal. V is a product of reflections: the
/// one that belongs to row k has its vector in column k of `right`, from element k + 1 on.
template <class Real>
struct Bidiagonal {
  std::vector<Real> diagonal;
  std::vector<Real> above;
  Columns<Real> right;
  std::vector<Real> scales;

  /// V X
  void apply_right(Columns<Real>& x) const noexcept {
    for (Index k = right.cols() - 1; k >= 0; --k) {
      const Index first = k + 1;
      const Index n = x.rows() - first;
      const Real* const z = right.col(k) + first;
      for (Index p = 0; p < x.cols(); ++p) {
        Real* const column = x.col(p) + first;
        add_multiple(-scales[static_cast<std::size_t>(k)] * dot<Real>(z, column, n), z, column, n);
      }
    }
  }
};

/// Reduces W (m x n, m >= n), whose elements are used up, with a reflection of its columns and one of its rows in turn.
/// Both are subtracted as W - u y^T - w z^T in the next step, where each column is in cache for its next product.
/// Source: Golub and Kahan, SIAM J. Numer. Anal. 2 (1965); Dongarra et al., J. Comput. Appl. Math. 27 (1989).
template <class Real>
[[nodiscard]] Bidiagonal<Real> bidiagonalize(Columns<Real>& w) {
  const Index m = w.rows();
  const Index n = w.cols();
  const auto size = static_cast<std::size_t>(n);
  Bidiagonal<Real> result{std::vector<Real>(size), std::vector<Real>(size), Columns<Real>(n, n),
                          std::vector<Real>(size)};
  Columns<Real> rows(m, 2);
  Columns<Real> factors(n, 2);
  Real* const u = rows.col(0);
  Real* const w_z = rows.col(1);
  Real* const y = factors.col(0);
  Real* const row = factors.col(1);
  const Real* z = row;
  for (Index k = 0; k < n; ++k) {
    const Index height = m - k;
    const auto update = [&](Index j) {
      add_multiple(-y[j], u + k, w.col(j) + k, height);
      add_multiple(-z[j], w_z + k, w.col(j) + k, height);
    };
    update(k);
    const Reflector<Real> left = reflect(w.col(k) + k, height);
    const Real* const v = w.col(k) + k;
    for (Index j = k + 1; j < n; ++j) {
      update(j);
      y[j] = left.scale * dot<Real>(v, w.col(j) + k, height);
    }
    Real* const next = result.right.col(k);
    for (Index j = k + 1; j < n; ++j) next[j] = w(k, j) - y[j] * v[0];
    std::copy(v, v + height, u + k);
    result.diagonal[static_cast<std::size_t>(k)] = left.image;
    z = next;
    if (k + 1 == n) break;
    const Reflector<Real> right = reflect(next + k + 1, n - k - 1);
    result.above[static_cast<std::size_t>(k)] = right.image;
    result.scales[static_cast<std::size_t>(k)] = right.scale;
    std::fill(w_z + k, w_z + m, Real(0));
    for (Index j = k + 1; j < n; ++j) add_multiple(right.scale * z[j], w.col(j) + k, w_z + k, height);
    add_multiple(-right.scale * dot<Real>(y + k + 1, z + k + 1, n - k - 1), u + k, w_z + k, height);
  }
  return result;
}

/// Rotations of the neighbouring columns p and p + 1, in the order in which they were applied.
template <class Real>
struct Rotations {
  std::vector<Real> angles;  ///< cosine and sine of each
  std::vector<Index> runs;   ///< column of a run's first rotation and of its last one; each is a column further

  /// The product of all rotations, times X^T. In blocks of rows that stay in the second-level cache.
  void apply(Columns<Real>& x) const noexcept {
    constexpr Index block = 32;
    for (Index i = 0; i < x.rows(); i += block) {
      const Index rows = std::min(block, x.rows() - i);
      const Real* angle = angles.data() + angles.size();
      for (std::size_t run = runs.size(); run > 0; run -= 2) {
        for (Index p = runs[run - 1]; p >= runs[run - 2]; --p) {
          angle -= 2;
          rotate(angle[0], angle[1], x.col(p) + i, x.col(p + 1) + i, rows);
        }
      }
    }
  }
};

/// The rotation that maps (a, b) to (length, 0).
template <class Real>
struct PlaneRotation {
  Real cosine = 1;
  Real sine = 0;
  Real length;

  PlaneRotation(Real a, Real b) noexcept : length(std::hypot(a, b)) {
    if (length == 0) return;
    cosine = a / length;
    sine = b / length;
  }
};

/// Implicit QR iteration on a bidiagonal matrix: its diagonal becomes the singular values, up to their signs and order.
/// Returns the rotations whose product is V.
/// Source: Golub and Reinsch, Numer. Math. 14 (1970); the shift is that of Demmel and Kahan, SIAM J. Sci. Stat. Comput.
/// 11 (1990).
template <class Real>
class BidiagonalQr {
 public:
  BidiagonalQr(std::vector<Real>& diagonal, std::vector<Real>& above)
      : d_(diagonal.data()), e_(above.data()), n_(static_cast<Index>(diagonal.size())) {
    Real largest = 0;
    for (Index i = 0; i < n_; ++i) largest = std::max(largest, std::max(std::abs(d_[i]), std::abs(e_[i])));
    negligible_ = std::numeric_limits<Real>::epsilon() * largest;
  }

  [[nodiscard]] Rotations<Real> run() {
    constexpr Index most_sweeps = 30;  // for each value; two are typical
    Index last = n_ - 1;
    for (Index sweeps = most_sweeps * n_; last > 0 && sweeps > 0;) {
      Index first = last;
      while (first > 0 && !negligible_above(first - 1)) --first;
      if (first == last) {
        --last;
      } else if (!split_at_zero(first, last)) {
        sweep(first, last);
        --sweeps;
      }
    }
    return std::move(rotations_);
  }

 private:
  [[nodiscard]] bool negligible_above(Index i) noexcept {
    const Real bound = std::numeric_limits<Real>::epsilon() * (std::abs(d_[i]) + std::abs(d_[i + 1]));
    if (std::abs(e_[i]) > bound) return false;
    e_[i] = 0;
    return true;
  }

  // Where the diagonal is 0, rotations of rows, which V does not see, make the rest of the row 0.
  [[nodiscard]] bool split_at_zero(Index first, Index last) noexcept {
    for (Index i = first; i < last; ++i) {
      if (std::abs(d_[i]) > negligible_) continue;
      d_[i] = 0;
      Real rest = e_[i];
      e_[i] = 0;
      for (Index j = i + 1; j <= last; ++j) {
        const PlaneRotation<Real> r(d_[j], rest);
        d_[j] = r.length;
        rest = -r.sine * e_[j];
        e_[j] *= r.cosine;
      }
      return true;
    }
    return false;
  }

  // The smaller singular value of the last 2 x 2 block, as determinant over the larger one.
  [[nodiscard]] Real shift(Index last) const noexcept {
    const Real a = d_[last - 1];
    const Real b = e_[last - 1];
    const Real c = d_[last];
    return std::abs(a * c) * 2 / (std::hypot(a + c, b) + std::hypot(a - c, b));
  }

  void sweep(Index first, Index last) {
    const Real sigma = shift(last);
    Real f = (std::abs(d_[first]) - sigma) * (std::copysign(Real(1), d_[first]) + sigma / d_[first]);
    Real g = e_[first];
    rotations_.runs.push_back(first);
    rotations_.runs.push_back(last - 1);
    for (Index i = first; i < last; ++i) {
      const PlaneRotation<Real> right(f, g);
      if (i > first) e_[i - 1] = right.length;
      rotations_.angles.push_back(right.cosine);
      rotations_.angles.push_back(right.sine);
      f = right.cosine * d_[i] + right.sine * e_[i];
      e_[i] = right.cosine * e_[i] - right.sine * d_[i];
      g = right.sine * d_[i + 1];
      d_[i + 1] *= right.cosine;
      const PlaneRotation<Real> left(f, g);
      d_[i] = left.length;
      f = left.cosine * e_[i] + left.sine * d_[i + 1];
      d_[i + 1] = left.cosine * d_[i + 1] - left.sine * e_[i];
      if (i + 1 == last) break;
      g = left.sine * e_[i + 1];
      e_[i + 1] *= left.cosine;
    }
    e_[last - 1] = f;
  }

  Real* d_;
  Real* e_;
  Index n_;
  Real negligible_;
  Rotations<Real> rotations_;
};

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

/// The decomposition of a W with m >= n. Of V only the columns asked for are formed: the rotations of a bidiagonal
/// matrix and then the reflections are applied to unit vectors, last first. U is W V / S.
template <class Real>
[[nodiscard]] TruncatedSvd<Real> svd_of_tall(const Columns<Real>& w, Index rank) {
  const Index n = w.cols();
  Columns<Real> used = w;
  Bidiagonal<Real> bidiagonal = bidiagonalize(used);
  const Rotations<Real> rotations = BidiagonalQr<Real>(bidiagonal.diagonal, bidiagonal.above).run();
  std::vector<Real>& values = bidiagonal.diagonal;
  Real largest = 0;
  for (Real& value : values) largest = std::max(largest, value = std::abs(value));
  const Real zero = largest * std::numeric_limits<Real>::epsilon() * static_cast<Real>(w.rows());
  TruncatedSvd<Real> svd{{}, std::vector<Real>(static_cast<std::size_t>(rank)), Columns<Real>(n, rank)};
  Columns<Real> rotated(rank, n);  // V^T of the bidiagonal matrix
  Index found = 0;
  for (; found < rank; ++found) {
    std::size_t from = 0;
    for (std::size_t p = 1; p < values.size(); ++p) {
      if (values[p] > values[from]) from = p;
    }
    if (!(values[from] > zero)) break;
    svd.S[static_cast<std::size_t>(found)] = values[from];
    values[from] = 0;
    rotated(found, static_cast<Index>(from)) = 1;
  }
  rotations.apply(rotated);
  for (Index j = 0; j < n; ++j)
    for (Index p = 0; p < rank; ++p) svd.V(j, p) = rotated(p, j);
  bidiagonal.apply_right(svd.V);
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

/// The first `rank` <= min(m, n) parts of W, exact to rounding. With n <= m about 4 m n^2 + 12 n^2 rank operations:
/// half a second for a thousand columns, a minute for several thousand; randomized_svd() is faster. @throws
/// std::bad_alloc
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
