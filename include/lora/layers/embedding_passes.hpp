// SPDX-License-Identifier: MIT
// Forward and backward of an embedding: lookup of rows, and the same table as an output projection.
#pragma once

#include <algorithm>

#include "lora/adapter/tape.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/columns.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/layers/factor_pass.hpp"
#include "lora/layers/row_groups.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// Checked ids, one per row.
struct IdBatch {
  const Index* ids = nullptr;
  Index count = 0;
};

/// Lookups in a table W (V x D): U = A^T[ids] (N x r), Z = W[ids] + s U B^T, Y = Z, or factors (.) Z with DoRA;
/// dB = s dZ^T U; dA(:, ids_i) += s (dZ B)_i for every i in order, except for `padding_idx`. Ids have no gradient.
///
/// The weight is the transposed table, D x V. A view of a layer's parts; const functions are reentrant and allocate
/// only to grow the workspace. Results do not depend on the number of workers.
template <RealScalar ScalarType>
class EmbeddingPasses : public RowPasses<ScalarType> {
 public:
  using Scalar = ScalarType;
  using Batch = IdBatch;
  static constexpr bool takes_dropout = false;

  /// `padding_idx` is -1 if there is none.
  EmbeddingPasses(const WeightRef<Scalar>& weight, const OutputBlocks& blocks, Index padding_idx) noexcept
      : weight_(weight), blocks_(blocks), padding_idx_(padding_idx) {}

  /// Ids are no features: a tape of 0 inputs is never one of the projection.
  [[nodiscard]] static BatchShape shape(const Batch& x) noexcept { return {x.count, 0}; }
  [[nodiscard]] static Batch middle_rows(const Batch& x, Index first, Index count) noexcept {
    return {x.ids + first, count};
  }
  [[nodiscard]] MatrixShape unscaled_shape(const BatchShape& batch) const noexcept {
    return {batch.rows, blocks_.outputs};
  }
  [[nodiscard]] MatrixShape answer_shape(const BatchShape& batch) const noexcept { return unscaled_shape(batch); }

  template <class Body>
  static void with_gathered(const Batch& x, const RowGroups& groups, Workspace& workspace, const Body& body) {
    const auto ids = workspace.row<Index>(x.count);
    for (Index i = 0; i < x.count; ++i) ids.data[i] = x.ids[groups.row(i)];
    body(Batch{ids.data, x.count});
  }

  void forward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<Scalar>& y, BaseProduct base,
               Workspace& workspace) const {
    for (const FactorPart<Scalar>& part : pass.parts) take_columns(part, x, pass.u, workspace);
    const detail::UpTerms<Scalar> up(blocks_, pass, workspace);
    if (base == BaseProduct::keep) return up.add_to(y);
    const MatrixView<Scalar> z = pass.factors != nullptr && pass.z.data != nullptr ? pass.z : y;
    look_up(x, z, workspace);
    up.add_to(z);
    if (pass.factors == nullptr) return;
    kernels::scale_columns(MatrixView<const Scalar>(z), pass.factors, static_cast<const Scalar*>(nullptr), y,
                           workspace);
  }

  void backward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dy,
                const MatrixView<Scalar>* /*dx*/, BaseProduct /*base*/, Workspace& workspace) const {
    if (pass.parts.empty()) return;
    const auto scaled = workspace.matrix<Scalar>(pass.factors != nullptr ? dy.rows : 0, dy.cols);
    MatrixView<const Scalar> dz = dy;
    if (pass.factors != nullptr) {
      kernels::add_column_products(dy, MatrixView<const Scalar>(pass.z), pass.sums, workspace);
      kernels::scale_columns(dy, pass.factors, static_cast<const Scalar*>(nullptr),
                             static_cast<const MatrixView<Scalar>&>(scaled), workspace);
      dz = scaled;
    }
    const auto v = workspace.matrix<Scalar>(dz.rows, pass.rank);
    detail::project_outputs(blocks_, pass, dz, v, workspace);
    detail::add_up_gradients(blocks_, pass, dz, workspace);
    for (const FactorPart<Scalar>& part : pass.parts) {
      if (part.gradients != nullptr) add_to_columns(v, part, x, workspace.executor());
    }
  }

 private:
  // Y = W[ids]: row i is a column of the transposed table.
  void look_up(const Batch& x, const MatrixView<Scalar>& y, Workspace& workspace) const {
    parallel_ranges(workspace.executor(), y.rows, 16, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i) {
        weight_.read(0, x.ids[i], MatrixView<Scalar>{y.data + i * y.row_stride, y.cols, 1, 1, y.cols});
      }
    });
  }

  // The part's columns of U = A^T[ids].
  static void take_columns(const FactorPart<Scalar>& part, const Batch& x, const MatrixView<Scalar>& u,
                           Workspace& workspace) {
    parallel_ranges(workspace.executor(), u.rows, 16, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i)
        for (Index p = 0; p < part.a.rows; ++p) u(i, part.first + p) = part.a(p, x.ids[i]);
    });
  }

  // Workers share the ranks, so that every element sums over i in order.
  void add_to_columns(const MatrixView<Scalar>& v, const FactorPart<Scalar>& part, const Batch& x,
                      Executor& executor) const {
    Matrix<Scalar>& da = part.gradients->A;
    parallel_ranges(executor, part.a.rows, 1, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = 0; i < v.rows; ++i) {
        if (x.ids[i] == padding_idx_) continue;
        for (Index p = begin; p < end; ++p) da(p, x.ids[i]) += v(i, part.first + p);
      }
    });
  }

  WeightRef<Scalar> weight_;
  const OutputBlocks& blocks_;
  Index padding_idx_;
};

