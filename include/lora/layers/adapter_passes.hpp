// SPDX-License-Identifier: MIT
// Forward and backward of a frozen weight with any number of adapters, for every kind of layer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "lora/adapter/dora.hpp"
#include "lora/adapter/qalora.hpp"
#include "lora/adapter/tape.hpp"
#include "lora/layers/adapter_set.hpp"
#include "lora/layers/factor_pass.hpp"
#include "lora/layers/row_groups.hpp"

namespace lora {

/// The factors of an adapter's update of the whole weight, W + scale * B A: `update.a` is rank x in_features and
/// `update.b` out_features x rank, with zeros outside the part that the adapter adapts. What the adapter does not store
/// in this form is in workspace memory.
template <class Scalar>
struct WholeUpdate {
  ScratchMatrix<Scalar> a;
  ScratchMatrix<Scalar> b;
  LowRankUpdate<Scalar> update;
};

/// W and the adapters that are not merged into it. `Passes` computes one product with the adapters that share it
/// (layers/linear_passes.hpp and others); this class assigns adapters to products and sums the results.
///
/// Adapters without DoRA share one product with W. Every adapter is additive: with f = m / n and n the norms of the
/// rows of W + s B A, one with DoRA adds (f - 1) (.) W x + f (.) s B A x = Y_i - W x, where Y_i is the output with that
/// adapter alone, whatever the others add. A layer with D DoRA adapters therefore costs D + 1 products with W (1 if D
/// is 1): Y = Y_1 + ... + Y_D - (D - 1) W x, plus the terms of the others. If `Passes` cannot add terms to a finished
/// product (`adds_terms`, convolutions), a product has one mask: every adapter with dropout has its own product too,
/// and the others together have one.
///
/// A view; const functions are reentrant and allocate only to grow the tape and the workspace. Source of DoRA: Liu et
/// al., arXiv 2402.09353; of adding several: PEFT's forward pass of DoRA adapters.
template <class Kind, class Passes>
class AdapterPasses {
 public:
  using Scalar = typename Passes::Scalar;
  using Batch = typename Passes::Batch;
  using Adapter = LoraAdapter<Scalar>;
  using Tape = LoraTape<Scalar>;

  /// `working` holds positions of adapters in the set. All outlive this object.
  AdapterPasses(const Kind& kind, const Passes& passes, const WeightRef<Scalar>& weight,
                const AdapterSet<Scalar>& adapters, std::span<const Index> working,
                std::span<const double> squared_norms) noexcept
      : kind_(kind),
        passes_(passes),
        weight_(weight),
        adapters_(adapters),
        working_(working),
        squared_norms_(squared_norms) {}

  /// Y without dropout. `bias` has one scalar per output, or is null.
  void infer(const Batch& x, const Scalar* bias, const MatrixView<Scalar>& y, Workspace& workspace) const {
    answer(x, bias, nullptr, y, workspace);
  }

  /// Y += what the working adapters add to the product with W. Without dropout. Pre: none of them has DoRA.
  void add_terms(const Batch& x, const MatrixView<Scalar>& y, Workspace& workspace) const;

  /// Y of training, with dropout at `tape.position`. Fills the tape.
  void forward(const Batch& x, const Scalar* bias, Tape& tape, const MatrixView<Scalar>& y, Workspace& workspace) const;

  /// Adds the gradients of the pass that filled `tape`, those of the i-th working adapter to *gradients[i], and writes
  /// dX unless `dx` is null.
  void backward(const Batch& x, const Tape& tape, const MatrixView<const Scalar>& dy,
                std::span<LoraGradients<Scalar>* const> gradients, const MatrixView<Scalar>* dx,
                Workspace& workspace) const;

  /// Whether the tape records a pass over such inputs with exactly these adapters as they are now.
  [[nodiscard]] bool fits(const Tape& tape) const noexcept;

