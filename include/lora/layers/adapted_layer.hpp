// SPDX-License-Identifier: MIT
// The shell of every adapted layer: a frozen weight, its adapters, and passes over the user's input types.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/executor.hpp"
#include "lora/layers/layer_core.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// How rows choose their adapters: by positions in adapter_names(), or by names.
template <class Choices>
concept RowChoices = requires(const Choices& choices) {
  std::size(choices);
  requires std::integral<std::remove_cvref_t<decltype(*std::begin(choices))>> ||
      std::convertible_to<decltype(*std::begin(choices)), std::string_view>;
};

/// Base of every layer. `Kind` defines what is specific: how inputs are read, the shapes of the factors, the passes of
/// one product. `Layer` is the class that users name; it has the constructors.
///
/// Two forms of every pass:
/// - `forward(x)`, `backward(dy)`: the layer remembers the pass; one thread at a time.
/// - `infer(x, y, workspace)`, `forward(x, tape, y, workspace)`, `backward(x, tape, dy, gradients, ...)`: const,
///   reentrant, over memory the caller owns; allocates only to grow the tape and the workspace.
///
/// LayerCore has what does not depend on the input's type: adapters, parameters, merged weights.
template <class Layer, class KindType, FrozenWeight WeightType>
class AdaptedLayer : public LayerCore<KindType> {
  using Core = LayerCore<KindType>;
  using Batch = typename Core::Batch;

 public:
  using Scalar = typename Core::Scalar;
  /// The kind of the frozen weight.
  using Weight = WeightType;
  /// What a forward pass leaves for its backward pass.
  using Tape = typename Core::Tape;
  /// The gradients of the active adapters.
  using Gradients = typename Core::Gradients;
  static_assert(std::is_same_v<Scalar, typename Weight::Scalar>, "lora: the weight's scalar type is not the layer's");

  /// The weight as it is now, including what is merged.
  [[nodiscard]] const Weight& frozen_weight() const noexcept { return weight_; }

  /// The layer's output without dropout. Allocates the result and scratch. Reentrant. @throws ShapeError; StateError
  /// when an active adapter has use_dora and another one is merged
  template <class Input>
  requires KindType::template takes<Input> [[nodiscard]] auto infer(const Input& x) const {
    auto y = this->kind_.make_output(this->op("infer"), x);
    Workspace workspace;
    infer(x, y, workspace);
    return y;
  }
  /// The same into `y`, which does not overlap x. Reentrant.
  template <class Input, class Output>
  requires KindType::template takes<Input> void infer(const Input& x, Output&& y, Workspace& workspace) const {
    const Operation operation = this->op("infer");
    this->kind_.with_batch(operation, x, workspace, [&](const Batch& batch) {
      this->infer_batch(batch, this->kind_.output(operation, y, batch), workspace);
    });
  }

  /// Computes each row (each sample of a convolution) with the adapter it chooses, active or not. For every row,
  /// `choices` holds a position in adapter_names() or -1 for the frozen layer alone, or else a name or "__base__". A
  /// row has the bits that infer() gives with only that adapter active, whatever the other rows are. While adapters are
  /// disabled, the frozen layer computes all rows. Allocates like infer(x). Reentrant. @throws ShapeError, ConfigError;
  /// StateError while anything is merged
  template <class Input, RowChoices Choices>
  requires KindType::template takes<Input> [[nodiscard]] auto infer(const Input& x, const Choices& choices) const {
    auto y = this->kind_.make_output(this->op("infer"), x);
    Workspace workspace;
    infer(x, choices, y, workspace);
    return y;
  }
  /// The same into `y`. Rows are gathered by adapter, unless they are already in order. Groups side by side whose
  /// adapters have neither DoRA nor a bias share one product with W and then add their low-rank terms.
  template <class Input, RowChoices Choices, class Output>
  requires KindType::template takes<Input> void infer(const Input& x, const Choices& choices, Output&& y,
                                                      Workspace& workspace) const {
    const Operation operation = this->op("infer");
    const auto chosen = this->choices_of(choices, workspace);
    this->kind_.with_batch(operation, x, workspace, [&](const Batch& batch) {
      this->infer_by_row(batch, {chosen.data, static_cast<std::size_t>(chosen.cols)},
                         this->kind_.output(operation, y, batch), workspace);
    });
  }

