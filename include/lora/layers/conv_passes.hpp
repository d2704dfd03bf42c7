// SPDX-License-Identifier: MIT
// Forward and backward of a convolution, with the adapters that share one pass over the unfolded input.
#pragma once

#include <algorithm>
#include <array>
#include <optional>

#include "lora/adapter/tape.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/convolution.hpp"
#include "lora/layers/conv_geometry.hpp"
#include "lora/layers/factor_pass.hpp"
#include "lora/layers/images.hpp"
#include "lora/layers/row_groups.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

namespace detail {

/// A weight as a matrix with contiguous rows: in place, or decoded into scratch.
template <class Scalar>
class DecodedWeight {
 public:
  DecodedWeight(const WeightRef<Scalar>& weight, Workspace& workspace)
      : view_(weight.dense_view()),
        memory_(workspace.matrix<Scalar>(needs_copy() ? weight.out_features() : 0, weight.in_features())) {
    if (memory_.rows == 0) return;
    weight.read(0, 0, static_cast<const MatrixView<Scalar>&>(memory_));
    view_ = memory_;
  }
  [[nodiscard]] const MatrixView<const Scalar>& view() const noexcept { return view_; }

 private:
  [[nodiscard]] bool needs_copy() const noexcept { return view_.data == nullptr || !view_.row_major(); }

  MatrixView<const Scalar> view_;
  ScratchMatrix<Scalar> memory_;
};

/// The factors of all parts, combined into those of one adapter: A (rank x fan_in) and s B (outputs x group rank),
/// where each group has the ranks of every part in that group. A single part's factors are used as they are.
template <class Scalar>
class ConvFactors {
 public:
  ConvFactors(const FactorPass<Scalar>& pass, Index groups, Index fan_in, Index outputs, Workspace& workspace)
      : groups_(groups),
        group_rank_(pass.rank / groups),
        a_memory_(workspace.matrix<Scalar>(pass.parts.size() > 1 ? pass.rank : 0, fan_in)),
        b_memory_(workspace.matrix<Scalar>(pass.parts.size() > 1 ? outputs : 0, group_rank_)),
        a_(a_memory_),
        b_(b_memory_) {
    if (pass.parts.size() == 1) {
      a_ = pass.parts.front().a;
      b_ = pass.parts.front().b;
      scale_ = pass.parts.front().scale;
    } else {
      stack(pass);
    }
  }

  [[nodiscard]] Index group_rank() const noexcept { return group_rank_; }
  [[nodiscard]] const MatrixView<const Scalar>& a() const noexcept { return a_; }
  [[nodiscard]] const MatrixView<const Scalar>& b() const noexcept { return b_; }
  [[nodiscard]] Scalar scale() const noexcept { return scale_; }

 private:
  void stack(const FactorPass<Scalar>& pass) {
    Index offset = 0;
    for (const FactorPart<Scalar>& part : pass.parts) {
      const Index own = part.b.cols;
      for (Index g = 0; g < groups_; ++g) {
        for (Index q = 0; q < own; ++q)
          std::copy_n(&part.a(g * own + q, 0), part.a.cols, &a_memory_(g * group_rank_ + offset + q, 0));
      }
      for (Index o = 0; o < part.b.rows; ++o)
        for (Index q = 0; q < own; ++q) b_memory_(o, offset + q) = part.scale * part.b(o, q);
      offset += own;
    }
  }

  Index groups_;
  Index group_rank_;
  ScratchMatrix<Scalar> a_memory_;
  ScratchMatrix<Scalar> b_memory_;
  MatrixView<const Scalar> a_;
  MatrixView<const Scalar> b_;
  Scalar scale_ = 1;
};

/// The rows of one part in the lines (rank x positions) of all parts: in place, or copied if other parts' rows are
/// between them.
template <class Scalar>
class PartLines {
 public:
  PartLines(const MatrixView<const Scalar>& lines, Index groups, Index group_rank, Index offset, Index own,
            Workspace& workspace)
      : memory_(workspace.matrix<Scalar>(groups > 1 && own < group_rank ? groups * own : 0, lines.cols)),
        view_(lines.middle_rows(offset, own)) {
    if (own == group_rank) view_ = lines;
    if (memory_.rows == 0) return;
    for (Index g = 0; g < groups; ++g) {
      for (Index q = 0; q < own; ++q)
        std::copy_n(&lines(g * group_rank + offset + q, 0), lines.cols, &memory_(g * own + q, 0));
    }
    view_ = memory_;
  }
  [[nodiscard]] const MatrixView<const Scalar>& view() const noexcept { return view_; }