 private:
  [[nodiscard]] static bool drops(const Adapter& adapter) noexcept { return Passes::takes_dropout && adapter.drops(); }
  [[nodiscard]] bool stands_alone(const Adapter& adapter, bool training) const noexcept {
    if (adapter.merged()) return false;
    return adapter.uses_dora() || (!Passes::adds_terms && training && drops(adapter));
  }
  [[nodiscard]] std::size_t alone_count(bool training) const noexcept {
    std::size_t count = 0;
    for (const Index i : working_) count += stands_alone(adapters_[i], training) ? 1 : 0;
    return count;
  }
  // Memory of the parts of one product at a time: two parts per adapter, and A P of adapters with QALoRA.
  struct PartRoom {
    ScratchMatrix<FactorPart<Scalar>> parts;
    ScratchMatrix<Scalar> wide;
  };
  [[nodiscard]] PartRoom part_room(Workspace& workspace) const {
    Index rows = 0;
    for (const Index i : working_) rows += adapters_[i].group_size() > 0 ? adapters_[i].total_rank() : 0;
    return {workspace.row<FactorPart<Scalar>>(2 * static_cast<Index>(working_.size())),
            workspace.matrix<Scalar>(rows, rows > 0 ? kind_.in_features() : 0)};
  }

  [[nodiscard]] bool kept_matches(const typename Tape::Pass& pass, const Tape& tape, Index rank,
                                  bool dora) const noexcept;

  // The parts of the working adapters [begin, end), which share a product.
  [[nodiscard]] FactorPass<Scalar> pass_of(const PartRoom& room, std::size_t begin, std::size_t end, const Tape* tape,
                                           std::size_t kept, std::span<LoraGradients<Scalar>* const> gradients) const;

  // Calls compute(target), where the first product of a sum writes `sum` itself and later ones are added to it. Without
  // a sum the target is null.
  template <class Compute>
  static void add_product(std::size_t& done, const MatrixView<Scalar>* sum, Workspace& workspace,
                          const Compute& compute) {
    if (done++ == 0 || sum == nullptr) return compute(sum);
    const auto own = workspace.matrix<Scalar>(sum->rows, sum->cols);
    const MatrixView<Scalar> target = own;
    compute(&target);
    detail::add_rows(MatrixView<const Scalar>(target), Scalar(1), *sum);
  }

  // The factors m / n of an adapter with DoRA, for every output, into `factors`; its norms into `norms`.
  void scale_factors(const Adapter& adapter, double* norms, Scalar* factors, Workspace& workspace) const;

  void answer(const Batch& x, const Scalar* bias, Tape* tape, const MatrixView<Scalar>& y, Workspace& workspace) const;

  // Forward pass of one product, with U on the tape or in scratch.
  void run(const Batch& x, FactorPass<Scalar> pass, Tape* tape, std::size_t kept, const MatrixView<Scalar>& y,
           BaseProduct base, Workspace& workspace) const;

  void answer_alone(std::size_t i, const Batch& x, FactorPass<Scalar> pass, Tape* tape, std::size_t kept,
                    const MatrixView<Scalar>& y, Workspace& workspace) const;

  void differentiate_alone(std::size_t i, const Batch& x, FactorPass<Scalar> pass, const typename Tape::Pass& kept,
                           const MatrixView<const Scalar>& dy, const MatrixView<Scalar>* dx,
                           LoraGradients<Scalar>& gradients, Workspace& workspace) const;

  void add_bias_gradients(std::size_t i, const MatrixView<const Scalar>& dy, LoraGradients<Scalar>& gradients,
                          Workspace& workspace) const;

