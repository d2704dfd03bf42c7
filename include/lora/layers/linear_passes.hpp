// SPDX-License-Identifier: MIT
// Forward and backward of a linear layer over rows, with the adapters that share one product.
#pragma once

#include <algorithm>

#include "lora/adapter/qalora.hpp"
#include "lora/adapter/tape.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/columns.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/layers/factor_pass.hpp"
#include "lora/layers/row_groups.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// With U = drop(X) A^T (N x r):
///   forward:  Y = X W^T + bias + (s U) B^T;
///   backward: V = s dY B, dA += V^T drop(X), dB += s dY^T U, dX = dY W + drop'(V A).
/// With DoRA Z = drop(X) W^T + (s U) B^T, Y = factors (.) Z + (X - drop(X)) W^T + bias, and dZ = factors (.) dY
/// replaces dY except in the part of dX without dropout. If the adapter adapts only some blocks of the outputs, the
/// others are those of the frozen layer, bit for bit.
///
/// A view of a layer's parts; const functions are reentrant and allocate only to grow the workspace. Pre: arguments
/// have been checked.
template <RealScalar ScalarType>
class LinearPasses : public RowPasses<ScalarType> {
 public:
  using Scalar = ScalarType;
  using Batch = MatrixView<const Scalar>;
  static constexpr bool takes_dropout = true;

  LinearPasses(const WeightRef<Scalar>& weight, const OutputBlocks& blocks) noexcept
      : weight_(weight), blocks_(blocks) {}

  [[nodiscard]] static BatchShape shape(const Batch& x) noexcept { return {x.rows, x.cols}; }
  [[nodiscard]] static Batch middle_rows(const Batch& x, Index first, Index count) noexcept {
    return x.middle_rows(first, count);
  }
  [[nodiscard]] MatrixShape unscaled_shape(const BatchShape& batch) const noexcept {
    return {batch.rows, blocks_.outputs};
  }
  [[nodiscard]] MatrixShape answer_shape(const BatchShape& batch) const noexcept { return unscaled_shape(batch); }

  /// Calls body with the rows of a batch in the order of their groups.
  template <class Body>
  static void with_gathered(const Batch& x, const RowGroups& groups, Workspace& workspace, const Body& body) {
    const auto rows = workspace.matrix<Scalar>(x.rows, x.cols);
    groups.gather<Scalar>(x, rows);
    body(Batch(rows));
  }

