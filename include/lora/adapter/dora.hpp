// DoRA: the magnitude of one layer, and what it changes in the layer's passes.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "lora/adapter/magnitude.hpp"
#include "lora/adapter/record.hpp"
#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"

namespace lora {

/// |W_j|^2 of every row of a weight into `out`, out_features scalars. Sums in double. @throws std::bad_alloc
template <FrozenWeight Weight>
void squared_row_norms(const Weight& weight, typename Weight::Scalar* out) {
  std::vector<double> sums(static_cast<std::size_t>(weight.out_features()));
  for (Index t = 0; t < weight.tile_count(); ++t) {
    const auto tile = weight.tile(t);
    for (Index l = 0; l < tile.lines; ++l) {
      for (Index p = 0; p < tile.length; ++p) {
        const Index row = tile.lines_are_outputs ? tile.first_line + l : tile.first_position + p;
        const auto element = static_cast<double>(tile.data[l * tile.line_stride + p]);
        sums[static_cast<std::size_t>(row)] += element * element;
      }
    }
  }
  for (Index j = 0; j < weight.out_features(); ++j) {
    out[j] = static_cast<typename Weight::Scalar>(sums[static_cast<std::size_t>(j)]);
  }
}

namespace detail {

/// |W_j + s B_j A| from the elements of row j, in double: O(in_features * rank).
template <FrozenWeight Weight>
[[nodiscard]] typename Weight::Scalar exact_row_norm(const Weight& weight,
                                                     const LowRankUpdate<typename Weight::Scalar>& update,
                                                     Index j) noexcept {
  double squared = 0;
  for (Index t = 0; t < weight.tile_count(); ++t) {
    const auto tile = weight.tile(t);
    const Index at = j - (tile.lines_are_outputs ? tile.first_line : tile.first_position);
    if (at < 0 || at >= (tile.lines_are_outputs ? tile.lines : tile.length)) continue;
    const Index columns = tile.lines_are_outputs ? tile.length : tile.lines;
    const Index first_column = tile.lines_are_outputs ? tile.first_position : tile.first_line;
    for (Index c = 0; c < columns; ++c) {
      const Index element = tile.lines_are_outputs ? at * tile.line_stride + c : c * tile.line_stride + at;
      double sum = 0;
      for (Index p = 0; p < update.a.rows; ++p) {
        sum += static_cast<double>(update.b(j, p)) * static_cast<double>(update.a(p, first_column + c));
      }
      sum = static_cast<double>(tile.data[element]) + static_cast<double>(update.scale) * sum;
      squared += sum * sum;
    }
  }
  return static_cast<typename Weight::Scalar>(std::sqrt(squared));
}

}  // namespace detail

/// The magnitude m (out_features) of one layer: row j of the adapted weight is m_j / n_j (W0_j + s B_j A), where
/// n_j = |W0_j + s B_j A| counts as a constant in the backward pass. With x~ = drop(x) and z = (W0 + s*B*A) x~,
///
///   y = bias + W0 (x - x~) + (m/n) (.) z,      which is bias + (m/n) (.) z without dropout;
///   dm = sum over rows of dY (.) z / n;   dZ = dY (.) m/n;   dX = dZ W0 + V A with V = s dZ B;
///   with dropout dX = dY W0 + drop'((dZ - dY) W0 + V A).
///
/// A row of zeros, or one too small to be squared, has no direction: its factor m_j / n_j is taken as 1 and its dm_j as
/// 0, so that nothing becomes NaN and B_j can lead the row away from 0.
///
/// The norms are computed anew in every pass, because A and B may have changed by any way: the product of r more rows
/// with W0, A A^T and d r^2 / 2 multiplications; |W0_j|^2 is kept. Rows in which W0_j and s B_j A nearly cancel, of
/// which there are none in usual training, take k r more, so that their norms are exact too. Inference that should cost
/// no more than the base layer merges. An object made by default stands for a layer without DoRA. Const functions are
/// reentrant.
///
/// Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, sections 4.1 and 4.3.
template <RealScalar Scalar>
class DoraMagnitude {
 public:
  DoraMagnitude() = default;

  /// Starts m as the norms of the rows of W0 + s*B*A. `weight` is unmerged. @throws std::bad_alloc
  template <FrozenWeight Weight>
  DoraMagnitude(const Weight& weight, const LowRankUpdate<Scalar>& update)
      : magnitude_(weight.out_features()), squared_norms_(static_cast<std::size_t>(weight.out_features())) {
    squared_row_norms(weight, squared_norms_.data());
    Workspace workspace;
    row_norms(weight, update, magnitude_.data(), workspace);
  }

