// The passes of an embedding layer over its parts: lookup of rows, and the same table as an output projection.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/dora.hpp"
#include "lora/adapter/gradients.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/adapter/record.hpp"
#include "lora/core/random.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/layers/embedding_ids.hpp"
#include "lora/weight/dense.hpp"

namespace lora {

/// The starting values of an embedding's factors: A (rank x num_embeddings) zero and B (embedding_dim x rank) N(0, 1);
/// with InitLoraWeights::random both N(0, 1). The same seed gives the same bits on every platform.
/// Source: PEFT's reset_lora_parameters. @throws std::bad_alloc
template <RealScalar Scalar>
[[nodiscard]] LoraFactors<Scalar> embedding_factors(const LoraConfig& config, Index num_embeddings, Index embedding_dim,
                                                    std::uint64_t seed) {
  LoraFactors<Scalar> factors{Matrix<Scalar>::Zero(config.rank, num_embeddings),
                              Matrix<Scalar>(embedding_dim, config.rank)};
  if (config.init_lora_weights == InitLoraWeights::random) {
    fill_normal(view_of(factors.A), 1.0, RandomStream(seed, detail::stream_of_A));
  }
  fill_normal(view_of(factors.B), 1.0, RandomStream(seed, detail::stream_of_B));
  return factors;
}

/// What one forward pass of the output projection leaves for its backward pass: s X' B (N x rank), where X' is X, or
/// X (.) m/n with DoRA, which adds X and the norms.
template <RealScalar Scalar>
struct ProjectionRecord {
  LoraRecord<Scalar> pass;

  /// Rows of the batch of the last forward pass; -1 before the first.
  [[nodiscard]] Index rows() const noexcept { return pass.rows(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return pass.bytes(); }
};

/// The arithmetic of LoraEmbedding, with V = num_embeddings, D = embedding_dim, r = rank:
///
/// - lookup: U = A^T[ids] (N x r), Z = W[ids] + s U B^T (N x D), Y = Z, or Z (.) m/n with DoRA;
///   dZ = dY, or dY (.) m/n; dB = s dZ^T U; dA(:, ids_i) += s (dZ B)_i for every i in order, but not for padding_idx;
/// - projection: Y = X' (W + s A^T B^T)^T = X' W^T + (s X' B) A (N x V), with X' = X, or X (.) m/n;
///   dA = (s X' B)^T dY; dB = s X'^T (dY A^T); dX' = dY W + s (dY A^T) B^T; dX = dX', or dX' (.) m/n.
///
/// Arguments have been checked. Reentrant; allocates only to grow the record and the workspace. Results do not depend
/// on the number of workers.
template <RealScalar Scalar>
class EmbeddingPasses {
 public:
  /// `table` is W (V x D), rows contiguous. `padding_idx` is -1 where there is none. All of it outlives this object.
  EmbeddingPasses(const MatrixView<const Scalar>& table, const LoraAdapter<Scalar>& adapter,
                  const DoraMagnitude<Scalar>& dora, Index padding_idx) noexcept
      : table_(table), adapter_(adapter), dora_(dora), padding_idx_(padding_idx) {}

  /// Y = W[ids].
  template <class Id>
  void look_up(const IdView<Id>& ids, const MatrixView<Scalar>& y, Workspace& workspace) const {
    parallel_ranges(workspace.executor(), y.rows, 16, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i) {
        const Scalar* row = table_.data + ids[i] * table_.row_stride;
        std::copy(row, row + table_.cols, y.data + i * y.row_stride);
      }
    });
  }

  /// Y of the adapted lookup.
  template <class Id>
  void infer(const IdView<Id>& ids, const MatrixView<Scalar>& y, Workspace& workspace) const {
    look_up(ids, y, workspace);
    if (rank() == 0) return;
    const auto u = rank_columns(workspace, y.rows);
    gather(ids, u, workspace);
    add_adapter(u, y, workspace);
    if (!dora_.active()) return;
    const auto factors = dora_.factors(linear_weight(), adapter_.update(), workspace);
    multiply_columns(y, factors.data(), y, workspace);
  }

  /// The same, filling `record` for backward().
  template <class Id>
  void forward(const IdView<Id>& ids, LoraRecord<Scalar>& record, const MatrixView<Scalar>& y,
               Workspace& workspace) const {
    record.clear();
    const auto u = record.prepare(y.rows, rank());
    gather(ids, u, workspace);
    if (!dora_.active()) {
      look_up(ids, y, workspace);
      return add_adapter(u, y, workspace);
    }
    const auto [z, norms] = record.prepare_outputs(dim());
    dora_.row_norms(linear_weight(), adapter_.update(), norms, workspace);
    look_up(ids, z, workspace);
    add_adapter(u, z, workspace);
    multiply_columns(z, factors_of(norms, workspace), y, workspace);
    record.keep_outputs(dim());
  }