  /// The forward pass of training: the active adapters apply dropout at `tape.position`, each with its own seed. Fills
  /// `tape` for backward. Reentrant. @throws ShapeError; StateError while anything is merged
  template <class Input, class Output>
  requires KindType::template takes<Input> void forward(const Input& x, Tape& tape, Output&& y,
                                                        Workspace& workspace) const {
    const Operation operation = this->op("forward");
    tape.clear();
    this->kind_.with_batch(operation, x, workspace, [&](const Batch& batch) {
      this->forward_batch(batch, tape, this->kind_.output(operation, y, batch), workspace);
    });
  }
  /// Adds the gradients of the active adapters for the pass that took `x` and filled `tape`. Reentrant for different
  /// `gradients`. @throws ShapeError; StateError while anything is merged, or when other adapters were active in that
  /// pass. Nothing changes then. After std::bad_alloc a part may have been added: zero the gradients before you try
  /// again.
  template <class Input, class OutputGradient>
  void backward(const Input& x, const Tape& tape, const OutputGradient& dy, Gradients& gradients,
                Workspace& workspace) const {
    const auto pointers = this->given_gradients("backward", gradients, workspace);
    this->kind_.with_tape_batch(this->op("backward"), x, tape, workspace, [&](const Batch& batch) {
      differentiate("backward", batch, tape, dy, spanned(pointers), workspace);
    });
  }
  /// The same, and writes dX into `dx`, of x's shape, which overlaps neither `dy` nor `x`.
  template <class Input, class OutputGradient, class InputGradient>
  requires KindType::has_input_gradient void backward(const Input& x, const Tape& tape, const OutputGradient& dy,
                                                      Gradients& gradients, InputGradient&& dx,
                                                      Workspace& workspace) const {
    const auto pointers = this->given_gradients("backward", gradients, workspace);
    this->kind_.with_tape_batch(this->op("backward"), x, tape, workspace, [&](const Batch& batch) {
      differentiate_into("backward", batch, tape, dy, spanned(pointers), dx, workspace);
    });
  }

  /// In training mode the forward pass of training, which keeps a copy of x and the tape; otherwise infer(x).
  /// @throws ShapeError; StateError in training mode while merged
  template <class Input>
  requires KindType::template takes<Input> auto forward(const Input& x) {
    auto y = this->kind_.make_output(this->op("forward"), x);
    forward(x, y);
    return y;
  }
  /// The same into `y`. Allocates only to grow what the layer keeps.
  template <class Input, class Output>
  requires KindType::template takes<Input> void forward(const Input& x, Output&& y) {
    if (!this->training_) return infer(x, y, this->workspace_);
    const Operation operation = this->op("forward");
    this->kind_.with_batch(operation, x, this->workspace_, [&](const Batch& batch) {
      const MatrixView<Scalar> out = this->kind_.output(operation, y, batch);
      memory_.reserve(batch);
      this->tape_.position = {this->dropout_step_, 0};
      this->forward_batch(batch, this->tape_, out, this->workspace_);
      memory_.assign(batch);
      ++this->dropout_step_;
    });
  }

  /// Adds to the adapters' own gradients for the last forward pass of training and returns dX, of the same type as dY.
  /// @throws ShapeError; StateError before any such pass, or while merged; std::bad_alloc, as above
  template <class OutputGradient>
  auto backward(const OutputGradient& dy) {
    this->require_tape("backward");
    if constexpr (KindType::has_input_gradient) {
      auto dx = this->kind_.make_input_gradient(dy, this->tape_);
      backward(dy, dx);
      return dx;
    } else {
      accumulate_gradients(dy);
    }
  }
  /// The same, writing dX into `dx`. Allocates only to grow what the layer keeps.
  template <class OutputGradient, class InputGradient>
  requires KindType::has_input_gradient void backward(const OutputGradient& dy, InputGradient&& dx) {
    this->require_tape("backward");
    const auto pointers = this->own_gradients(this->workspace_);
    differentiate_into("backward", memory_.batch(this->tape_), this->tape_, dy, spanned(pointers), dx,
                       this->workspace_);
  }
  /// The same without dX: for the first layer of a network.
  template <class OutputGradient>
  void accumulate_gradients(const OutputGradient& dy) {
    this->require_tape("accumulate_gradients");
    const auto pointers = this->own_gradients(this->workspace_);
    differentiate("accumulate_gradients", memory_.batch(this->tape_), this->tape_, dy, spanned(pointers),
                  this->workspace_);
  }

