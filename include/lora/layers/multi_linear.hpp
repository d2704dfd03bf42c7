// MultiLoraLinear: one frozen linear layer with several named adapters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/shape.hpp"
#include "lora/layers/adapter_passes.hpp"
#include "lora/layers/adapter_sum.hpp"
#include "lora/layers/multi_adapter_state.hpp"
#include "lora/layers/multi_record.hpp"
#include "lora/layers/remembered_input.hpp"
#include "lora/layers/row_groups.hpp"
#include "lora/layers/rows.hpp"
#include "lora/weight/packed.hpp"

namespace lora {

/// y = W0 x + bias + the sum of s_i B_i A_i drop_i(x) over the active adapters: one frozen W0, and any number of named
/// pairs A_i (r_i x in_features), B_i (out_features x r_i), as PEFT's LoraLayer holds them. With one adapter it is, bit
/// for bit, LoraLinear.
///
/// - An adapter takes part when it is active or merged. The first adapter of a layer becomes active, later ones when
///   set_adapter() or set_adapters() names them. Those that are active and not merged train.
/// - merge() and unmerge() move any of them into W and out again. Merged adapters are a stack: an inner one is taken
///   out by undoing those above it and merging them again, so that after any sequence of calls that leaves nothing
///   merged, W is W0 bit for bit.
/// - While an adapter is merged, what it was merged from (factors, bias of B, scale) does not change, and the layer
///   does not train; both raise StateError. Inference adds the active ones that are not merged.
/// - No adapter's name has a dot or is empty or "__base__", and none has rank 0. Unknown names raise ConfigError.
/// - Adapters with use_dora add what each would add alone: (m/n - 1) (.) W0 x + (m/n) (.) s*B*A x with n against W0,
///   never against a weight that holds other adapters (PEFT merges a second one against such a weight, and is then not
///   the sum of its adapters). One of them is merged alone, and answers in a pass only while nothing else is merged.
/// - Initialisations that take factors out of the weight raise ConfigError: LoraLinear has them.
///
/// The two forms of every pass, and what they accept, are those of LoraLinear. Const functions are reentrant.
template <RealScalar ScalarType, FrozenWeight WeightType = PackedWeight<ScalarType>>
class MultiLoraLinear : public MultiAdapterState<MultiLoraLinear<ScalarType, WeightType>, ScalarType, WeightType> {
  using State = MultiAdapterState<MultiLoraLinear, ScalarType, WeightType>;
  using Frozen = FrozenLinear<ScalarType, WeightType>;

 public:
  using Scalar = ScalarType;
  using Weight = WeightType;
  using Record = MultiLoraRecord<Scalar>;
  using Gradients = MultiLoraGradients<Scalar>;
  static_assert(std::is_same_v<Scalar, typename Weight::Scalar>, "lora: the weight's scalar type is not the layer's");

  /// What a row of infer(x, adapters) chooses to be answered by W0 and the bias alone.
  static constexpr Index base_row = -1;

  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression: out_features x in_features, or in_features x
  /// out_features with `fan_in_fan_out`. `bias` is a vector of out_features. Has no adapters. @throws ShapeError,
  /// std::bad_alloc
  template <class W, class B>
  MultiLoraLinear(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, bool fan_in_fan_out = false)
      : MultiLoraLinear(Frozen::weight_from(w0, fan_in_fan_out), bias, fan_in_fan_out) {}
  /// Without bias.
  template <class W>
  explicit MultiLoraLinear(const Eigen::DenseBase<W>& w0, bool fan_in_fan_out = false)
      : MultiLoraLinear(Frozen::weight_from(w0, fan_in_fan_out), fan_in_fan_out) {}
  /// Wraps a frozen weight of any kind, which is always out_features x in_features; `fan_in_fan_out` decides how
  /// weight() and delta_weight() are handed out.
  template <class B>
  MultiLoraLinear(Weight weight, const Eigen::DenseBase<B>& bias, bool fan_in_fan_out = false)
      : State(Frozen("MultiLoraLinear", std::move(weight), bias, fan_in_fan_out)) {}
  explicit MultiLoraLinear(Weight weight, bool fan_in_fan_out = false)
      : State(Frozen("MultiLoraLinear", std::move(weight), fan_in_fan_out)) {}

  using State::in_features;
  using State::out_features;