  const Kind& kind_;
  const Passes& passes_;
  const WeightRef<Scalar>& weight_;
  const AdapterSet<Scalar>& adapters_;
  std::span<const Index> working_;
  std::span<const double> squared_norms_;
};

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::add_terms(const Batch& x, const MatrixView<Scalar>& y, Workspace& workspace) const {
  const PartRoom room = part_room(workspace);
  run(x, pass_of(room, 0, working_.size(), nullptr, 0, {}), nullptr, 0, y, BaseProduct::keep, workspace);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::forward(const Batch& x, const Scalar* bias, Tape& tape, const MatrixView<Scalar>& y,
                                          Workspace& workspace) const {
  const BatchShape batch = Passes::shape(x);
  tape.start(working_.size(), 1 + alone_count(true));
  for (std::size_t i = 0; i < working_.size(); ++i) {
    const Adapter& adapter = adapters_[working_[i]];
    auto& kept = tape.adapter(i);
    kept.id = adapter.id();
    kept.rank = adapter.total_rank();
    kept.drops = drops(adapter);
    kept.bits.clear();
    if (kept.drops) {
      kept.bits.draw(adapter.config().dropout, adapter.seed(), tape.position, batch.rows, batch.inputs,
                     workspace.executor());
    }
  }
  answer(x, bias, &tape, y, workspace);
  tape.finish(batch);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::backward(const Batch& x, const Tape& tape, const MatrixView<const Scalar>& dy,
                                           std::span<LoraGradients<Scalar>* const> gradients,
                                           const MatrixView<Scalar>* dx, Workspace& workspace) const {
  for (std::size_t i = 0; i < working_.size(); ++i) add_bias_gradients(i, dy, *gradients[i], workspace);
  const PartRoom room = part_room(workspace);
  std::size_t done = 0;
  for (std::size_t i = 0; i < working_.size(); ++i) {
    if (!stands_alone(adapters_[working_[i]], true)) continue;
    const std::size_t kept = 1 + done;
    const FactorPass<Scalar> pass = pass_of(room, i, i + 1, &tape, kept, gradients);
    add_product(done, dx, workspace, [&](const MatrixView<Scalar>* target) {
      differentiate_alone(i, x, pass, tape.pass(kept), dy, target, *gradients[i], workspace);
    });
  }
  const FactorPass<Scalar> together = pass_of(room, 0, working_.size(), &tape, 0, gradients);
  if (done == 0 || (!Passes::adds_terms && !together.parts.empty())) {
    add_product(done, dx, workspace, [&](const MatrixView<Scalar>* target) {
      passes_.backward(x, together, dy, target, BaseProduct::write, workspace);
    });
  } else if (!together.parts.empty()) {
    passes_.backward(x, together, dy, dx, BaseProduct::keep, workspace);
  }
  if (done < 2 || dx == nullptr) return;
  const auto base = workspace.matrix<Scalar>(dx->rows, dx->cols);
  const MatrixView<Scalar> base_view = base;
  passes_.backward(x, FactorPass<Scalar>{}, dy, &base_view, BaseProduct::write, workspace);
  detail::add_rows(MatrixView<const Scalar>(base_view), -static_cast<Scalar>(done - 1), *dx);
}

template <class Kind, class Passes>
auto AdapterPasses<Kind, Passes>::fits(const Tape& tape) const noexcept -> bool {
  if (tape.adapter_count() != working_.size() || tape.pass_count() != 1 + alone_count(true)) return false;
  Index together = 0;
  std::size_t pass = 0;
  for (std::size_t i = 0; i < working_.size(); ++i) {
    const Adapter& adapter = adapters_[working_[i]];
    const auto& kept = tape.adapter(i);
    const Index rank = adapter.total_rank();
    if (kept.id != adapter.id() || kept.rank != rank || kept.drops != drops(adapter)) return false;
    if (!stands_alone(adapter, true)) {
      together += rank;
    } else if (!kept_matches(tape.pass(++pass), tape, rank, adapter.uses_dora())) {
      return false;
    }
  }
  return kept_matches(tape.pass(0), tape, together, false);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::scale_factors(const Adapter& adapter, double* norms, Scalar* factors,
                                                Workspace& workspace) const {
  const auto whole = kind_.whole_update(adapter, workspace);
  row_norms(weight_, whole.update, squared_norms_, norms, workspace);
  magnitude_factors(kind_.blocks(), adapter.magnitude, norms, factors);
}

template <class Kind, class Passes>
auto AdapterPasses<Kind, Passes>::pass_of(const PartRoom& room, std::size_t begin, std::size_t end, const Tape* tape,
                                          std::size_t kept, std::span<LoraGradients<Scalar>* const> gradients) const
    -> FactorPass<Scalar> {
  FactorPass<Scalar> pass;
  std::size_t count = 0;
  Index wide_rows = 0;
  const bool alone = kept > 0;
  for (std::size_t i = begin; i < end; ++i) {
    const Adapter& adapter = adapters_[working_[i]];
    if (adapter.merged() || adapter.rank() == 0) continue;
    if (stands_alone(adapter, tape != nullptr) != alone) continue;
    const auto down = [&](const Matrix<Scalar>& factor) -> MatrixView<const Scalar> {
      if (adapter.group_size() == 0) return view_of(factor);
      const MatrixView<Scalar> wide = room.wide.middle_rows(wide_rows, factor.rows());
      wide_rows += factor.rows();
      widen_factor<Scalar>(view_of(factor), adapter.group_size(), wide);
      return wide;
    };
    FactorPart<Scalar> part;
    part.a = down(adapter.A);
    part.group = adapter.group_size();
    part.b = view_of(adapter.B);
    part.scale = adapter.scaling();
    part.first = pass.rank;
    part.gradients = gradients.empty() ? nullptr : gradients[i];
    if (tape != nullptr && drops(adapter)) {
      part.mask = tape->adapter(i).bits.template mask<Scalar>(adapter.config().dropout);
    }
    pass.rank += part.a.rows;
    room.parts.data[count++] = part;
    if (adapter.start.A.size() == 0) continue;
    part.a = down(adapter.start.A);
    part.b = view_of(adapter.start.B);
    part.scale = -part.scale;
    part.first = pass.rank;
    part.gradients = nullptr;
    pass.rank += part.a.rows;
    room.parts.data[count++] = part;
  }
  pass.parts = {room.parts.data, count};
  if (tape != nullptr && !gradients.empty()) {
    const auto u = tape->pass(kept).down();
    pass.u = {const_cast<Scalar*>(u.data), u.rows, u.cols, u.row_stride, u.col_stride};  // backward reads it only
    const auto z = tape->pass(kept).unscaled();
    pass.z = {const_cast<Scalar*>(z.data), z.rows, z.cols, z.row_stride, z.col_stride};
  }
  return pass;
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::answer(const Batch& x, const Scalar* bias, Tape* tape, const MatrixView<Scalar>& y,
                                         Workspace& workspace) const {
  const PartRoom room = part_room(workspace);
  std::size_t done = 0;
  for (std::size_t i = 0; i < working_.size(); ++i) {
    if (!stands_alone(adapters_[working_[i]], tape != nullptr)) continue;
    const std::size_t kept = 1 + done;
    FactorPass<Scalar> pass = pass_of(room, i, i + 1, tape, kept, {});
    pass.bias = done == 0 ? bias : nullptr;
    add_product(done, &y, workspace,
                [&](const MatrixView<Scalar>* target) { answer_alone(i, x, pass, tape, kept, *target, workspace); });
  }
  FactorPass<Scalar> together = pass_of(room, 0, working_.size(), tape, 0, {});
  if (done == 0 || (!Passes::adds_terms && !together.parts.empty())) {
    together.bias = done == 0 ? bias : nullptr;
    add_product(done, &y, workspace, [&](const MatrixView<Scalar>* target) {
      run(x, together, tape, 0, *target, BaseProduct::write, workspace);
    });
  } else {
    run(x, together, tape, 0, y, BaseProduct::keep, workspace);
  }
  if (done < 2) return;
  const auto base = workspace.matrix<Scalar>(y.rows, y.cols);
  passes_.forward(x, FactorPass<Scalar>{}, base, BaseProduct::write, workspace);
  detail::add_rows(MatrixView<const Scalar>(base), -static_cast<Scalar>(done - 1), y);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::run(const Batch& x, FactorPass<Scalar> pass, Tape* tape, std::size_t kept,
                                      const MatrixView<Scalar>& y, BaseProduct base, Workspace& workspace) const {
  const MatrixShape shape = passes_.down_shape(Passes::shape(x), pass.rank);
  if (tape != nullptr) {
    if (pass.factors == nullptr) tape->pass(kept).reserve_down(shape.rows, shape.cols);
    pass.u = tape->pass(kept).down();
    passes_.forward(x, pass, y, base, workspace);
    return;
  }
  const auto u = workspace.matrix<Scalar>(shape.rows, shape.cols);
  pass.u = u;
  passes_.forward(x, pass, y, base, workspace);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::answer_alone(std::size_t i, const Batch& x, FactorPass<Scalar> pass, Tape* tape,
                                               std::size_t kept, const MatrixView<Scalar>& y,
                                               Workspace& workspace) const {
  const Adapter& adapter = adapters_[working_[i]];
  if (!adapter.uses_dora()) return run(x, pass, tape, kept, y, BaseProduct::write, workspace);
  const Index outputs = kind_.blocks().outputs;
  const auto factors = workspace.row<Scalar>(outputs);
  if (tape == nullptr) {
    const auto norms = workspace.row<double>(outputs);
    scale_factors(adapter, norms.data, factors.data, workspace);
  } else {
    const MatrixShape shape = passes_.down_shape(Passes::shape(x), pass.rank);
    const MatrixShape z = passes_.unscaled_shape(Passes::shape(x));
    auto& memory = tape->pass(kept);
    memory.reserve_down(shape.rows, shape.cols);
    memory.reserve_unscaled(z.rows, z.cols, outputs);
    scale_factors(adapter, memory.norms(), factors.data, workspace);
    pass.z = memory.unscaled();
  }
  pass.factors = factors.data;
  run(x, pass, tape, kept, y, BaseProduct::write, workspace);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::differentiate_alone(std::size_t i, const Batch& x, FactorPass<Scalar> pass,
                                                      const typename Tape::Pass& kept,
                                                      const MatrixView<const Scalar>& dy, const MatrixView<Scalar>* dx,
                                                      LoraGradients<Scalar>& gradients, Workspace& workspace) const {
  const Adapter& adapter = adapters_[working_[i]];
  if (!adapter.uses_dora()) return passes_.backward(x, pass, dy, dx, BaseProduct::write, workspace);
  const Index outputs = kind_.blocks().outputs;
  const auto factors = workspace.row<Scalar>(outputs);
  const auto sums = workspace.row<Scalar>(outputs);
  std::fill_n(sums.data, outputs, Scalar(0));
  magnitude_factors(kind_.blocks(), adapter.magnitude, kept.norms(), factors.data);
  pass.factors = factors.data;
  pass.sums = sums.data;
  passes_.backward(x, pass, dy, dx, BaseProduct::write, workspace);
  add_magnitude_gradient(kind_.blocks(), sums.data, kept.norms(), gradients.magnitude);
}

template <class Kind, class Passes>
void AdapterPasses<Kind, Passes>::add_bias_gradients(std::size_t i, const MatrixView<const Scalar>& dy,
                                                     LoraGradients<Scalar>& gradients, Workspace& workspace) const {
  if (gradients.bias.size() == 0 && gradients.lora_bias.size() == 0) return;
  const OutputBlocks& blocks = kind_.blocks();
  if (gradients.bias.size() > 0) passes_.add_output_sums(dy, Scalar(1), gradients.bias.data(), workspace);
  if (gradients.lora_bias.size() == 0) return;
  const Scalar scale = adapters_[working_[i]].scaling();
  if (blocks.whole()) return passes_.add_output_sums(dy, scale, gradients.lora_bias.data(), workspace);
  const auto sums = workspace.row<Scalar>(blocks.outputs);
  std::fill_n(sums.data, blocks.outputs, Scalar(0));
  passes_.add_output_sums(dy, scale, sums.data, workspace);
  blocks.for_each([&](Index adapted, Index output) { gradients.lora_bias[adapted] += sums.data[output]; });
}

template <class Kind, class Passes>
auto AdapterPasses<Kind, Passes>::kept_matches(const typename Tape::Pass& pass, const Tape& tape, Index rank,
                                               bool dora) const noexcept -> bool {
  const MatrixShape shape = passes_.down_shape(tape.batch(), rank);
  const MatrixShape z = passes_.unscaled_shape(tape.batch());
  return pass.down().rows == shape.rows && pass.down().cols == shape.cols &&
         pass.unscaled().rows == (dora ? z.rows : 0) && pass.unscaled().cols == (dora ? z.cols : 0);
}

}  // namespace lora