 private:
  ScratchMatrix<Scalar> memory_;
  MatrixView<const Scalar> view_;
};

/// sums[o] += scale * the sum of value(n, o, p) over samples and positions, in a fixed order.
template <class Scalar, class Value>
void add_channel_sums(Index samples, Index channels, Index size, Scalar scale, Scalar* sums, Executor& executor,
                      const Value& value) {
  parallel_ranges(executor, channels, 8, [&](Index begin, Index end, int /*worker*/) {
    for (Index o = begin; o < end; ++o) {
      std::array<Scalar, 8> s{};  // independent sums, for instruction-level parallelism
      for (Index n = 0; n < samples; ++n)
        for (Index p = 0; p < size; ++p) s[static_cast<std::size_t>(p % 8)] += value(n, o * size + p);
      sums[o] += scale * (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
    }
  });
}

}  // namespace detail

/// Images of one batch: one sample per row, channels * positions columns.
template <class Scalar, int Dim>
struct ImageBatch {
  MatrixView<const Scalar> rows;
  ImageExtents<Dim> extents{};
};

/// Y = factors (.) (W * drop(X) + s B (A * drop(X))) + W * (X - drop(X)) + bias over images, where * convolves; over
/// the unfolded input these are the formulas of LinearPasses. U is rank x positions, where positions are numbered over
/// all samples.
///
/// A view of a layer's parts; const functions are reentrant and allocate only to grow the workspace. Pre: arguments
/// have been checked.
template <RealScalar ScalarType, int Dim>
class ConvPasses {
 public:
  using Scalar = ScalarType;
  using Batch = ImageBatch<Scalar, Dim>;
  static constexpr bool takes_dropout = true;
  static constexpr bool adds_terms = false;

  ConvPasses(const WeightRef<Scalar>& weight, const ConvGeometry<Dim>& geometry) noexcept
      : weight_(weight), geometry_(geometry) {}

  [[nodiscard]] static BatchShape shape(const Batch& x) noexcept {
    BatchShape batch{x.rows.rows, x.rows.cols};
    std::copy(x.extents.begin(), x.extents.end(), batch.extents.begin());
    return batch;
  }
  [[nodiscard]] static Batch middle_rows(const Batch& x, Index first, Index count) noexcept {
    return {x.rows.middle_rows(first, count), x.extents};
  }
  [[nodiscard]] MatrixShape down_shape(const BatchShape& batch, Index rank) const noexcept {
    return {rank, batch.rows * output_size(image_extents(batch))};
  }
  [[nodiscard]] MatrixShape unscaled_shape(const BatchShape& batch) const noexcept {
    return {batch.rows, geometry_.out_channels * output_size(image_extents(batch))};
  }
  [[nodiscard]] MatrixShape answer_shape(const BatchShape& batch) const noexcept { return unscaled_shape(batch); }
  [[nodiscard]] static ImageExtents<Dim> image_extents(const BatchShape& batch) noexcept {
    ImageExtents<Dim> extents{};
    std::copy_n(batch.extents.begin(), Dim, extents.begin());
    return extents;
  }

  template <class Body>
  static void with_gathered(const Batch& x, const RowGroups& groups, Workspace& workspace, const Body& body) {
    const auto rows = workspace.matrix<Scalar>(x.rows.rows, x.rows.cols);
    groups.gather<Scalar>(x.rows, rows);
    body(Batch{rows, x.extents});
  }

  void forward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<Scalar>& y, BaseProduct base,
               Workspace& workspace) const {
    // Without adds_terms there is nothing to add to a finished product.
    if (base == BaseProduct::write) convolve(x, pass, y, workspace);
  }

