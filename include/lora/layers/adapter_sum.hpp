// What several adapters together contribute to the passes of one layer.
#pragma once

#include <algorithm>
#include <span>

#include "lora/core/workspace.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/layers/adapter_slot.hpp"
#include "lora/layers/multi_record.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// The sum of s_i drop_i(X) A_i^T B_i^T over those of the chosen adapters that are not merged and have no DoRA, or over
/// one that has it, as one low-rank term of rank R = sum of r_i: U = [drop_1(X) A_1^T, drop_2(X) A_2^T, ...] (N x R)
/// times F, the s_i B_i^T one under the other (R x out_features), so that all of them ride along in the product with
/// the weight. A view; const functions are reentrant and allocate only to grow records and the workspace.
template <RealScalar Scalar>
class AdapterSum {
 public:
  using Slot = AdapterSlot<Scalar>;

  /// Views both, which outlive it. `chosen` holds positions in `slots`.
  AdapterSum(const AdapterSlots<Scalar>& slots, std::span<const Index> chosen) noexcept
      : AdapterSum(slots, chosen, 0, chosen.size(), false) {}
  /// The sum of nothing but the i-th of the chosen ones, which has DoRA and is not merged.
  [[nodiscard]] static AdapterSum of_dora(const AdapterSlots<Scalar>& slots, std::span<const Index> chosen,
                                          std::size_t i) noexcept {
    return AdapterSum(slots, chosen, i, i + 1, true);
  }

  /// Adapters that take part.
  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  [[nodiscard]] Index rank() const noexcept { return rank_; }

  /// Calls body(slot, i) for the adapters that take part, each the i-th of the chosen ones.
  template <class Body>
  void for_each(const Body& body) const {
    for (std::size_t i = begin_; i < end_; ++i) {
      const Slot& slot = (*slots_)[chosen_[i]];
      if (!slot.merged() && slot.dora().active() == dora_) body(slot, i);
    }
  }

  /// Without dropout: U in the workspace, and F.
  [[nodiscard]] LowRankTerm<Scalar> infer(const MatrixView<const Scalar>& x, Workspace& workspace) const {
    if (count_ == 0) return {};
    const auto u = projections(x.rows, workspace);
    for_each_part([&](const Slot& slot, std::size_t, Index first) {
      kernels::project_down(x, DropoutMask<Scalar>{}, view_of(slot.adapter().A()), Scalar(1),
                            u.middle_cols(first, slot.rank()), workspace.executor());
    });
    return {u, up_factors(workspace)};
  }

  /// In training: draws the dropout bits and the parts of U into the record, which has room for all the chosen ones.
  [[nodiscard]] LowRankTerm<Scalar> forward(const MatrixView<const Scalar>& x, MultiLoraRecord<Scalar>& record,
                                            Workspace& workspace) const {
    for_each([&](const Slot& slot, std::size_t i) {
      const auto& adapter = slot.adapter();
      LoraRecord<Scalar>& own = record.start(i, slot.id());
      if (const double dropout = adapter.config().dropout; dropout > 0) {
        own.dropout_bits().draw(dropout, adapter.seed(), own.position, x.rows, x.cols, workspace.executor());
      }
      kernels::project_down(x, adapter.mask(own), view_of(adapter.A()), Scalar(1), own.prepare(x.rows, slot.rank()),
                            workspace.executor());
    });
    if (count_ == 0) return {};
    return {collected(record, x.rows, workspace), up_factors(workspace)};
  }

  /// The backward pass up to the factors, into the gradients that gradients_of(i) names: dB_i += s_i dY^T U_i, dA_i +=
  /// V_i^T drop_i(X), dlora_bias_i += s_i sum(dY). Returns V = dY F^T (N x R) in the workspace. count() > 0.
  template <class GradientsOf>
  [[nodiscard]] MatrixView<const Scalar> backward(const MatrixView<const Scalar>& x,
                                                  const MultiLoraRecord<Scalar>& record,
                                                  const MatrixView<const Scalar>& dy, const GradientsOf& gradients_of,
                                                  Workspace& workspace) const {
    Executor& executor = workspace.executor();
    const auto v = projections(dy.rows, workspace);
    kernels::project_down(dy, DropoutMask<Scalar>{}, up_factors(workspace), Scalar(1), v, executor);
    for_each_part([&](const Slot& slot, std::size_t i, Index first) {
      LoraGradients<Scalar>& gradients = gradients_of(i);
      const MatrixView<const Scalar> own_v = v.middle_cols(first, slot.rank());
      kernels::add_outer(own_v, x, slot.adapter().mask(record[i]), Scalar(1), view_of(gradients.A), executor);
      auto* memory = workspace.reserve<Scalar>(Workspace::Slot::factor_gradient, slot.rank() * dy.cols);
      const MatrixView<Scalar> db{memory, slot.rank(), dy.cols, dy.cols, 1};
      db.map().setZero();
      kernels::add_outer(record[i].down_projection(), dy, DropoutMask<Scalar>{}, slot.scaling(), db, executor);
      gradients.B += db.map().transpose();
      if (gradients.lora_bias.size() > 0) {
        LoraAdapter<Scalar>::add_column_sums(dy, slot.scaling(), gradients.lora_bias);
      }
    });
    return v;
  }

