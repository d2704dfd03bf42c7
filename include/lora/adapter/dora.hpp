// SPDX-License-Identifier: MIT
// DoRA: the norms of the adapted weight's rows, and the output factors they give with a magnitude.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/columns.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/kernels/row_norms.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/weight_ref.hpp"

// With a magnitude m (out_features), row j of the adapted weight is m_j / n_j (W_j + s B_j A), where n_j = |W_j + s B_j
// A| is treated as a constant in the backward pass. With x~ = drop(x) and z = (W + s B A) x~,
//
//   y = bias + W (x - x~) + (m/n) (.) z, and without dropout bias + (m/n) (.) z;
//   dm = sum over rows of dY (.) z / n;   dZ = dY (.) m/n;   dX = dZ W + V A with V = s dZ B;
//   with dropout dX = dY W + drop'((dZ - dY) W + V A).
//
// A row of zeros, or one whose squares underflow, has no direction: its factor m_j / n_j is set to 1 and its dm_j to 0,
// so that nothing becomes NaN and B_j can move the row away from 0.
//
// Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, sections 4.1 and 4.3.
namespace lora {

/// |W_j|^2 of every row, in double. @throws StateError when the weight cannot be read; std::bad_alloc
template <RealScalar Scalar>
[[nodiscard]] std::vector<double> squared_row_norms(const WeightRef<Scalar>& weight) {
  const Index inputs = weight.in_features();
  std::vector<double> squares(static_cast<std::size_t>(weight.out_features()));
  for_each_row(weight, [&](Index j, const Scalar* row) {
    double sum = 0;
    for (Index i = 0; i < inputs; ++i) sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    squares[static_cast<std::size_t>(j)] = sum;
  });
  return squares;
}

/// |W_j + s B_j A| from the elements of row j: O(in_features * rank). Allocates a row. @throws std::bad_alloc
template <RealScalar Scalar>
[[nodiscard]] double exact_row_norm(const WeightRef<Scalar>& weight, const LowRankUpdate<Scalar>& update, Index j,
                                    Workspace& workspace) {
  const Index inputs = weight.in_features();
  const auto row = workspace.row<Scalar>(inputs);
  weight.read(j, 0, static_cast<const MatrixView<Scalar>&>(row));
  double squares = 0;
  for (Index i = 0; i < inputs; ++i) {
    double sum = 0;
    for (Index p = 0; p < update.a.rows; ++p) {
      sum += static_cast<double>(update.b(j, p)) * static_cast<double>(update.a(p, i));
    }
    sum = static_cast<double>(row.data[i]) + static_cast<double>(update.scale) * sum;
    squares += sum * sum;
  }
  return std::sqrt(squares);
}

/// Writes n_j = |W_j + s B_j A| of every row to `norms`, without forming the product s B A:
///   n_j^2 = |W_j|^2 + 2 s B_j (W A^T)_j + s^2 B_j (A A^T) B_j^T.
/// `squared_norms` are |W_j|^2. Costs a product of `rank` rows with W and d r^2 / 2 multiplications. Rows whose terms
/// nearly cancel, which does not happen in usual training, or overflow the scalar are computed from their elements.
/// Allocates only to grow the workspace.
template <RealScalar Scalar>
void row_norms(const WeightRef<Scalar>& weight, const LowRankUpdate<Scalar>& update,
               std::span<const double> squared_norms, double* norms, Workspace& workspace) {
  const Index outputs = weight.out_features();
  const Index rank = update.a.rows;
  const auto projected = workspace.matrix<Scalar>(rank, outputs);
  const auto gram = workspace.matrix<Scalar>(rank, rank);
  const auto inexact = workspace.row<std::uint8_t>(outputs);
  weight.product(update.a, nullptr, {}, projected, workspace);
  kernels::project_down(update.a, DropoutMask<Scalar>{}, update.a, Scalar(1),
                        static_cast<const MatrixView<Scalar>&>(gram), workspace);
  kernels::adapted_row_norms(squared_norms.data(), MatrixView<const Scalar>(projected), MatrixView<const Scalar>(gram),
                             update.b, update.scale, norms, inexact.data, workspace);
  for (Index j = 0; j < outputs; ++j) {
    if (inexact.data[j] != 0) norms[j] = exact_row_norm(weight, update, j, workspace);
  }
}

namespace detail {

template <class Scalar>
[[nodiscard]] bool has_direction(double norm) noexcept {
  return norm >= static_cast<double>(std::numeric_limits<Scalar>::min());
}

}  // namespace detail

/// factors[j] = m / n for every adapted output, and 1 for the others and for rows without direction. `magnitude` has
/// one element per adapted output of `blocks`; `norms` and `factors` have one per output.
template <class Blocks, class Scalar>
void magnitude_factors(const Blocks& blocks, const RowVector<Scalar>& magnitude, const double* norms, Scalar* factors) {
  for (Index j = 0; j < blocks.outputs; ++j) factors[j] = Scalar(1);
  blocks.for_each([&](Index adapted, Index output) {
    if (!detail::has_direction<Scalar>(norms[output])) return;
    factors[output] = static_cast<Scalar>(static_cast<double>(magnitude[adapted]) / norms[output]);
  });
}

/// The factors f = m / n with which W + s*B*A becomes the weight of an adapter with DoRA, f (.) (W + s*B*A), where n
/// are the norms of its rows: out_features of each, and 1 for rows without direction. They are what MergeUndo::merge
/// and requantize (weight/requantize.hpp) take. `update` is of the whole weight.
/// @throws ShapeError when the factors or the magnitude do not fit; StateError when the weight cannot be read;
/// std::bad_alloc
template <RealScalar Scalar>
[[nodiscard]] LORA_COLD std::vector<Scalar> dora_factors(const WeightRef<Scalar>& weight,
                                                         const LowRankUpdate<Scalar>& update,
                                                         const RowVector<Scalar>& magnitude) {
  constexpr std::string_view operation = "dora_factors";
  const Index outputs = weight.out_features();
  check_shape(operation, "A", update.a, update.b.cols, weight.in_features());
  check_shape(operation, "B", update.b, outputs, update.a.rows);
  check_shape(operation, "magnitude", magnitude, 1, outputs);
  std::vector<double> norms(static_cast<std::size_t>(outputs));
  Workspace workspace;
  row_norms(weight, update, squared_row_norms(weight), norms.data(), workspace);
  std::vector<Scalar> factors(norms.size(), Scalar(1));
  for (std::size_t j = 0; j < norms.size(); ++j) {
    if (!detail::has_direction<Scalar>(norms[j])) continue;
    factors[j] = static_cast<Scalar>(static_cast<double>(magnitude[static_cast<Index>(j)]) / norms[j]);
  }
  return factors;
}

/// gradient[j] += sums[j] / n_j for every adapted output, where `sums` is the sum over rows of dY (.) Z.
template <class Blocks, class Scalar>
void add_magnitude_gradient(const Blocks& blocks, const Scalar* sums, const double* norms,
                            RowVector<Scalar>& gradient) {
  blocks.for_each([&](Index adapted, Index output) {
    if (!detail::has_direction<Scalar>(norms[output])) return;
    gradient[adapted] += static_cast<Scalar>(static_cast<double>(sums[output]) / norms[output]);
  });
}

}  // namespace lora