  void backward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dy,
                const MatrixView<Scalar>* dx, BaseProduct /*base*/, Workspace& workspace) const {
    const kernels::ConvShape shape = shape_of(x, pass.rank / geometry_.groups);
    const detail::ConvFactors<Scalar> factors(pass, geometry_.groups, geometry_.fan_in(), geometry_.out_channels,
                                              workspace);
    const auto v = workspace.matrix<Scalar>(shape.rank(), shape.positions());
    if (pass.factors != nullptr) {
      const Index size = output_size(x.extents);
      detail::add_channel_sums(dy.rows, geometry_.out_channels, size, Scalar(1), pass.sums, workspace.executor(),
                               [&](Index n, Index j) { return dy(n, j) * pass.z(n, j); });
    }
    if (!pass.parts.empty()) {
      kernels::project_outputs<Scalar>(shape, dy, factors.b(), factors.scale(), pass.factors, v, workspace);
      add_gradients(x, shape, pass, dy, v, workspace);
    }
    if (dx != nullptr) adjoin(x, pass, factors, dy, v, *dx, workspace);
  }

  void add_output_sums(const MatrixView<const Scalar>& dy, Scalar scale, Scalar* target, Workspace& workspace) const {
    detail::add_channel_sums(dy.rows, geometry_.out_channels, dy.cols / geometry_.out_channels, scale, target,
                             workspace.executor(), [&](Index n, Index j) { return dy(n, j); });
  }

 private:
  [[nodiscard]] Index output_size(const ImageExtents<Dim>& extents) const noexcept {
    return detail::saturated_product(1, unchecked_output_extents(geometry_, extents));
  }
  [[nodiscard]] kernels::ConvShape shape_of(const Batch& x, Index group_rank) const noexcept {
    return {image_walk(geometry_, x.extents, unchecked_output_extents(geometry_, x.extents)),
            x.rows.rows,
            geometry_.groups,
            geometry_.group_inputs(),
            geometry_.group_outputs(),
            group_rank};
  }

  void convolve(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<Scalar>& y,
                Workspace& workspace) const {
    const detail::DecodedWeight<Scalar> weight(weight_, workspace);
    const detail::ConvFactors<Scalar> factors(pass, geometry_.groups, geometry_.fan_in(), geometry_.out_channels,
                                              workspace);
    kernels::ConvCall<Scalar> call;
    call.shape = shape_of(x, factors.group_rank());
    call.x = x.rows;
    call.weight = weight.view();
    call.bias = pass.bias;
    call.factors = pass.factors;
    call.y = y;
    if (!pass.parts.empty()) {
      call.mask = pass.parts.front().mask;
      call.a = factors.a();
      call.b = factors.b();
      call.scale = factors.scale();
      call.u = pass.u;
      call.z = pass.z;
    }
    kernels::convolve(call, workspace);
  }

  void add_gradients(const Batch& x, const kernels::ConvShape& shape, const FactorPass<Scalar>& pass,
                     const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& v,
                     Workspace& workspace) const {
    const Index fan_in = shape.fan_in();
    Index offset = 0;
    for (const FactorPart<Scalar>& part : pass.parts) {
      const Index own = part.b.cols;
      const Index at = std::exchange(offset, offset + own);
      if (part.gradients == nullptr) continue;
      LoraGradients<Scalar>& gradients = *part.gradients;
      const detail::PartLines<Scalar> own_v(v, shape.groups, shape.group_rank, at, own, workspace);
      const kernels::LineProductCall<Scalar> for_a{shape.walk, shape.groups, fan_in,    own,    x.rows,
                                                   part.mask,  own_v.view(), Scalar(1), nullptr};
      kernels::add_line_products(for_a, workspace, [&](Index line, Index p, Scalar sum) {
        gradients.A(line / fan_in * own + p, line % fan_in) += sum;
      });
      const detail::PartLines<Scalar> own_u(pass.u, shape.groups, shape.group_rank, at, own, workspace);
      const kernels::LineProductCall<Scalar> for_b{shape.output_walk(), shape.groups, shape.group_outputs, own, dy, {},
                                                   own_u.view(),        part.scale,   pass.factors};
      kernels::add_line_products(for_b, workspace, [&](Index o, Index p, Scalar sum) { gradients.B(o, p) += sum; });
    }
  }

  void adjoin(const Batch& x, const FactorPass<Scalar>& pass, const detail::ConvFactors<Scalar>& factors,
              const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& v, const MatrixView<Scalar>& dx,
              Workspace& workspace) const {
    const detail::DecodedWeight<Scalar> weight(weight_, workspace);
    const DropoutMask<Scalar> mask = pass.parts.empty() ? DropoutMask<Scalar>{} : pass.parts.front().mask;
    const bool both = pass.factors != nullptr && mask.active();
    const auto less_one = workspace.row<Scalar>(both ? geometry_.out_channels : 0);
    if (both) {
      for (Index o = 0; o < geometry_.out_channels; ++o) less_one.data[o] = pass.factors[o] - Scalar(1);
    }
    const kernels::ConvAdjointCall<Scalar> call{
        shape_of(x, factors.group_rank()), dy, v, weight.view(), factors.a(), mask, both ? nullptr : pass.factors,
        both ? less_one.data : nullptr,    dx};
    kernels::convolve_adjoint(call, workspace);
  }

  WeightRef<Scalar> weight_;
  const ConvGeometry<Dim>& geometry_;
};

}  // namespace lora
