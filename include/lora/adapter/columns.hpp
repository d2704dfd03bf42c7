// SPDX-License-Identifier: MIT
// Column-major matrices, and the few loops over them that decompositions need. The loops are plain: as Eigen
// expressions they would take seconds to compile. All are templates, so that only callers pay for them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// Column p of a rows x cols matrix is contiguous. Owns its elements, which start at zero.
template <class Real>
class Columns {
 public:
  Columns() = default;
  Columns(Index rows, Index cols) : rows_(rows), cols_(cols), values_(static_cast<std::size_t>(rows * cols)) {}

  [[nodiscard]] Index rows() const noexcept { return rows_; }
  [[nodiscard]] Index cols() const noexcept { return cols_; }
  [[nodiscard]] Real* col(Index p) noexcept { return values_.data() + p * rows_; }
  [[nodiscard]] const Real* col(Index p) const noexcept { return values_.data() + p * rows_; }
  [[nodiscard]] Real& operator()(Index i, Index p) noexcept { return col(p)[i]; }
  [[nodiscard]] const Real& operator()(Index i, Index p) const noexcept { return col(p)[i]; }
  [[nodiscard]] std::vector<Real>& values() noexcept { return values_; }
  [[nodiscard]] const std::vector<Real>& values() const noexcept { return values_; }
  [[nodiscard]] MatrixView<Real> view() noexcept { return {values_.data(), rows_, cols_, 1, rows_}; }
  [[nodiscard]] MatrixView<const Real> view() const noexcept { return {values_.data(), rows_, cols_, 1, rows_}; }

 private:
  Index rows_ = 0;
  Index cols_ = 0;
  std::vector<Real> values_;
};

namespace detail {

/// A vector of 16 bytes. Without it g++ 12 at -O2 computes these loops one scalar at a time.
template <class Real>
struct Lanes {
  static constexpr auto count = static_cast<Index>(16 / sizeof(Real));
#if defined(__GNUC__)
  using Vector __attribute__((vector_size(16))) = Real;

  [[nodiscard]] static Vector load(const Real* from) noexcept {
    Vector vector;
    std::memcpy(&vector, from, sizeof(vector));
    return vector;
  }
  static void store(Real* to, Vector vector) noexcept { std::memcpy(to, &vector, sizeof(vector)); }
#endif
};

/// Sum of a[i] b[i]; the order of the additions depends on n alone.
template <class Real>
[[nodiscard]] Real dot(const Real* a, const Real* b, Index n) noexcept {
  Real sum = 0;
  Index i = 0;
#if defined(__GNUC__)
  using L = Lanes<Real>;
  typename L::Vector s0{};
  auto s1 = s0;
  auto s2 = s0;
  auto s3 = s0;
  for (; i + 4 * L::count <= n; i += 4 * L::count) {
    s0 += L::load(a + i) * L::load(b + i);
    s1 += L::load(a + i + L::count) * L::load(b + i + L::count);
    s2 += L::load(a + i + 2 * L::count) * L::load(b + i + 2 * L::count);
    s3 += L::load(a + i + 3 * L::count) * L::load(b + i + 3 * L::count);
  }
  s0 = (s0 + s1) + (s2 + s3);
  for (Index lane = 0; lane < L::count; ++lane) sum += s0[lane];
#endif
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// y += factor * x
template <class Real>
void add_multiple(Real factor, const Real* x, Real* y, Index n) noexcept {
  Index i = 0;
#if defined(__GNUC__)
  using L = Lanes<Real>;
  for (; i + 2 * L::count <= n; i += 2 * L::count) {
    const auto low = L::load(y + i) + L::load(x + i) * factor;
    const auto high = L::load(y + i + L::count) + L::load(x + i + L::count) * factor;
    L::store(y + i, low);
    L::store(y + i + L::count, high);
  }
#endif
  for (; i < n; ++i) y[i] += factor * x[i];
}

/// (a, b) <- (cosine a - sine b, sine a + cosine b)
template <class Real>
void rotate(Real cosine, Real sine, Real* a, Real* b, Index n) noexcept {
  Index i = 0;
#if defined(__GNUC__)
  using L = Lanes<Real>;
  for (; i + L::count <= n; i += L::count) {
    const auto x = L::load(a + i);
    const auto y = L::load(b + i);
    L::store(a + i, x * cosine - y * sine);
    L::store(b + i, x * sine + y * cosine);
  }
#endif
  for (; i < n; ++i) {
    const Real x = a[i];
    const Real y = b[i];
    a[i] = cosine * x - sine * y;
    b[i] = sine * x + cosine * y;
  }
}

template <class Real>
[[nodiscard]] Real norm(const Real* x, Index n) noexcept {
  return std::sqrt(dot(x, x, n));
}

/// X Y, where X is m x k and Y is k x n. Reads the columns of X once; the result should be narrow.
template <class Real>
[[nodiscard]] Columns<Real> product(const Columns<Real>& x, const Columns<Real>& y) {
  Columns<Real> result(x.rows(), y.cols());
  for (Index k = 0; k < x.cols(); ++k)
    for (Index j = 0; j < y.cols(); ++j) add_multiple(y(k, j), x.col(k), result.col(j), x.rows());
  return result;
}

/// X^T Y, where X is m x k and Y is m x n.
template <class Real>
[[nodiscard]] Columns<Real> transposed_product(const Columns<Real>& x, const Columns<Real>& y) {
  Columns<Real> result(x.cols(), y.cols());
  // The narrower matrix stays in cache while the columns of the other stream by.
  if (x.cols() < y.cols()) {
    for (Index j = 0; j < y.cols(); ++j)
      for (Index i = 0; i < x.cols(); ++i) result(i, j) = dot(x.col(i), y.col(j), x.rows());
  } else {
    for (Index i = 0; i < x.cols(); ++i)
      for (Index j = 0; j < y.cols(); ++j) result(i, j) = dot(x.col(i), y.col(j), x.rows());
  }
  return result;
}

}  // namespace detail

}  // namespace lora