  template <class Id>
  void backward(const IdView<Id>& ids, const LoraRecord<Scalar>& record, const MatrixView<const Scalar>& dy,
                LoraGradients<Scalar>& gradients, Workspace& workspace) const {
    if (rank() == 0) return;
    const auto dz = dora_.active() ? dora_.backward(record, dy, gradients.magnitude, workspace) : dy;
    const auto v = rank_columns(workspace, dy.rows);
    Executor& executor = workspace.executor();
    kernels::project_down(dz, DropoutMask<Scalar>{}, scaled_b_transposed(workspace), Scalar(1), v, executor);
    scatter(v, ids, gradients.A, executor);
    add_b_gradient(record.down_projection(), dz, nullptr, gradients.B, workspace);
  }

  /// Y = X W^T.
  void project_plain(const MatrixView<const Scalar>& x, const MatrixView<Scalar>& y, Workspace& workspace) const {
    DenseWeight<Scalar>(table_).product(x, nullptr, {}, y, workspace);
  }

  /// Y of the adapted projection.
  void project(const MatrixView<const Scalar>& x, const MatrixView<Scalar>& y, Workspace& workspace) const {
    if (rank() == 0) return project_plain(x, y, workspace);
    const Scalar* factors = nullptr;
    if (dora_.active()) factors = dora_.factors(linear_weight(), adapter_.update(), workspace).data();
    project_onto(x, factors, rank_columns(workspace, x.rows), y, workspace);
  }

  /// The same, filling `record` for project_backward().
  void project_forward(const MatrixView<const Scalar>& x, ProjectionRecord<Scalar>& record, const MatrixView<Scalar>& y,
                       Workspace& workspace) const {
    record.pass.clear();
    const auto u = record.pass.prepare(x.rows, rank());
    if (rank() == 0) return project_plain(x, y, workspace);
    if (!dora_.active()) return project_onto(x, nullptr, u, y, workspace);
    const auto [kept_x, norms] = record.pass.prepare_outputs(dim());
    dora_.row_norms(linear_weight(), adapter_.update(), norms, workspace);
    kept_x.map() = x.map();
    project_onto(x, factors_of(norms, workspace), u, y, workspace);
    record.pass.keep_outputs(dim());
  }

  /// `dx` may be null.
  void project_backward(const MatrixView<const Scalar>& x, const ProjectionRecord<Scalar>& record,
                        const MatrixView<const Scalar>& dy, LoraGradients<Scalar>& gradients,
                        const MatrixView<Scalar>* dx, Workspace& workspace) const {
    const DenseWeight<Scalar> weight(table_);
    if (rank() == 0) {
      if (dx != nullptr) weight.product_transposed(dy, {}, *dx, workspace);
      return;
    }
    Executor& executor = workspace.executor();
    const auto v = rank_columns(workspace, dy.rows);
    kernels::project_down(dy, DropoutMask<Scalar>{}, view_of(adapter_.A()), Scalar(1), v, executor);
    kernels::add_outer(record.pass.down_projection(), dy, DropoutMask<Scalar>{}, Scalar(1), view_of(gradients.A),
                       executor);
    const auto term = [&]() -> LowRankTerm<Scalar> { return {v, scaled_b_transposed(workspace)}; };
    if (!dora_.active()) {
      add_b_gradient(v, x, nullptr, gradients.B, workspace);
      if (dx != nullptr) weight.product_transposed(dy, term(), *dx, workspace);
      return;
    }
    add_b_gradient(v, x, factors_of(record.pass.row_norms(), workspace), gradients.B, workspace);
    const auto scaled = scaled_input(dy.rows, workspace);
    weight.product_transposed(dy, term(), scaled, workspace);
    const auto unscaled = dora_.backward(record.pass, scaled, gradients.magnitude, workspace);
    if (dx != nullptr) dx->map() = unscaled.map();
  }

 private:
  [[nodiscard]] Index rank() const noexcept { return adapter_.rank(); }
  [[nodiscard]] Index dim() const noexcept { return table_.cols; }

  // The table as the weight that s*B*A updates, D x V.
  [[nodiscard]] DenseWeight<Scalar> linear_weight() const { return DenseWeight<Scalar>(table_.transpose()); }