  /// The layer's answer without dropout. Allocates the result and scratch. Reentrant. @throws ShapeError; StateError
  /// when an active adapter has use_dora and another one is merged
  template <class Input>
  [[nodiscard]] auto infer(const Input& x) const {
    auto y = RowsOf<Input>::make_output(x, out_features());
    Workspace workspace;
    infer(x, y, workspace);
    return y;
  }
  /// The same into `y`, which has out_features columns (or last dimension) and does not overlap x. Reentrant.
  template <class Input, class Output>
  void infer(const Input& x, Output&& y, Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const auto out = output("MultiLoraLinear::infer", rows, y);
      const auto adapters = passes();
      if (adapters.dora_count() > 0)
        this->require_nothing_merged("MultiLoraLinear::infer", "active adapter with use_dora");
      adapters.infer(rows, effective_bias(workspace), out, workspace);
    });
  }

  /// Answers each row with the adapter it chooses, active or not: `choices` holds for every row a position in
  /// adapter_names(), or base_row; or else a name, or "__base__". Allocates as infer(x). Reentrant. @throws ShapeError;
  /// ConfigError, also for an adapter with use_dora; StateError while anything is merged. While adapters are disabled,
  /// all rows are answered by the base.
  template <class Input, class Choices>
    requires std::ranges::sized_range<const Choices>
  [[nodiscard]] auto infer(const Input& x, const Choices& choices) const {
    auto y = RowsOf<Input>::make_output(x, out_features());
    Workspace workspace;
    infer(x, choices, y, workspace);
    return y;
  }
  /// The same into `y`. One product with W for all rows; then for each adapter U and U (s B^T) of its rows, gathered
  /// (in their order) unless they stand together, added to Y. A row's answer has the same bits whatever the other rows
  /// are. It may differ from infer() with that one adapter active by the rounding of its r low-rank terms, which are
  /// summed by themselves here and on top of W0 x there; base rows have the bits of the base layer.
  template <class Input, class Choices, class Output>
    requires std::ranges::sized_range<const Choices>
  void infer(const Input& x, const Choices& choices, Output&& y, Workspace& workspace) const {
    constexpr std::string_view operation = "MultiLoraLinear::infer";
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const auto out = output(operation, rows, y);
      this->require_nothing_merged(operation, "adapters chosen by row");
      infer_groups(rows, group_rows(operation, rows.rows, choices, workspace), out, workspace);
    });
  }

  /// The forward pass of training, in which the active adapters drop at `record.position`, each by its own seed. Fills
  /// `record` for backward. Reentrant. @throws ShapeError; StateError while anything is merged
  template <class Input, class Output>
  void forward(const Input& x, Record& record, Output&& y, Workspace& workspace) const {
    constexpr std::string_view operation = "MultiLoraLinear::forward";
    this->require_nothing_merged(operation, "layer");
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const auto out = output(operation, rows, y);
      passes().forward(rows, effective_bias(workspace), record, out, workspace);
    });
  }

  /// Gradients of the right shapes for the adapters that are active now, in their order; zero.
  [[nodiscard]] Gradients make_gradients() const {
    Gradients gradients;
    for (const Index i : this->active()) gradients.adapters.push_back(this->slots()[i].make_gradients(bias_size()));
    return gradients;
  }

  /// Adds the gradients of the active adapters for the pass that took `x` and filled `record`. Reentrant for different
  /// `gradients`. @throws ShapeError; StateError while anything is merged, or when other adapters were active or
  /// adapters were swapped in that pass. Then nothing has changed.
  template <class Input, class OutputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                Workspace& workspace) const {
    check_count(gradients);
    differentiate(x, record, dy, list_of(gradients), no_input_gradient, workspace);
  }
  /// The same, and writes dX into `dx`, of x's shape, which does not overlap `dy`.
  template <class Input, class OutputGradient, class InputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                InputGradient&& dx, Workspace& workspace) const {
    check_count(gradients);
    differentiate(x, record, dy, list_of(gradients), input_gradient_into(dx), workspace);
  }

  /// In training mode the forward pass of training, remembering x (a copy) and the record; else infer(x). @throws
  /// ShapeError; StateError in training mode while anything is merged
  template <class Input>
  auto forward(const Input& x) {
    auto y = RowsOf<Input>::make_output(x, out_features());
    forward(x, y);
    return y;
  }
  /// The same into `y`. Allocates only to grow what the layer keeps.
  template <class Input, class Output>
  void forward(const Input& x, Output&& y) {
    if (!this->training()) return infer(x, y, workspace_);
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      remembered_x_.reserve(rows);
      record_.position = {dropout_step_, 0};
      forward(rows.map(), record_, y, workspace_);
      remembered_x_.assign(rows);
      ++dropout_step_;
    });
  }

  /// Adds to the adapters' own gradients for the last forward pass of training and returns dX, of dY's kind. @throws
  /// ShapeError; StateError before any such pass, and as backward() above
  template <class OutputGradient>
  auto backward(const OutputGradient& dy) {
    auto dx = RowsOf<OutputGradient>::make_output(dy, in_features());
    backward(dy, dx);
    return dx;
  }
  /// The same, writing dX into `dx`. Allocates only to grow what the layer keeps.
  template <class OutputGradient, class InputGradient>
  void backward(const OutputGradient& dy, InputGradient&& dx) {
    differentiate(remembered("MultiLoraLinear::backward").map(), record_, dy, own_gradients(), input_gradient_into(dx),
                  workspace_);
  }
  /// The same without dX: for the first layer of a network.
  template <class OutputGradient>
  void accumulate_gradients(const OutputGradient& dy) {
    differentiate(remembered("MultiLoraLinear::accumulate_gradients").map(), record_, dy, own_gradients(),
                  no_input_gradient, workspace_);
  }

  /// The gradients of one adapter that backward(dy) adds to; memory for them comes with the first use.
  [[nodiscard]] LoraGradients<Scalar>& gradients(std::string_view name) {
    auto& slots = this->slots();
    return slots[slots.index_of("MultiLoraLinear::gradients", name)].gradients(bias_size());
  }
  /// Of all adapters.
  void zero_grad() noexcept {
    for (Index i = 0; i < this->slots().size(); ++i) this->slots()[i].zero_grad();
  }

  /// Handles on what trains, the active adapters in their order: "lora_A.<name>.weight", "lora_B.<name>.weight", then
  /// "lora_magnitude_vector.<name>.weight", "lora_B.<name>.bias" and "bias" where they train. None while adapters are
  /// disabled. Values of a merged adapter cannot be changed through them. Valid while the layer stays where it is and
  /// the adapter is neither deleted nor swapped out, whatever is added or made active; so a steady training step keeps
  /// the list. Allocates the list.
  [[nodiscard]] std::vector<Parameter<Scalar>> parameters() {
    std::vector<Parameter<Scalar>> list;
    for (const Index i : this->active()) this->slots()[i].append_parameters(list, this->mutable_bias());
    return list;
  }
  /// Number of scalars that train.
  [[nodiscard]] Index trainable_parameter_count() const noexcept {
    Index count = 0;
    for (const Index i : this->active()) {
      const auto& slot = this->slots()[i];
      count += slot.parameter_count() + slot.trained_bias_size(bias_size());
    }
    return count;
  }

  /// Step of the dropout sequence that the next forward(x) draws; part of what a checkpoint saves.
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

  /// Runs forward(x) and backward(dy) on `executor`, which must outlive the layer or be replaced.
  void set_executor(Executor& executor) { workspace_ = Workspace(executor); }

  /// Bytes of W0 as stored, the bias, and all adapters.
  [[nodiscard]] std::size_t parameter_bytes() const noexcept {
    std::size_t bytes = this->frozen_weight().bytes() + static_cast<std::size_t>(bias_size()) * sizeof(Scalar);
    for (Index i = 0; i < this->slots().size(); ++i) bytes += this->slots()[i].bytes();
    return bytes;
  }

 private:
  [[nodiscard]] AdapterPasses<Scalar, Weight> passes() const noexcept {
    return {this->frozen_weight(), this->slots(), this->active()};
  }
  [[nodiscard]] Index bias_size() const noexcept { return this->bias().size(); }

  template <class Output>
  [[nodiscard]] MatrixView<Scalar> output(std::string_view operation, const MatrixView<const Scalar>& x,
                                          Output& y) const {
    check_shape(operation, "x", x, -1, in_features());
    const auto out = output_rows<Scalar>(operation, "y", y, x.rows, out_features());
    if (overlap(x, out)) throw ShapeError(operation, "y", "memory apart from x", "overlapping memory");
    return out;
  }

  [[nodiscard]] const Scalar* base_bias() const noexcept { return bias_size() > 0 ? this->bias().data() : nullptr; }

  // bias + the s * lora_bias of what takes part, merged or not; or null.
  [[nodiscard]] const Scalar* effective_bias(Workspace& workspace) const {
    Scalar* total = nullptr;
    for (Index i = 0; i < this->slots().size(); ++i) {
      const auto& slot = this->slots()[i];
      const RowVector<Scalar>& lora_bias = slot.adapter().lora_bias();
      if (lora_bias.size() == 0 || !this->takes_part(i)) continue;
      if (total == nullptr) {
        total = workspace.reserve<Scalar>(Workspace::Slot::bias, out_features());
        for (Index j = 0; j < out_features(); ++j) total[j] = bias_size() > 0 ? this->bias()[j] : Scalar(0);
      }
      for (Index j = 0; j < out_features(); ++j) total[j] += slot.scaling() * lora_bias[j];
    }
    return total != nullptr ? total : base_bias();
  }

  template <class Choice>
  [[nodiscard]] Index position(std::string_view operation, const Choice& choice) const {
    const auto& slots = this->slots();
    if constexpr (std::is_convertible_v<const Choice&, std::string_view>) {
      const std::string_view name = choice;
      return name == base_adapter_name ? base_row : slots.index_of(operation, name);
    } else {
      static_assert(std::is_integral_v<Choice>, "lora: rows choose by a position or a name");
      if (std::cmp_less(choice, base_row) || std::cmp_greater_equal(choice, slots.size())) {
        throw ConfigError(operation, "choices", "positions from -1 to " + std::to_string(slots.size() - 1),
                          std::to_string(choice));
      }
      return static_cast<Index>(choice);
    }
  }

  template <class Choices>
  [[nodiscard]] RowGroups group_rows(std::string_view operation, Index rows, const Choices& choices,
                                     Workspace& workspace) const {
    if (std::cmp_not_equal(std::ranges::size(choices), rows)) {
      throw ShapeError(operation, "choices", std::to_string(rows) + " elements, one a row",
                       std::to_string(std::ranges::size(choices)));
    }
    const Index adapters = this->slots().size();
    Index* memory = workspace.reserve<Index>(Workspace::Slot::bias, rows + RowGroups::scratch(rows, adapters));
    Index* next = memory;
    for (const auto& choice : choices) {
      const Index chosen = position(operation, choice);
      if (chosen >= 0 && this->slots()[chosen].dora().active()) {
        throw ConfigError(operation, "choices", "adapters without use_dora",
                          detail::quoted(this->slots()[chosen].name()));
      }
      *next++ = this->adapters_enabled() ? chosen : base_row;
    }
    return {std::span<const Index>(memory, next), adapters, next};
  }

  void infer_groups(const MatrixView<const Scalar>& x, const RowGroups& groups, const MatrixView<Scalar>& y,
                    Workspace& workspace) const {
    if (groups.sorted()) return infer_sorted(x, groups, y, workspace);
    Scalar* memory = workspace.reserve<Scalar>(Workspace::Slot::factor_gradient, x.rows * (x.cols + y.cols));
    const MatrixView<Scalar> sorted_y{memory, y.rows, y.cols, y.cols, 1};
    const MatrixView<Scalar> sorted_x{memory + y.rows * y.cols, x.rows, x.cols, x.cols, 1};
    groups.gather(x, sorted_x);
    infer_sorted(sorted_x, groups, sorted_y, workspace);
    groups.scatter<Scalar>(sorted_y, y);
  }

  void infer_sorted(const MatrixView<const Scalar>& x, const RowGroups& groups, const MatrixView<Scalar>& y,
                    Workspace& workspace) const {
    this->frozen_weight().product(x, base_bias(), {}, y, workspace);
    for (Index g = 0; g < groups.groups(); ++g) {
      if (groups.choice(g) == base_row) continue;
      const Index rows = groups.end(g) - groups.begin(g);
      add_adapter_to(this->slots()[groups.choice(g)], x.middle_rows(groups.begin(g), rows),
                     y.middle_rows(groups.begin(g), rows), workspace);
    }
  }

  void add_adapter_to(const AdapterSlot<Scalar>& slot, const MatrixView<const Scalar>& x, const MatrixView<Scalar>& y,
                      Workspace& workspace) const {
    const Index r = slot.rank();
    const MatrixView<Scalar> u{workspace.reserve<Scalar>(Workspace::Slot::down_projection, x.rows * r), x.rows, r, r,
                               1};
    const MatrixView<Scalar> f{workspace.reserve<Scalar>(Workspace::Slot::up_factor, r * y.cols), r, y.cols, y.cols, 1};
    kernels::project_down(x, DropoutMask<Scalar>{}, view_of(slot.adapter().A()), Scalar(1), u, workspace.executor());
    AdapterSum<Scalar>::write_up_factor(slot, f);
    kernels::add_project_up<Scalar>(u, f, DropoutMask<Scalar>{}, y, workspace.executor());
    const RowVector<Scalar>& lora_bias = slot.adapter().lora_bias();
    if (lora_bias.size() == 0) return;
    for (Index i = 0; i < y.rows; ++i)
      for (Index j = 0; j < y.cols; ++j) y(i, j) += slot.scaling() * lora_bias[j];
  }

  [[nodiscard]] static auto list_of(Gradients& gradients) {
    return [&gradients](std::size_t i) -> LoraGradients<Scalar>& { return gradients.adapters[i]; };
  }
  [[nodiscard]] auto own_gradients() {
    return [this](std::size_t i) -> LoraGradients<Scalar>& {
      return this->slots()[this->active()[i]].gradients(bias_size());
    };
  }

  // What differentiate() asks where dX goes.
  static constexpr auto no_input_gradient = [](const auto&, const auto&) { return MatrixView<Scalar>{}; };
  template <class InputGradient>
  [[nodiscard]] auto input_gradient_into(InputGradient& dx) const {
    return [&dx, this](const MatrixView<const Scalar>& x, const MatrixView<const Scalar>& dy) {
      const auto rows = output_rows<Scalar>("MultiLoraLinear::backward", "dx", dx, x.rows, in_features());
      if (overlap(rows, dy)) {
        throw ShapeError("MultiLoraLinear::backward", "dx", "memory apart from dy", "overlapping memory");
      }
      return rows;
    };
  }

  template <class Input, class OutputGradient, class GradientsOf, class InputGradientFor>
  void differentiate(const Input& x, const Record& record, const OutputGradient& dy, const GradientsOf& gradients_of,
                     const InputGradientFor& dx_for, Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& x_rows) {
      with_rows<Scalar>(dy, [&](const MatrixView<const Scalar>& dy_rows) {
        check_backward(x_rows, record, dy_rows, gradients_of);
        const MatrixView<Scalar> dx = dx_for(x_rows, dy_rows);
        passes().backward(x_rows, record, dy_rows, gradients_of, dx, workspace);
      });
    });
  }

  template <class GradientsOf>
  void check_backward(const MatrixView<const Scalar>& x, const Record& record, const MatrixView<const Scalar>& dy,
                      const GradientsOf& gradients_of) const {
    constexpr std::string_view operation = "MultiLoraLinear::backward";
    this->require_nothing_merged(operation, "layer");
    if (record.rows() < 0) throw StateError(operation, "record", "one that forward has filled", "a new one");
    if (!passes().fits(record)) {
      throw StateError(operation, "record", "one that forward has filled with the adapters that are active now",
                       "one of other adapters");
    }
    check_shape(operation, "x", x, record.rows(), in_features());
    check_shape(operation, "dy", dy, record.rows(), out_features());
    for (std::size_t i = 0; i < this->active().size(); ++i) {
      const AdapterSlot<Scalar>& slot = this->slots()[this->active()[i]];
      const LoraGradients<Scalar>& gradients = gradients_of(i);
      check_shape(operation, "gradients.A", gradients.A, slot.rank(), in_features());
      check_shape(operation, "gradients.B", gradients.B, out_features(), slot.rank());
      check_shape(operation, "gradients.lora_bias", gradients.lora_bias, 1, slot.adapter().lora_bias().size());
      check_shape(operation, "gradients.bias", gradients.bias, 1, slot.trained_bias_size(bias_size()));
      check_shape(operation, "gradients.magnitude", gradients.magnitude, 1, slot.dora().value().size());
    }
  }

  void check_count(const Gradients& gradients) const {
    if (gradients.adapters.size() != this->active().size()) {
      throw ShapeError("MultiLoraLinear::backward", "gradients.adapters",
                       std::to_string(this->active().size()) + " elements, one an active adapter",
                       std::to_string(gradients.adapters.size()));
    }
  }

  [[nodiscard]] MatrixView<const Scalar> remembered(std::string_view operation) const {
    if (record_.rows() < 0) {
      throw StateError(operation, "layer", "a forward(x) in training mode before", "none");
    }
    return remembered_x_.view(record_.rows(), in_features());
  }

  Record record_;
  RememberedInput<Scalar> remembered_x_;
  Workspace workspace_;
  std::uint64_t dropout_step_ = 0;
};

}  // namespace lora
