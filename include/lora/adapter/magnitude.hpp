// DoRA's magnitude: the norms it divides by, without the dense sum W0 + s*B*A.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// The norm of every row of W0 + s*B*A, from what does not grow with it:
///   |W0_j + s B_j A|^2 = |W0_j|^2 + 2 s B_j (W0 A^T)_j + s^2 B_j (A A^T) B_j^T.
///
/// `squared_norms`: |W0_j|^2, d scalars. `projected`: W0 A^T, d x r. `gram`: A A^T, r x r. `b`: d x r. `norms`: d
/// scalars, may be `squared_norms` itself. Sums in double; where W0_j and s B_j A cancel, the norm is as exact as the
/// three terms are, and never below 0. d r^2 / 2 multiplications, no allocation; rows are independent of each other.
/// Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, section 4.
template <RealScalar Scalar>
void adapted_row_norms(const Scalar* squared_norms, const MatrixView<const Scalar>& projected,
                       const MatrixView<const Scalar>& gram, const MatrixView<const Scalar>& b, Scalar scale,
                       Scalar* norms) noexcept {
  constexpr Index block = 8;  // sums that do not wait for each other
  using Sums = std::array<double, static_cast<std::size_t>(block)>;
  const auto s = static_cast<double>(scale);
  for (Index first = 0; first < b.rows; first += block) {
    const Index rows = std::min(block, b.rows - first);
    const auto factor = [&](Index l, Index p) { return static_cast<double>(b(first + l, p)); };
    Sums squared{};
    for (Index p = 0; p < b.cols; ++p) {
      Sums row{};  // (A A^T B_j^T)_p, each pair of p and q taken once
      for (Index q = p; q < b.cols; ++q) {
        const double weight = (q == p ? 1.0 : 2.0) * static_cast<double>(gram(p, q));
        for (Index l = 0; l < rows; ++l) row[static_cast<std::size_t>(l)] += weight * factor(l, q);
      }
      for (Index l = 0; l < rows; ++l) {
        const auto at = static_cast<std::size_t>(l);
        squared[at] += factor(l, p) * (2 * static_cast<double>(projected(first + l, p)) + s * row[at]);
      }
    }
    for (Index l = 0; l < rows; ++l) {
      const double sum = static_cast<double>(squared_norms[first + l]) + s * squared[static_cast<std::size_t>(l)];
      norms[first + l] = static_cast<Scalar>(std::sqrt(std::max(sum, 0.0)));
    }
  }
}

}  // namespace lora