  void forward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<Scalar>& y, BaseProduct base,
               Workspace& workspace) const {
    for (const FactorPart<Scalar>& part : pass.parts) {
      kernels::project_down(x, part.mask, part.a, Scalar(1), pass.u.middle_cols(part.first, part.a.rows), workspace);
    }
    const detail::UpTerms<Scalar> up(blocks_, pass, workspace);
    if (base == BaseProduct::keep) return up.add_to(y);
    if (pass.factors == nullptr) return up.multiply(weight_, x, pass.bias, y);
    const MatrixView<Scalar> z = pass.z.data != nullptr ? pass.z : y;
    if (!pass.any_mask()) {
      up.multiply(weight_, x, nullptr, z);
      kernels::scale_columns(MatrixView<const Scalar>(z), pass.factors, pass.bias, y, workspace);
      return;
    }
    const auto part = workspace.matrix<Scalar>(x.rows, x.cols);
    const DropoutMask<Scalar>& mask = pass.parts.front().mask;
    kernels::keep_inputs(x, mask, static_cast<const MatrixView<Scalar>&>(part), workspace);
    up.multiply(weight_, part, nullptr, z);
    kernels::rest_inputs(x, mask, static_cast<const MatrixView<Scalar>&>(part), workspace);
    weight_.product(part, pass.bias, {}, y, workspace);
    kernels::add_scaled_columns(MatrixView<const Scalar>(z), pass.factors, y, workspace);
  }

  /// Writes dX, or with BaseProduct::keep adds to it, unless `dx` is null.
  void backward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dy,
                const MatrixView<Scalar>* dx, BaseProduct base, Workspace& workspace) const {
    if (pass.factors == nullptr) return differentiate(x, pass, dy, dy, dx, base, workspace);
    kernels::add_column_products(dy, MatrixView<const Scalar>(pass.z), pass.sums, workspace);
    const auto dz = workspace.matrix<Scalar>(dy.rows, dy.cols);
    kernels::scale_columns(dy, pass.factors, static_cast<const Scalar*>(nullptr),
                           static_cast<const MatrixView<Scalar>&>(dz), workspace);
    differentiate(x, pass, dy, dz, dx, base, workspace);
  }

 private:
  void differentiate(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dy,
                     const MatrixView<const Scalar>& dz, const MatrixView<Scalar>* dx, BaseProduct base,
                     Workspace& workspace) const {
    const auto v = workspace.matrix<Scalar>(dz.rows, pass.rank);
    detail::project_outputs(blocks_, pass, dz, static_cast<const MatrixView<Scalar>&>(v), workspace);
    detail::add_up_gradients(blocks_, pass, dz, workspace);
    for (const FactorPart<Scalar>& part : pass.parts) {
      if (part.gradients == nullptr) continue;
      add_down_gradient(part, MatrixView<const Scalar>(v).middle_cols(part.first, part.a.rows), x, workspace);
    }
    if (dx != nullptr) input_gradient(pass, dy, dz, v, *dx, base, workspace);
  }

  // dA += V^T drop(X); with QALoRA d(A P) = V^T drop(X), and dA += d(A P) P^T.
  static void add_down_gradient(const FactorPart<Scalar>& part, const MatrixView<const Scalar>& v, const Batch& x,
                                Workspace& workspace) {
    const MatrixView<Scalar> da = view_of(part.gradients->A);
    if (part.group == 0) return kernels::add_outer(v, x, part.mask, Scalar(1), da, workspace);
    const auto wide = workspace.matrix<Scalar>(part.a.rows, part.a.cols);
    std::fill_n(wide.data, wide.rows * wide.cols, Scalar(0));
    kernels::add_outer(v, x, part.mask, Scalar(1), static_cast<const MatrixView<Scalar>&>(wide), workspace);
    add_narrowed_gradient<Scalar>(wide, part.group, da);
  }

  void input_gradient(const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dy,
                      const MatrixView<const Scalar>& dz, const MatrixView<const Scalar>& v,
                      const MatrixView<Scalar>& dx, BaseProduct base, Workspace& workspace) const {
    if (base == BaseProduct::keep) return add_terms(pass, v, dx, workspace);
    if (!pass.any_mask()) {
      const detail::StackedDownFactors<Scalar> down(pass, workspace);
      const LowRankTerm<Scalar> term = pass.parts.empty() ? LowRankTerm<Scalar>{} : LowRankTerm<Scalar>{v, down.view()};
      weight_.product_transposed(dz, term, dx, workspace);
      return;
    }
    weight_.product_transposed(dy, {}, dx, workspace);
    if (pass.factors == nullptr) return add_terms(pass, v, dx, workspace);
    // drop'((dZ - dY) W + V A), for the single adapter with DoRA.
    const auto rest = workspace.matrix<Scalar>(dy.rows, dy.cols);
    for (Index i = 0; i < dy.rows; ++i)
      for (Index j = 0; j < dy.cols; ++j) rest(i, j) = dz(i, j) - dy(i, j);
    const auto part = workspace.matrix<Scalar>(dx.rows, dx.cols);
    const detail::StackedDownFactors<Scalar> down(pass, workspace);
    weight_.product_transposed(rest, {v, down.view()}, part, workspace);
    kernels::keep_inputs(MatrixView<const Scalar>(part), pass.parts.front().mask,
                         static_cast<const MatrixView<Scalar>&>(part), workspace);
    detail::add_rows(MatrixView<const Scalar>(part), Scalar(1), dx);
  }

  static void add_terms(const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& v, const MatrixView<Scalar>& dx,
                        Workspace& workspace) {
    for (const FactorPart<Scalar>& part : pass.parts) {
      kernels::add_project_up(v.middle_cols(part.first, part.a.rows), part.a, part.mask, dx, workspace);
    }
  }

  WeightRef<Scalar> weight_;
  const OutputBlocks& blocks_;
};

}  // namespace lora