  [[nodiscard]] bool active() const noexcept { return magnitude_.size() > 0; }
  /// m; empty without DoRA.
  [[nodiscard]] const RowVector<Scalar>& value() const noexcept { return magnitude_; }
  [[nodiscard]] RowVector<Scalar>& value() noexcept { return magnitude_; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    return (static_cast<std::size_t>(magnitude_.size()) + squared_norms_.size()) * sizeof(Scalar);
  }

  /// n, out_features scalars. `weight` is unmerged. Allocates only to grow the workspace.
  template <FrozenWeight Weight>
  void row_norms(const Weight& weight, const LowRankUpdate<Scalar>& update, Scalar* norms, Workspace& workspace) const {
    const Index outputs = weight.out_features();
    const Index rank = update.a.rows;
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::row_norm_terms, rank * (outputs + rank));
    const MatrixView<Scalar> projected{memory, rank, outputs, outputs, 1};
    const MatrixView<Scalar> gram{memory + rank * outputs, rank, rank, rank, 1};
    weight.product(update.a, nullptr, {}, projected, workspace);
    kernels::project_down(update.a, DropoutMask<Scalar>{}, update.a, Scalar(1), gram, workspace.executor());
    const MatrixView<const Scalar> by_output = projected.transpose();
    parallel_ranges(workspace.executor(), outputs, 64, [&](Index begin, Index end, int /*worker*/) {
      adapted_row_norms<Scalar>(squared_norms_.data() + begin, by_output.middle_rows(begin, end - begin), gram,
                                update.b.middle_rows(begin, end - begin), update.scale, norms + begin);
      for (Index j = begin; j < end; ++j) {
        if (cancels(update, gram, j, norms[j])) norms[j] = detail::exact_row_norm(weight, update, j);
      }
    });
  }

