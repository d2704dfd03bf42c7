// The passes of a frozen weight with several adapters, some of which may have DoRA.
#pragma once

#include <cstddef>
#include <span>

#include "lora/core/workspace.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/layers/adapter_slot.hpp"
#include "lora/layers/adapter_sum.hpp"
#include "lora/layers/multi_record.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// W and those of the chosen adapters that are not merged into it. Without DoRA among them the adapters ride along in
/// the one product with W.
///
/// Every adapter is additive: with f = m / n and n the norms of the rows of W0 + s*B*A, one with DoRA adds
///   (f - 1) (.) W0 x + f (.) s*B*A x = Y_i - W0 x, where Y_i is its answer alone,
/// whatever the others add. So n is taken against W0 and never against a W that holds other adapters, and a layer of D
/// of them costs D + 1 products with W0 instead of one (D where D is 1): Y = Y_1 + ... + Y_D - (D - 1) W0 x, and the
/// low-rank terms of those without DoRA on top. With DoRA W must be W0: nothing is merged.
///
/// A view; const functions are reentrant and allocate only to grow records and the workspace. Source of DoRA: Liu et
/// al., arXiv 2402.09353; that several are additive: PEFT's forward pass of DoRA adapters.
template <RealScalar Scalar, FrozenWeight Weight>
class AdapterPasses {
 public:
  using Slot = AdapterSlot<Scalar>;

  /// Views all, which outlive it. `chosen` holds positions in `slots`.
  AdapterPasses(const Weight& weight, const AdapterSlots<Scalar>& slots, std::span<const Index> chosen) noexcept
      : weight_(weight), slots_(slots), chosen_(chosen), plain_(slots, chosen) {}

  /// Number of adapters with DoRA that take part.
  [[nodiscard]] std::size_t dora_count() const noexcept {
    std::size_t count = 0;
    for_each_dora([&](const Slot&, std::size_t) { ++count; });
    return count;
  }

  /// Y without dropout. `bias` has out_features scalars or is null.
  void infer(const MatrixView<const Scalar>& x, const Scalar* bias, const MatrixView<Scalar>& y,
             Workspace& workspace) const {
    answer(
        x, bias, y, workspace, [&](const AdapterSum<Scalar>& sum) { return sum.infer(x, workspace); },
        [&](const Slot& slot, std::size_t, const LowRankTerm<Scalar>& term, const Scalar* own_bias,
            const MatrixView<Scalar>& out) {
          slot.dora().infer(weight_, slot.update(), x, own_bias, term, out, workspace);
        });
  }

  /// Y of training, with dropout at `record.position`. Fills the record: the i-th entry is the i-th chosen adapter's.
  void forward(const MatrixView<const Scalar>& x, const Scalar* bias, MultiLoraRecord<Scalar>& record,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    record.prepare(chosen_.size());
    answer(
        x, bias, y, workspace, [&](const AdapterSum<Scalar>& sum) { return sum.forward(x, record, workspace); },
        [&](const Slot& slot, std::size_t i, const LowRankTerm<Scalar>& term, const Scalar* own_bias,
            const MatrixView<Scalar>& out) {
          slot.dora().forward(weight_, slot.update(), x, slot.adapter().mask(record[i]), own_bias, term, record[i], out,
                              workspace);
        });
    record.finish(x.rows);
  }