  /// Training mode; unmerges the adapters whose configuration has merge_weights. `train(false)` is `eval()`.
  /// Idempotent. @throws like unmerge(names)
  Layer& train(bool mode = true) {
    mode ? this->train_mode() : this->eval_mode();
    return self();
  }
  /// Evaluation mode; merges the active adapters whose configuration has merge_weights. Nothing is merged into a weight
  /// that does not support it, while rows choose their adapters, or where an adapter with use_dora would stay unmerged
  /// (at most one can be merged). Idempotent. @throws like merge(); the mode does not change then either.
  Layer& eval() {
    this->eval_mode();
    return self();
  }
  /// Merges, in place and in their order, the active adapters that are not merged yet. At most one merged adapter may
  /// have use_dora; it goes below the others, which are merged again. @throws StateError naming the adapter when a sum
  /// is not finite, or when the weight is read-only, of a kind that cannot be merged into, or adapters are disabled;
  /// ConfigError when two of the merged and active ones train the layer's bias; std::bad_alloc. Every bit is unchanged
  /// then.
  Layer& merge() {
    this->merge_active();
    return self();
  }
  /// Merges these, active or not, in this order, on top of those already merged. `names` is any range of strings, or a
  /// list in braces. @throws also ConfigError
  template <class Names = std::initializer_list<std::string_view>>
  Layer& merge(const Names& names) {
    this->merge_positions(this->positions("merge", names));
    return self();
  }
  /// Restores W0 bit for bit.
  Layer& unmerge() noexcept {
    this->unmerge_all();
    return self();
  }
  /// Takes these out of the weight; those that are not merged are ignored. The weight is then, bit for bit, as if only
  /// the others had been merged, in their order. @throws ConfigError. If one that stays was merged after one that is
  /// taken out, also std::bad_alloc, and StateError if a sum without the latter is not finite. Every bit is unchanged
  /// then.
  template <class Names = std::initializer_list<std::string_view>>
  Layer& unmerge(const Names& names) {
    this->unmerge_positions(this->positions("unmerge", names));
    return self();
  }
  /// Merges the active adapters into the weight and the bias permanently; the layer has no adapters afterwards. @throws
  /// like merge()
  Layer& merge_and_unload() {
    this->merge_and_forget();
    return self();
  }
  /// Removes every adapter: the frozen layer is restored bit for bit.
  Layer& unload() noexcept {
    this->forget_adapters();
    return self();
  }

  /// Makes one adapter the active one; see set_adapters().
  Layer& set_adapter(std::string_view name) { return set_adapters(std::span(&name, 1)); }
  /// Makes these the active adapters, in this order, and unmerges all others, so that the layer uses these and no
  /// others. The list may be empty. @throws ConfigError for a name that is unknown or given twice, or when two of these
  /// train the layer's bias; otherwise like unmerge(names).
  template <class Names = std::initializer_list<std::string_view>>
  Layer& set_adapters(const Names& names) {
    this->make_active("set_adapters", this->positions("set_adapters", names));
    return self();
  }
  /// Unmerges everything and acts as the frozen layer until enable_adapters(). Nothing trains meanwhile.
  Layer& disable_adapters() noexcept {
    this->enable(false);
    return self();
  }
  /// The active adapters take part again. Merges nothing.
  Layer& enable_adapters() noexcept {
    this->enable(true);
    return self();
  }

  /// Runs forward(x) and backward(dy) on `executor`, which must outlive the layer or be replaced.
  void set_executor(Executor& executor) { this->workspace_ = Workspace(executor); }
  /// The same on a pool of threads, such as Eigen::ThreadPool with core/thread_pool_executor.hpp.
  template <PoolOfThreads Pool>
  void set_executor(Pool& pool) {
    this->workspace_ = Workspace(pool);
  }

 protected:
  AdaptedLayer(KindType kind, Weight&& weight, const LoraConfig& config)
      : Core(std::move(kind), config), weight_(std::move(weight)) {}
  AdaptedLayer(const AdaptedLayer&) = default;
  AdaptedLayer(AdaptedLayer&&) noexcept = default;
  AdaptedLayer& operator=(const AdaptedLayer& other) { return *this = AdaptedLayer(other); }  // all or nothing
  AdaptedLayer& operator=(AdaptedLayer&&) noexcept = default;
  ~AdaptedLayer() override = default;

  [[nodiscard]] WeightRef<Scalar> weight_ref() noexcept override { return weight_; }
  [[nodiscard]] WeightRef<Scalar> weight_ref() const noexcept override { return weight_; }

 private:
  using Pointers = std::span<Gradients* const>;

  [[nodiscard]] Layer& self() noexcept { return static_cast<Layer&>(*this); }
  [[nodiscard]] static Pointers spanned(const ScratchMatrix<Gradients*>& pointers) noexcept {
    return {pointers.data, static_cast<std::size_t>(pointers.cols)};
  }

  template <class OutputGradient>
  void differentiate(std::string_view call, const Batch& x, const Tape& tape, const OutputGradient& dy,
                     Pointers gradients, Workspace& workspace) const {
    this->kind_.with_output_gradient(this->op(call), dy, tape, [&](const MatrixView<const Scalar>& dy_rows) {
      this->check_tape(call, x, tape, dy_rows);
      this->backward_batch(x, tape, dy_rows, gradients, nullptr, workspace);
    });
  }
  template <class OutputGradient, class InputGradient>
  void differentiate_into(std::string_view call, const Batch& x, const Tape& tape, const OutputGradient& dy,
                          Pointers gradients, InputGradient& dx, Workspace& workspace) const {
    this->kind_.with_output_gradient(this->op(call), dy, tape, [&](const MatrixView<const Scalar>& dy_rows) {
      this->check_tape(call, x, tape, dy_rows);
      const MatrixView<Scalar> dx_rows = this->kind_.input_gradient(this->op(call), dx, x, tape);
      require_apart(this->op(call), "dx", dx_rows, "dy", dy_rows);
      this->backward_batch(x, tape, dy_rows, gradients, &dx_rows, workspace);
    });
  }

  Weight weight_;
  typename KindType::Memory memory_;
};

}  // namespace lora