  [[nodiscard]] MatrixView<Scalar> rank_columns(Workspace& workspace, Index rows) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::down_projection, rows * rank());
    return {memory, rows, rank(), rank(), 1};
  }

  [[nodiscard]] MatrixView<Scalar> scaled_input(Index rows, Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::masked_input, rows * dim());
    return {memory, rows, dim(), dim(), 1};
  }

  [[nodiscard]] MatrixView<const Scalar> scaled_b_transposed(Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::up_factor, rank() * dim());
    const MatrixView<Scalar> transposed{memory, rank(), dim(), dim(), 1};
    kernels::transpose_scaled<Scalar>(view_of(adapter_.B()), adapter_.scaling(), memory);
    return transposed;
  }

  // m/n, or 1 where there is no norm to divide by: the rule of DoraMagnitude.
  [[nodiscard]] const Scalar* factors_of(const Scalar* norms, Workspace& workspace) const {
    auto* factors = workspace.reserve<Scalar>(Workspace::Slot::output_factors, dim());
    const auto& m = dora_.value();
    for (Index j = 0; j < dim(); ++j) {
      factors[j] = norms[j] >= std::numeric_limits<Scalar>::min() ? m[j] / norms[j] : Scalar(1);
    }
    return factors;
  }

  template <class Element>
  static void multiply_columns(const MatrixView<Element>& x, const Scalar* factors, const MatrixView<Scalar>& y,
                               Workspace& workspace) {
    parallel_ranges(workspace.executor(), y.rows, 4, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i)
        for (Index j = 0; j < y.cols; ++j) y(i, j) = factors[j] * x(i, j);
    });
  }

  // U = A^T[ids], a rank at a time, because a row of A is contiguous.
  template <class Id>
  void gather(const IdView<Id>& ids, const MatrixView<Scalar>& u, Workspace& workspace) const {
    const Matrix<Scalar>& a = adapter_.A();
    parallel_ranges(workspace.executor(), u.rows, 16, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i)
        for (Index p = 0; p < u.cols; ++p) u(i, p) = a(p, ids[i]);
    });
  }

  // Workers share the ranks, so that every element sums over i in order.
  template <class Id>
  void scatter(const MatrixView<const Scalar>& v, const IdView<Id>& ids, Matrix<Scalar>& da, Executor& executor) const {
    parallel_ranges(executor, v.cols, 1, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = 0; i < v.rows; ++i) {
        const Index id = ids[i];
        if (id == padding_idx_) continue;
        for (Index p = begin; p < end; ++p) da(p, id) += v(i, p);
      }
    });
  }

  void add_adapter(const MatrixView<const Scalar>& u, const MatrixView<Scalar>& y, Workspace& workspace) const {
    if (rank() == 0) return;
    kernels::add_project_up(u, scaled_b_transposed(workspace), DropoutMask<Scalar>{}, y, workspace.executor());
  }

  // dB(j, p) += s f_j (sum over rows of w(i, p) x(i, j)), f = 1 where `factors` is null.
  void add_b_gradient(const MatrixView<const Scalar>& w, const MatrixView<const Scalar>& x, const Scalar* factors,
                      Matrix<Scalar>& db, Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::factor_gradient, rank() * dim());
    const MatrixView<Scalar> transposed{memory, rank(), dim(), dim(), 1};
    transposed.map().setZero();
    kernels::add_outer(w, x, DropoutMask<Scalar>{}, adapter_.scaling(), transposed, workspace.executor());
    for (Index j = 0; j < dim(); ++j) {
      const Scalar factor = factors != nullptr ? factors[j] : Scalar(1);
      for (Index p = 0; p < rank(); ++p) db(j, p) += factor * transposed(p, j);
    }
  }

  // u = s X' B, then Y = X' W^T + u A.
  void project_onto(const MatrixView<const Scalar>& x, const Scalar* factors, const MatrixView<Scalar>& u,
                    const MatrixView<Scalar>& y, Workspace& workspace) const {
    MatrixView<const Scalar> input = x;
    if (factors != nullptr) {
      const auto scaled = scaled_input(x.rows, workspace);
      multiply_columns(x, factors, scaled, workspace);
      input = scaled;
    }
    kernels::project_down(input, DropoutMask<Scalar>{}, scaled_b_transposed(workspace), Scalar(1), u,
                          workspace.executor());
    DenseWeight<Scalar>(table_).product(input, nullptr, {u, view_of(adapter_.A())}, y, workspace);
  }

  MatrixView<const Scalar> table_;
  const LoraAdapter<Scalar>& adapter_;
  const DoraMagnitude<Scalar>& dora_;
  Index padding_idx_;
};

}  // namespace lora