/// The table as output projection (tied embeddings): Y = X' (W + s A^T B^T)^T = X' W^T + (s X' B) A (N x V), with X' =
/// X, or factors (.) X with DoRA; dA = (s X' B)^T dY; dB = s X'^T (dY A^T); dX' = dY W + s (dY A^T) B^T; dX = dX', or
/// factors (.) dX'. U is s X' B, and Z keeps X.
///
/// Otherwise like EmbeddingPasses.
template <RealScalar ScalarType>
class TiedProjectionPasses : public RowPasses<ScalarType> {
 public:
  using Scalar = ScalarType;
  using Batch = MatrixView<const Scalar>;
  static constexpr bool takes_dropout = false;

  TiedProjectionPasses(const WeightRef<Scalar>& weight, const OutputBlocks& blocks, Index num_embeddings) noexcept
      : weight_(weight), blocks_(blocks), num_embeddings_(num_embeddings) {}

  [[nodiscard]] static BatchShape shape(const Batch& x) noexcept { return {x.rows, x.cols}; }
  [[nodiscard]] static MatrixShape unscaled_shape(const BatchShape& batch) noexcept {
    return {batch.rows, batch.inputs};
  }
  [[nodiscard]] MatrixShape answer_shape(const BatchShape& batch) const noexcept {
    return {batch.rows, num_embeddings_};
  }

  void forward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<Scalar>& y, BaseProduct base,
               Workspace& workspace) const {
    const auto scaled = workspace.matrix<Scalar>(pass.factors != nullptr ? x.rows : 0, x.cols);
    const Batch input = scaled_input(x, pass, scaled, workspace);
    if (pass.factors != nullptr && pass.z.data != nullptr) copy_elements(x, pass.z);
    detail::project_outputs(blocks_, pass, input, pass.u, workspace);
    const detail::StackedDownFactors<Scalar> down(pass, workspace);
    if (base == BaseProduct::keep) {
      if (!pass.parts.empty()) {
        kernels::add_low_rank(MatrixView<const Scalar>(pass.u), down.view(), y, workspace);
      }
      return;
    }
    const LowRankTerm<Scalar> term =
        pass.parts.empty() ? LowRankTerm<Scalar>{} : LowRankTerm<Scalar>{pass.u, down.view()};
    weight_.product_transposed(input, term, y, workspace);
  }

  void backward(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dy,
                const MatrixView<Scalar>* dx, BaseProduct base, Workspace& workspace) const {
    const auto scaled = workspace.matrix<Scalar>(pass.factors != nullptr ? x.rows : 0, x.cols);
    const Batch input = scaled_input(x, pass, scaled, workspace);
    const auto v = workspace.matrix<Scalar>(dy.rows, pass.rank);
    for (const FactorPart<Scalar>& part : pass.parts) {
      kernels::project_down(dy, DropoutMask<Scalar>{}, part.a, Scalar(1), v.middle_cols(part.first, part.a.rows),
                            workspace);
      if (part.gradients == nullptr) continue;
      kernels::add_outer(MatrixView<const Scalar>(pass.u).middle_cols(part.first, part.a.rows), dy,
                         DropoutMask<Scalar>{}, Scalar(1), view_of(part.gradients->A), workspace);
      add_b_gradient(part, v, input, workspace);
    }
    if (dx == nullptr && pass.factors == nullptr) return;
    const auto own = workspace.matrix<Scalar>(dx == nullptr || base == BaseProduct::keep ? x.rows : 0, x.cols);
    const MatrixView<Scalar> target = own.rows > 0 || dx == nullptr ? static_cast<const MatrixView<Scalar>&>(own) : *dx;
    FactorPass<Scalar> back = pass;
    back.u = v;
    const detail::UpTerms<Scalar> up(blocks_, back, workspace);
    if (base == BaseProduct::keep) {
      std::fill_n(target.data, target.rows * target.cols, Scalar(0));
      up.add_to(target);
      if (dx != nullptr) detail::add_rows(MatrixView<const Scalar>(target), Scalar(1), *dx);
      return;
    }
    up.multiply(weight_, dy, nullptr, target);
    if (pass.factors == nullptr) return;
    kernels::add_column_products(MatrixView<const Scalar>(target), x, pass.sums, workspace);
    if (dx == nullptr) return;
    kernels::scale_columns(MatrixView<const Scalar>(target), pass.factors, static_cast<const Scalar*>(nullptr), *dx,
                           workspace);
  }

 private:
  static Batch scaled_input(const Batch& x, const FactorPass<Scalar>& pass, const MatrixView<Scalar>& memory,
                            Workspace& workspace) {
    if (pass.factors == nullptr) return x;
    kernels::scale_columns(x, pass.factors, static_cast<const Scalar*>(nullptr), memory, workspace);
    return memory;
  }
  // dB(j, p) += s times the sum over rows i of V(i, p) X'(i, j)
  static void add_b_gradient(const FactorPart<Scalar>& part, const MatrixView<Scalar>& v, const Batch& input,
                             Workspace& workspace) {
    const auto db = workspace.matrix<Scalar>(part.b.cols, part.b.rows);
    std::fill_n(db.data, db.rows * db.cols, Scalar(0));
    kernels::add_outer(MatrixView<const Scalar>(v).middle_cols(part.first, part.a.rows), input, DropoutMask<Scalar>{},
                       part.scale, static_cast<const MatrixView<Scalar>&>(db), workspace);
    detail::add_rows(MatrixView<const Scalar>(db).transpose(), Scalar(1), view_of(part.gradients->B));
  }

  WeightRef<Scalar> weight_;
  const OutputBlocks& blocks_;
  Index num_embeddings_;
};

}  // namespace lora
