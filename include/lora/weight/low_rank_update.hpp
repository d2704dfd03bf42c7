// SPDX-License-Identifier: MIT
// The update s*B*A of a frozen weight, computed piece by piece.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "lora/core/floating_point.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/kernels/delta.hpp"
#include "lora/kernels/fused_update.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// The factors of a low-rank update: delta(i, j) = sum over p, in order, of round(scale * B(i, p)) * A(p, j).
template <class Scalar>
struct LowRankUpdate {
  MatrixView<const Scalar> a;  ///< rank x in_features
  MatrixView<const Scalar> b;  ///< out_features x rank
  Scalar scale = 1;            ///< s
};

/// A low-rank update of a given weight, computed piece by piece and never held whole. Owns scaled copies of the factors
/// in the layout that the weight's tiles need: rank * (in_features + out_features) scalars, plus padding.
template <RealScalar Scalar>
class DeltaSource {
 public:
  DeltaSource() = default;

  /// `lines_are_outputs` has the meaning it has in the weight's tiles. @throws std::bad_alloc
  DeltaSource(const LowRankUpdate<Scalar>& update, bool lines_are_outputs)
      : kernel_(kernels::delta_kernel<Scalar>()),
        fused_(kernels::fused_kernel<Scalar>()),
        rank_(update.a.rows),
        factor_stride_(spread_stride(lines_are_outputs ? update.a.cols : update.b.rows)) {
    const auto at = lines_are_outputs ? update.b : update.a.transpose();     // indexed by line, p
    const auto along = lines_are_outputs ? update.a : update.b.transpose();  // indexed by p, position
    const Scalar line_scale = lines_are_outputs ? update.scale : Scalar(1);
    const Scalar position_scale = lines_are_outputs ? Scalar(1) : update.scale;
    fill(coefficients_, line_scale, at, rank_);
    fill(factor_, position_scale, along, factor_stride_);
  }

  /// The update of `lines` lines from `first_line` and `length` positions from `first_position`, contiguous in `out`.
  void evaluate(Index first_line, Index lines, Index first_position, Index length, Scalar* out) const noexcept {
    if (rank_ == 0) {
      std::fill_n(out, lines * length, Scalar(0));
      return;
    }
    kernel_(coefficients_.data() + first_line * rank_, lines, factor_.data() + first_position, factor_stride_, rank_,
            length, out);
  }

  /// Adds the update to a piece of the weight, or removes it again; see kernels::FusedKernel.
  kernels::ExactUpdate update(kernels::UpdateStep step, const WeightTile<Scalar>& piece, std::int8_t* codes,
                              Scalar* originals) const noexcept {
    return fused_({.coefficients = coefficients_.data() + piece.first_line * rank_,
                   .factor = factor_.data() + piece.first_position,
                   .factor_stride = factor_stride_,
                   .rank = rank_,
                   .weights = piece.data,
                   .line_stride = piece.line_stride,
                   .lines = piece.lines,
                   .length = piece.length},
                  step, codes, originals);
  }

  /// Bytes of the copies of the factors.
  [[nodiscard]] std::size_t bytes() const noexcept { return (coefficients_.size() + factor_.size()) * sizeof(Scalar); }

 private:
  /// A multiple of eight cache lines, plus three. A tile reads a few lines of every row: with rows of 4096 floats all
  /// of these would fall into the same sets of the first-level cache, which hold only 8 or 12 lines each.
  static Index spread_stride(Index positions) {
    constexpr auto line = static_cast<Index>(64 / sizeof(Scalar));
    return positions % (8 * line) == 0 ? positions + 3 * line : positions;
  }

  static void fill(std::vector<Scalar>& target, Scalar scale, const MatrixView<const Scalar>& source, Index stride) {
    if (source.rows * source.cols == 0) return;
    target.resize(static_cast<std::size_t>(source.rows * stride));
    copy_elements<Scalar>(source, {target.data(), source.rows, source.cols, stride, 1});
    if (scale == 1) return;
    for (Scalar& element : target) element *= scale;
  }

  // Merge and unmerge may be compiled with different options; the kernel that merged is the one that unmerges.
  kernels::DeltaKernel<Scalar> kernel_ = nullptr;
  kernels::FusedKernel<Scalar> fused_ = nullptr;
  Index rank_ = 0;
  Index factor_stride_ = 0;
  std::vector<Scalar> coefficients_;
  std::vector<Scalar> factor_;
};

/// The whole update as a matrix, into `out` (out_features x in_features, any strides): what merging adds, bit for bit.
/// @throws std::bad_alloc
template <RealScalar Scalar>
void write_delta(const LowRankUpdate<Scalar>& update, const MatrixView<Scalar>& out) {
  const DefaultFloatingPoint environment;
  const DeltaSource<Scalar> delta(update, true);
  if (out.row_major() && out.row_stride == out.cols) return delta.evaluate(0, out.rows, 0, out.cols, out.data);
  std::vector<Scalar> line(static_cast<std::size_t>(out.cols));
  for (Index i = 0; i < out.rows; ++i) {
    delta.evaluate(i, 1, 0, out.cols, line.data());
    for (Index j = 0; j < out.cols; ++j) out(i, j) = line[static_cast<std::size_t>(j)];
  }
}

}  // namespace lora