  /// dX = dY W + sum of drop_i'(V_i A_i), with the V that backward() returned.
  template <FrozenWeight Weight>
  void input_gradient(const Weight& weight, const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& v,
                      const MultiLoraRecord<Scalar>& record, const MatrixView<Scalar>& dx, Workspace& workspace) const {
    if (!drops_) {
      const auto term = count_ > 0 ? LowRankTerm<Scalar>{v, down_factors(workspace)} : LowRankTerm<Scalar>{};
      return weight.product_transposed(dy, term, dx, workspace);
    }
    weight.product_transposed(dy, {}, dx, workspace);
    add_input_gradient(v, record, dx, workspace);
  }
  /// dX += sum of drop_i'(V_i A_i).
  void add_input_gradient(const MatrixView<const Scalar>& v, const MultiLoraRecord<Scalar>& record,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    for_each_part([&](const Slot& slot, std::size_t i, Index first) {
      kernels::add_project_up(v.middle_cols(first, slot.rank()), view_of(slot.adapter().A()),
                              slot.adapter().mask(record[i]), dx, workspace.executor());
    });
  }

  /// s*B^T of one adapter (r x out_features) into `out`.
  static void write_up_factor(const Slot& slot, const MatrixView<Scalar>& out) noexcept {
    out.map() = slot.scaling() * slot.adapter().B().transpose();
  }

 private:
  AdapterSum(const AdapterSlots<Scalar>& slots, std::span<const Index> chosen, std::size_t begin, std::size_t end,
             bool dora) noexcept
      : slots_(&slots), chosen_(chosen), begin_(begin), end_(end), dora_(dora) {
    for_each([&](const Slot& slot, std::size_t i) {
      last_ = i;
      ++count_;
      rank_ += slot.rank();
      drops_ = drops_ || slot.adapter().config().dropout > 0;
    });
  }

  [[nodiscard]] const LoraAdapter<Scalar>& last() const noexcept { return (*slots_)[chosen_[last_]].adapter(); }

  /// for_each with the position of the adapter's part among the R ranks.
  template <class Body>
  void for_each_part(const Body& body) const {
    Index first = 0;
    for_each([&](const Slot& slot, std::size_t i) {
      body(slot, i, first);
      first += slot.rank();
    });
  }

  [[nodiscard]] MatrixView<Scalar> projections(Index rows, Workspace& workspace) const {
    // Never null, so that parts of it can be named without rows, too.
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::down_projection, std::max<Index>(rows, 1) * rank_);
    return {memory, rows, rank_, rank_, 1};
  }

  // U of all adapters side by side.
  [[nodiscard]] MatrixView<const Scalar> collected(const MultiLoraRecord<Scalar>& record, Index rows,
                                                   Workspace& workspace) const {
    if (count_ == 1) return record[last_].down_projection();
    const auto u = projections(rows, workspace);
    for_each_part([&](const Slot& slot, std::size_t i, Index first) {
      const auto own = record[i].down_projection();
      for (Index row = 0; row < own.rows; ++row) std::copy_n(&own(row, 0), slot.rank(), &u(row, first));
    });
    return u;
  }

  // F.
  [[nodiscard]] MatrixView<const Scalar> up_factors(Workspace& workspace) const {
    const Index d = last().B().rows();
    const MatrixView<Scalar> f{workspace.reserve<Scalar>(Workspace::Slot::up_factor, rank_ * d), rank_, d, d, 1};
    for_each_part(
        [&](const Slot& slot, std::size_t, Index first) { write_up_factor(slot, f.middle_rows(first, slot.rank())); });
    return f;
  }

  // The A_i one under the other.
  [[nodiscard]] MatrixView<const Scalar> down_factors(Workspace& workspace) const {
    if (count_ == 1) return view_of(last().A());
    const Index k = last().A().cols();
    const MatrixView<Scalar> a{workspace.reserve<Scalar>(Workspace::Slot::up_factor, rank_ * k), rank_, k, k, 1};
    for_each_part([&](const Slot& slot, std::size_t, Index first) {
      a.middle_rows(first, slot.rank()).map() = slot.adapter().A();
    });
    return a;
  }

  const AdapterSlots<Scalar>* slots_;
  std::span<const Index> chosen_;
  std::size_t begin_;
  std::size_t end_;
  bool dora_;
  std::size_t last_ = 0;  ///< the last of those that take part
  std::size_t count_ = 0;
  Index rank_ = 0;
  bool drops_ = false;
};

}  // namespace lora
