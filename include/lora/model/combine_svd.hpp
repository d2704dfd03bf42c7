// SPDX-License-Identifier: MIT
// Best approximations of a given rank, as a pair of factors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/columns.hpp"
#include "lora/adapter/orthonormal.hpp"
#include "lora/adapter/truncated_svd.hpp"
#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"

namespace lora::detail {

/// A product B A. An SVD does not determine the sign of each component; here the first element of largest magnitude in
/// each row of A is positive.
template <class Real>
struct FactorPair {
  Columns<Real> B;             ///< out_features x rank
  Columns<Real> A_transposed;  ///< in_features x rank
};

/// The first `rank` components of U S V^T as A = V^T and B = W V = U S: no product of rank `rank` is closer to W in the
/// Frobenius norm. Rows of A are orthonormal, including those for singular values of zero. W is out_features x
/// in_features. Pre: 1 <= rank <= rows, cols. Cost: that of truncated_svd.
/// Source: Eckart and Young, Psychometrika 1 (1936).
template <class Real>
[[nodiscard]] FactorPair<Real> truncate_dense(const MatrixView<const Real>& w, Index rank) {
  auto svd = truncated_svd(w, rank);
  for (Index p = 0; p < rank; ++p) {
    const Real value = svd.S[static_cast<std::size_t>(p)];
    for (Index i = 0; i < svd.U.rows(); ++i) svd.U(i, p) *= value;
  }
  orthonormalize(svd.V);
  fix_signs(svd.U, svd.V);
  return {std::move(svd.U), std::move(svd.V)};
}

/// truncate_dense of B A without forming it: with B = Qb Rb and A^T = Qa Ra, the SVD of the small matrix Rb Ra^T gives
/// that of B A, multiplied by Qb and Qa. Pre: 1 <= rank <= rows of B, columns of A, and their common extent R.
/// Cost: (rows + cols) * R^2.
template <class Real>
[[nodiscard]] FactorPair<Real> truncate_product(const FactorPair<Real>& factors, Index rank) {
  const auto basis_of = [](const Columns<Real>& tall) {
    Columns<Real> q(tall.rows(), std::min(tall.rows(), tall.cols()));
    std::copy(tall.values().begin(), tall.values().begin() + q.rows() * q.cols(), q.values().begin());
    orthonormalize(q);
    return q;
  };
  const Columns<Real> qb = basis_of(factors.B);
  const Columns<Real> qa = basis_of(factors.A_transposed);
  const Columns<Real> rb = transposed_product(qb, factors.B);
  const Columns<Real> ra = transposed_product(qa, factors.A_transposed);
  Columns<Real> core(qb.cols(), qa.cols());  // Rb Ra^T
  for (Index k = 0; k < rb.cols(); ++k)
    for (Index j = 0; j < core.cols(); ++j) add_multiple(ra(j, k), rb.col(k), core.col(j), core.rows());
  const FactorPair<Real> inner = truncate_dense<Real>(core.view(), rank);
  FactorPair<Real> pair{product(qb, inner.B), product(qa, inner.A_transposed)};
  fix_signs(pair.B, pair.A_transposed);
  return pair;
}

/// The q-quantile of the values, interpolated linearly as in torch.quantile. Pre: not empty, finite.
template <class Real>
[[nodiscard]] Real quantile(std::vector<Real> values, double q) {
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(position);
  const auto low = values.begin() + below;
  std::nth_element(values.begin(), low, values.end());
  const auto fraction = static_cast<Real>(position - static_cast<double>(below));
  if (fraction == 0) return *low;
  return *low + fraction * (*std::min_element(low + 1, values.end()) - *low);
}

/// Clamps the elements of both factors to [-h, h], where h is the q-quantile of all of them.
/// @throws ConfigError when h is negative.
template <class Real>
void clamp_to_quantile(std::string_view operation, FactorPair<Real>& pair, double q) {
  std::vector<Real> values = pair.B.values();
  values.insert(values.end(), pair.A_transposed.values().begin(), pair.A_transposed.values().end());
  const Real limit = quantile(std::move(values), q);
  if (limit < 0) {
    std::string got = number_text(q);
    got.append(", where they are ").append(number_text(limit));
    throw ConfigError(operation, "svd_clamp", "a quantile at which the factors' elements are not negative", got);
  }
  for (auto* factor : {&pair.B, &pair.A_transposed}) {
    for (Real& value : factor->values()) value = std::max(-limit, std::min(limit, value));
  }
}

}  // namespace lora::detail