  /// Adds the gradients of the pass that filled `record`, those of the i-th chosen adapter to gradients_of(i), and
  /// writes dX into `dx` unless that has no columns. Nothing is merged.
  template <class GradientsOf>
  void backward(const MatrixView<const Scalar>& x, const MultiLoraRecord<Scalar>& record,
                const MatrixView<const Scalar>& dy, const GradientsOf& gradients_of, const MatrixView<Scalar>& dx,
                Workspace& workspace) const {
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      auto& bias = gradients_of(i).bias;
      if (bias.size() > 0) LoraAdapter<Scalar>::add_column_sums(dy, Scalar(1), bias);
    }
    const std::size_t doras = dora_count();
    std::size_t done = 0;
    for_each_dora([&](const Slot& slot, std::size_t i) {
      const auto sum = AdapterSum<Scalar>::of_dora(slots_, chosen_, i);
      const auto dz = slot.dora().backward(record[i], dy, gradients_of(i).magnitude, workspace);
      const LowRankTerm<Scalar> term{sum.backward(x, record, dz, gradients_of, workspace), view_of(slot.adapter().A())};
      if (dx.cols == 0) return;
      const MatrixView<Scalar> target = done++ == 0 ? dx : scratch(dx, workspace);
      if (const auto mask = slot.adapter().mask(record[i]); mask.active()) {
        slot.dora().input_gradient(weight_, dy, term, mask, target, workspace);
      } else {
        weight_.product_transposed(dz, term, target, workspace);
      }
      if (done > 1) dx.map() += target.map();
    });
    MatrixView<const Scalar> v{};
    if (plain_.count() > 0) v = plain_.backward(x, record, dy, gradients_of, workspace);
    if (dx.cols == 0) return;
    if (doras == 0) return plain_.input_gradient(weight_, dy, v, record, dx, workspace);
    plain_.add_input_gradient(v, record, dx, workspace);
    if (doras == 1) return;
    const auto base = scratch(dx, workspace);
    weight_.product_transposed(dy, {}, base, workspace);
    dx.map() -= static_cast<Scalar>(doras - 1) * base.map();
  }

  /// Whether the record is of a pass in which just these adapters took part, as they are now.
  [[nodiscard]] bool fits(const MultiLoraRecord<Scalar>& record) const noexcept {
    bool same = record.size() == chosen_.size();
    for (std::size_t i = 0; same && i < chosen_.size(); ++i) {
      const Slot& slot = slots_[chosen_[i]];
      same = record.id(i) == slot.id() && slot.adapter().fits(record[i], record.rows()) &&
             record[i].down_projection().cols == slot.rank() &&
             record[i].unscaled_output().cols == slot.dora().value().size();
    }
    return same;
  }

 private:
  template <class Body>
  void for_each_dora(const Body& body) const {
    for (std::size_t i = 0; i < chosen_.size(); ++i) {
      const Slot& slot = slots_[chosen_[i]];
      if (!slot.merged() && slot.dora().active()) body(slot, i);
    }
  }

  template <class TermOf, class AnswerAlone>
  void answer(const MatrixView<const Scalar>& x, const Scalar* bias, const MatrixView<Scalar>& y, Workspace& workspace,
              const TermOf& term_of, const AnswerAlone& answer_alone) const {
    std::size_t doras = 0;
    for_each_dora([&](const Slot& slot, std::size_t i) {
      const auto term = term_of(AdapterSum<Scalar>::of_dora(slots_, chosen_, i));
      if (doras++ == 0) return answer_alone(slot, i, term, bias, y);
      const auto own = scratch(y, workspace);
      answer_alone(slot, i, term, nullptr, own);
      y.map() += own.map();
    });
    if (doras == 0) return weight_.product(x, bias, term_of(plain_), y, workspace);
    if (plain_.count() > 0) {
      const auto term = term_of(plain_);
      kernels::add_project_up(term.down, term.up, DropoutMask<Scalar>{}, y, workspace.executor());
    }
    if (doras == 1) return;
    const auto base = scratch(y, workspace);
    weight_.product(x, nullptr, {}, base, workspace);
    y.map() -= static_cast<Scalar>(doras - 1) * base.map();
  }

  // In a slot that neither DoRA nor an adapter's forward pass uses, and that its backward pass is done with by then.
  [[nodiscard]] static MatrixView<Scalar> scratch(const MatrixView<Scalar>& like, Workspace& workspace) {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::factor_gradient, like.rows * like.cols);
    return {memory, like.rows, like.cols, like.cols, 1};
  }

  const Weight& weight_;
  const AdapterSlots<Scalar>& slots_;
  std::span<const Index> chosen_;
  AdapterSum<Scalar> plain_;
};

}  // namespace lora