  /// m / n in the workspace (slot output_factors): what merging multiplies the rows of W0 + s*B*A by.
  template <FrozenWeight Weight>
  [[nodiscard]] std::span<const Scalar> factors(const Weight& weight, const LowRankUpdate<Scalar>& update,
                                                Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::output_factors, size());
    row_norms(weight, update, memory, workspace);
    divide(memory, memory);
    return {memory, static_cast<std::size_t>(size())};
  }

  /// Y of inference. `term` is the adapter's; `bias` has out_features scalars or is null.
  template <FrozenWeight Weight>
  void infer(const Weight& weight, const LowRankUpdate<Scalar>& update, const MatrixView<const Scalar>& x,
             const Scalar* bias, const LowRankTerm<Scalar>& term, const MatrixView<Scalar>& y,
             Workspace& workspace) const {
    const auto factors_now = factors(weight, update, workspace);
    weight.product(x, nullptr, term, y, workspace);
    for_each_element(y, workspace, [&](Index i, Index j) {
      y(i, j) = factors_now[static_cast<std::size_t>(j)] * y(i, j) + (bias != nullptr ? bias[j] : Scalar(0));
    });
  }

  /// Y of training. `record` is the one that the adapter's forward pass has filled, `mask` its mask; it gains Z and n.
  template <FrozenWeight Weight>
  void forward(const Weight& weight, const LowRankUpdate<Scalar>& update, const MatrixView<const Scalar>& x,
               const DropoutMask<Scalar>& mask, const Scalar* bias, const LowRankTerm<Scalar>& term,
               LoraRecord<Scalar>& record, const MatrixView<Scalar>& y, Workspace& workspace) const {
    const auto [z, norms] = record.prepare_outputs(size());
    row_norms(weight, update, norms, workspace);
    auto* factors_now = workspace.reserve<Scalar>(Workspace::Slot::output_factors, size());
    divide(norms, factors_now);
    if (mask.active()) {
      const auto part = masked_input(x, workspace);
      for_each_element(part, workspace, [&](Index i, Index j) { part(i, j) = dropped(x, mask, i, j); });
      weight.product(part, nullptr, term, z, workspace);
      for_each_element(part, workspace, [&](Index i, Index j) { part(i, j) = x(i, j) - dropped(x, mask, i, j); });
      weight.product(part, bias, {}, y, workspace);
      for_each_element(y, workspace, [&, z = z](Index i, Index j) { y(i, j) += factors_now[j] * z(i, j); });
    } else {
      weight.product(x, nullptr, term, z, workspace);
      for_each_element(y, workspace, [&, z = z](Index i, Index j) {
        y(i, j) = factors_now[j] * z(i, j) + (bias != nullptr ? bias[j] : Scalar(0));
      });
    }
    record.keep_outputs(size());
  }

  /// Adds dm to `gradient` and returns dZ = dY (.) m/n in the workspace (slot scaled_gradient), which takes dY's place
  /// in the backward pass of A and B.
  [[nodiscard]] MatrixView<const Scalar> backward(const LoraRecord<Scalar>& record, const MatrixView<const Scalar>& dy,
                                                  RowVector<Scalar>& gradient, Workspace& workspace) const {
    const Scalar* norms = record.row_norms();
    add_gradient(record.unscaled_output(), norms, dy, gradient, workspace);
    auto* factors_then = workspace.reserve<Scalar>(Workspace::Slot::output_factors, size());
    divide(norms, factors_then);
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::scaled_gradient, dy.rows * dy.cols);
    const MatrixView<Scalar> dz{memory, dy.rows, dy.cols, dy.cols, 1};
    for_each_element(dz, workspace, [&](Index i, Index j) { dz(i, j) = dy(i, j) * factors_then[j]; });
    return dz;
  }

  /// dX of a pass with dropout, after backward(), whose dZ it uses up. `term` is V and A.
  template <FrozenWeight Weight>
  void input_gradient(const Weight& weight, const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                      const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& dx, Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::scaled_gradient, dy.rows * dy.cols);
    const MatrixView<Scalar> rest{memory, dy.rows, dy.cols, dy.cols, 1};
    for_each_element(rest, workspace, [&](Index i, Index j) { rest(i, j) -= dy(i, j); });
    const auto part = masked_input(dx, workspace);
    weight.product_transposed(rest, term, part, workspace);
    weight.product_transposed(dy, {}, dx, workspace);
    for_each_element(dx, workspace, [&](Index i, Index j) { dx(i, j) += dropped(part, mask, i, j); });
  }

 private:
  [[nodiscard]] Index size() const noexcept { return magnitude_.size(); }

  // Whether the square of a norm is so much smaller than its terms that their rounding shows.
  [[nodiscard]] bool cancels(const LowRankUpdate<Scalar>& update, const MatrixView<const Scalar>& gram, Index j,
                             Scalar norm) const noexcept {
    Scalar terms = 0;
    for (Index p = 0; p < gram.rows; ++p) terms += update.b(j, p) * update.b(j, p) * gram(p, p);
    terms = squared_norms_[static_cast<std::size_t>(j)] + update.scale * update.scale * terms;
    return norm * norm < Scalar(0.05) * terms;
  }

  [[nodiscard]] static bool has_direction(Scalar norm) noexcept { return norm >= std::numeric_limits<Scalar>::min(); }

  /// result = m / norms; the two may be the same.
  void divide(const Scalar* norms, Scalar* result) const noexcept {
    for (Index j = 0; j < size(); ++j) result[j] = has_direction(norms[j]) ? magnitude_[j] / norms[j] : Scalar(1);
  }

  template <class Element>
  [[nodiscard]] static MatrixView<Scalar> masked_input(const MatrixView<Element>& like, Workspace& workspace) {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::masked_input, like.rows * like.cols);
    return {memory, like.rows, like.cols, like.cols, 1};
  }

  template <class Element>
  [[nodiscard]] static Scalar dropped(const MatrixView<Element>& x, const DropoutMask<Scalar>& mask, Index i,
                                      Index j) noexcept {
    return mask.keeps(i, j) ? mask.scale * x(i, j) : Scalar(0);
  }

  /// Calls body(i, j) for every element of `target`, rows in parallel.
  template <class Body>
  static void for_each_element(const MatrixView<Scalar>& target, Workspace& workspace, const Body& body) {
    parallel_ranges(workspace.executor(), target.rows, 4, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i)
        for (Index j = 0; j < target.cols; ++j) body(i, j);
    });
  }

  /// gradient += (sum over rows, in order, of dY (.) Z) / n
  void add_gradient(const MatrixView<const Scalar>& z, const Scalar* norms, const MatrixView<const Scalar>& dy,
                    RowVector<Scalar>& gradient, Workspace& workspace) const {
    auto* sums = workspace.reserve<Scalar>(Workspace::Slot::output_factors, size());
    parallel_ranges(workspace.executor(), size(), 64, [&](Index begin, Index end, int /*worker*/) {
      for (Index j = begin; j < end; ++j) sums[j] = Scalar(0);
      for (Index i = 0; i < dy.rows; ++i)
        for (Index j = begin; j < end; ++j) sums[j] += dy(i, j) * z(i, j);
      for (Index j = begin; j < end; ++j) {
        if (has_direction(norms[j])) gradient[j] += sums[j] / norms[j];
      }
    });
  }

  RowVector<Scalar> magnitude_;
  std::vector<Scalar> squared_norms_;
};

}  // namespace lora
