// MergedLinear: a frozen linear layer whose outputs are several projections, with trainable factors for some of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/layers/frozen_linear.hpp"
#include "lora/layers/merge_state.hpp"
#include "lora/layers/merged_linear_adapter.hpp"
#include "lora/layers/remembered_input.hpp"
#include "lora/layers/rows.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/merge_undo.hpp"
#include "lora/weight/packed.hpp"

namespace lora {

/// One frozen linear layer that holds G = enable_lora.size() projections stacked, as attention keeps query, key and
/// value in one weight. Projection g has the m = out_features / G outputs from g m on. For the e-th enabled one
///   y_g = W0_g x + bias_g + s B_e A_e drop(x),   s = alpha / rank (or alpha / sqrt(rank)),
/// with A_e rows [e r, (e+1) r) of A (r E x in_features), B_e rows [e m, (e+1) m) of B (m E x r), E the number of
/// enabled projections; the others are the frozen layer, bit for bit. All see one dropout mask.
///
/// Over rows: U = drop(X) A^T (N x r E), and block g of Y gains s U_e B_e^T. Backward: dB_e = s dY_g^T U_e;
/// dA = V^T drop(X) with V_e = s dY_g B_e; dX = dY W0 + drop'(V A); dbias = sum of dY where the bias trains.
/// Nothing is computed, stored or written for W0.
///
/// Forms of the passes, accepted inputs, and threads: as LoraLinear.
///
/// Source: microsoft/LoRA, loralib, MergedLinear; arXiv 2106.09685, section 4.2.
template <RealScalar ScalarType, FrozenWeight WeightType = PackedWeight<ScalarType>>
class MergedLinear : public MergeState<MergedLinear<ScalarType, WeightType>> {
 public:
  using Scalar = ScalarType;
  using Weight = WeightType;
  using Record = LoraRecord<Scalar>;
  using Gradients = LoraGradients<Scalar>;
  static_assert(std::is_same_v<Scalar, typename Weight::Scalar>, "lora: the weight's scalar type is not the layer's");

  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression: out_features x in_features, or
  /// in_features x out_features with `config.fan_in_fan_out`. `bias` is a vector of out_features; `enable_lora` has an
  /// entry for each projection; `config.rank` is that of one projection.
  /// @throws ShapeError; ConfigError when out_features is no multiple of the number of projections, when nothing is
  /// enabled with rank 1 or more, or when lora_bias, use_dora or an initialisation from the weight is asked for;
  /// std::bad_alloc
  template <class W, class B>
  MergedLinear(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, std::vector<bool> enable_lora,
               const LoraConfig& config, std::uint64_t seed)
      : MergedLinear(Base::weight_from(w0, config.fan_in_fan_out), bias, std::move(enable_lora), config, seed) {}

  /// Without bias.
  template <class W>
  MergedLinear(const Eigen::DenseBase<W>& w0, std::vector<bool> enable_lora, const LoraConfig& config,
               std::uint64_t seed)
      : MergedLinear(Base::weight_from(w0, config.fan_in_fan_out), std::move(enable_lora), config, seed) {}

  /// Wraps a frozen weight of any kind, which is always out_features x in_features: its maker has seen to the
  /// orientation, and `config.fan_in_fan_out` decides how weight() and delta_weight() are handed out.
  template <class B>
  MergedLinear(Weight weight, const Eigen::DenseBase<B>& bias, std::vector<bool> enable_lora, const LoraConfig& config,
               std::uint64_t seed)
      : MergedLinear(std::move(weight), std::move(enable_lora), config, seed) {
    base_.set_bias("MergedLinear", bias);
  }

  MergedLinear(Weight weight, std::vector<bool> enable_lora, const LoraConfig& config, std::uint64_t seed)
      : base_("MergedLinear", std::move(weight), config.fan_in_fan_out),
        adapter_("MergedLinear", base_.weight.in_features(), base_.weight.out_features(), std::move(enable_lora),
                 config, seed) {}

  [[nodiscard]] Index in_features() const noexcept { return base_.weight.in_features(); }
  [[nodiscard]] Index out_features() const noexcept { return base_.weight.out_features(); }
  /// Of each projection.
  [[nodiscard]] Index rank() const noexcept { return adapter_.rank(); }
  [[nodiscard]] const std::vector<bool>& enable_lora() const noexcept { return adapter_.enable_lora(); }
  [[nodiscard]] Scalar scaling() const noexcept { return adapter_.scaling(); }
  [[nodiscard]] const LoraConfig& config() const noexcept { return adapter_.config(); }
  [[nodiscard]] std::uint64_t seed() const noexcept { return adapter_.seed(); }

  /// r E x in_features.
  [[nodiscard]] const Matrix<Scalar>& lora_A() const noexcept { return adapter_.A(); }
  /// (out_features / G) E x r.
  [[nodiscard]] const Matrix<Scalar>& lora_B() const noexcept { return adapter_.B(); }
  /// Empty without bias.
  [[nodiscard]] const RowVector<Scalar>& bias() const noexcept { return base_.bias; }
  [[nodiscard]] bool has_bias() const noexcept { return base_.bias.size() > 0; }
  [[nodiscard]] const Weight& frozen_weight() const noexcept { return base_.weight; }

  /// The weight as inference uses it now, merged or not, oriented as the caller stores it. A copy.
  [[nodiscard]] Matrix<Scalar> weight() const {
    return base_.oriented([&](const MatrixView<Scalar>& out) { read_back(base_.weight, out); });
  }
  /// W0, whether or not the layer is merged, oriented as the caller stores it. A copy, equal bit for bit to what was
  /// given.
  [[nodiscard]] Matrix<Scalar> base_weight() const {
    if (!this->merged()) return weight();
    return base_.oriented([&](const MatrixView<Scalar>& out) { merge_undo_.read_unmerged(base_.weight, out); });
  }
  /// s*B_e*A_e in the rows of the enabled projections, zero elsewhere (transposed with fan_in_fan_out): what merging
  /// adds, bit for bit.
  [[nodiscard]] Matrix<Scalar> delta_weight() const {
    const Matrix<Scalar> b = adapter_.expanded_B();
    return base_.oriented([&](const MatrixView<Scalar>& out) { write_delta(update(b), out); });
  }

  /// Replaces A and B. @throws ShapeError; StateError while merged. Then nothing has changed.
  template <class A, class B>
  void set_factors(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    this->require_unmerged("MergedLinear::set_factors");
    check_shape("MergedLinear::set_factors", "A", a, lora_A().rows(), lora_A().cols());
    check_shape("MergedLinear::set_factors", "B", b, lora_B().rows(), lora_B().cols());
    Matrix<Scalar> new_a = a.derived();
    Matrix<Scalar> new_b = b.derived();
    adapter_.A().swap(new_a);
    adapter_.B().swap(new_b);
  }
  /// Changes alpha, and with it the scaling. @throws ConfigError; StateError while merged.
  void set_alpha(double alpha) {
    this->require_unmerged("MergedLinear::set_alpha");
    adapter_.set_alpha("MergedLinear::set_alpha", alpha);
  }

  /// Replaces the adapter by a fresh one for the same projections, with its gradients and optimiser state; the layer's
  /// modes stay. Handles from parameters() become invalid. @throws ConfigError, also when config.fan_in_fan_out differs
  /// from the layer's; StateError while merged. Then nothing has changed.
  void reset_adapter(const LoraConfig& config, std::uint64_t seed) {
    constexpr std::string_view operation = "MergedLinear::reset_adapter";
    this->require_unmerged(operation);
    if (config.fan_in_fan_out != this->config().fan_in_fan_out) {
      throw ConfigError(operation, "fan_in_fan_out", config.fan_in_fan_out ? "false" : "true",
                        config.fan_in_fan_out ? "true" : "false");
    }
    adapter_ = MergedLinearAdapter<Scalar>(operation, in_features(), out_features(), enable_lora(), config, seed);
    gradients_ = {};
    states_ = {};
    record_.clear();
    dropout_step_ = 0;
  }

  /// The layer's answer without dropout, or X W^T + bias while merged. Allocates the result and scratch. Reentrant.
  /// @throws ShapeError
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
      const auto out = output("MergedLinear::infer", rows, y);
      base_.weight.product(rows, bias_or_null(), {}, out, workspace);
      if (!this->merged()) adapter_.infer(rows, out, workspace);
    });
  }

  /// The forward pass of training, with dropout at `record.position`. Fills `record` for backward. Reentrant.
  /// @throws ShapeError; StateError while merged
  template <class Input, class Output>
  void forward(const Input& x, Record& record, Output&& y, Workspace& workspace) const {
    this->require_unmerged("MergedLinear::forward");
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const auto out = output("MergedLinear::forward", rows, y);
      adapter_.project(rows, record, workspace);
      base_.weight.product(rows, bias_or_null(), {}, out, workspace);
      adapter_.add(record, out, workspace);
    });
  }

  /// Gradients of the right shapes, zero.
  [[nodiscard]] Gradients make_gradients() const {
    Gradients gradients;
    gradients.A = Matrix<Scalar>::Zero(lora_A().rows(), lora_A().cols());
    gradients.B = Matrix<Scalar>::Zero(lora_B().rows(), lora_B().cols());
    gradients.bias = RowVector<Scalar>::Zero(trained_bias_size());
    return gradients;
  }

  /// Adds the gradients of the trainable parameters for the pass that took `x` and filled `record`. Reentrant for
  /// different `gradients`. @throws ShapeError; StateError while merged. Then nothing has changed.
  template <class Input, class OutputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const auto& x_rows) {
      with_rows<Scalar>(dy, [&](const auto& dy_rows) {
        check_backward(x_rows, record, dy_rows, gradients);
        parameter_gradients(x_rows, record, dy_rows, gradients, workspace);
      });
    });
  }
  /// The same, and writes dX into `dx`, of x's shape, which does not overlap `dy`.
  template <class Input, class OutputGradient, class InputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                InputGradient&& dx, Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const auto& x_rows) {
      with_rows<Scalar>(dy, [&](const auto& dy_rows) {
        check_backward(x_rows, record, dy_rows, gradients);
        const auto dx_rows = output_rows<Scalar>("MergedLinear::backward", "dx", dx, x_rows.rows, in_features());
        if (overlap(dx_rows, dy_rows)) {
          throw ShapeError("MergedLinear::backward", "dx", "memory apart from dy", "overlapping memory");
        }
        const auto v = parameter_gradients(x_rows, record, dy_rows, gradients, workspace);
        input_gradient(dy_rows, v, record, dx_rows, workspace);
      });
    });
  }

  /// In training mode the forward pass of training, remembering x (a copy) and the record; else infer(x).
  /// @throws ShapeError; StateError in training mode while merged
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

  /// Adds to the gradients for the last forward pass of training and returns dX, of dY's kind.
  /// @throws ShapeError; StateError before any such pass, or while merged
  template <class OutputGradient>
  auto backward(const OutputGradient& dy) {
    auto dx = RowsOf<OutputGradient>::make_output(dy, in_features());
    backward(dy, dx);
    return dx;
  }
  /// The same, writing dX into `dx`. Allocates only to grow what the layer keeps.
  template <class OutputGradient, class InputGradient>
  void backward(const OutputGradient& dy, InputGradient&& dx) {
    backward(remembered("MergedLinear::backward").map(), record_, dy, gradients(), dx, workspace_);
  }
  /// The same without dX: for the first layer of a network.
  template <class OutputGradient>
  void accumulate_gradients(const OutputGradient& dy) {
    backward(remembered("MergedLinear::accumulate_gradients").map(), record_, dy, gradients(), workspace_);
  }

  /// The gradients backward(dy) adds to; memory for them comes with the first use.
  [[nodiscard]] Gradients& gradients() {
    if (gradients_.A.rows() != lora_A().rows() || gradients_.A.cols() != in_features()) gradients_ = make_gradients();
    return gradients_;
  }
  void zero_grad() noexcept { gradients_.set_zero(); }

  /// Handles on what trains, by loralib's names: "lora_A", "lora_B", then "bias" where it trains. Values cannot be
  /// changed through them while the layer is merged. Valid while the layer stays where it is.
  [[nodiscard]] ParameterList<Scalar> parameters() {
    ParameterList<Scalar> list;
    Gradients& g = gradients();
    const auto add = [&](const char* name, ParameterRole role, auto& value, auto& gradient) {
      list.add_trained(name, role, value, gradient, states_, this->merged_flag());
    };
    add("lora_A", ParameterRole::lora_A, adapter_.A(), g.A);
    add("lora_B", ParameterRole::lora_B, adapter_.B(), g.B);
    add("bias", ParameterRole::bias, base_.bias, g.bias);
    return list;
  }

  /// Number of scalars that train.
  [[nodiscard]] Index trainable_parameter_count() const noexcept {
    return lora_A().size() + lora_B().size() + trained_bias_size();
  }

  /// Step of the dropout sequence that the next forward(x) draws; part of what a checkpoint saves.
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

  /// Runs forward(x) and backward(dy) on `executor`, which must outlive the layer or be replaced.
  void set_executor(Executor& executor) { workspace_ = Workspace(executor); }

  /// Bytes held beyond W0 while merged, without the copies of the factors.
  [[nodiscard]] std::size_t merge_bytes() const noexcept { return merge_undo_.bytes(); }
  /// Bytes of W0 as stored, the factors and the bias.
  [[nodiscard]] std::size_t parameter_bytes() const noexcept {
    const Index scalars = lora_A().size() + lora_B().size() + base_.bias.size();
    return base_.weight.bytes() + static_cast<std::size_t>(scalars) * sizeof(Scalar);
  }

 private:
  using Base = FrozenLinear<Scalar, Weight>;

  friend class MergeState<MergedLinear>;

  // The update of the whole weight; `b` is expanded_B().
  [[nodiscard]] LowRankUpdate<Scalar> update(const Matrix<Scalar>& b) const noexcept {
    return {view_of(lora_A()), view_of(b), scaling()};
  }

  [[nodiscard]] bool merges_weights() const noexcept { return config().merge_weights; }
  void apply_merge() {
    const Matrix<Scalar> b = adapter_.expanded_B();
    merge_undo_ = MergeUndo<Scalar>::merge("MergedLinear::merge", base_.weight, update(b));
  }
  void apply_unmerge() noexcept {
    merge_undo_.unmerge(base_.weight);
    merge_undo_ = {};
  }
  void drop_merged_adapter() {
    const LoraConfig plain{
        .rank = 0, .fan_in_fan_out = config().fan_in_fan_out, .merge_weights = config().merge_weights};
    adapter_ = MergedLinearAdapter<Scalar>("MergedLinear::merge_and_unload", in_features(), out_features(),
                                           enable_lora(), plain, 0);
    merge_undo_ = {};
    gradients_ = {};
    states_ = {};
    record_.clear();
    dropout_step_ = 0;
  }

  template <class Output>
  [[nodiscard]] MatrixView<Scalar> output(std::string_view operation, const MatrixView<const Scalar>& x,
                                          Output& y) const {
    check_shape(operation, "x", x, -1, in_features());
    const auto out = output_rows<Scalar>(operation, "y", y, x.rows, out_features());
    if (overlap(x, out)) throw ShapeError(operation, "y", "memory apart from x", "overlapping memory");
    return out;
  }

  [[nodiscard]] const Scalar* bias_or_null() const noexcept { return has_bias() ? base_.bias.data() : nullptr; }

  // Returns V for the input's gradient.
  MatrixView<const Scalar> parameter_gradients(const MatrixView<const Scalar>& x, const Record& record,
                                               const MatrixView<const Scalar>& dy, Gradients& gradients,
                                               Workspace& workspace) const {
    if (gradients.bias.size() > 0) LoraAdapter<Scalar>::add_column_sums(dy, Scalar(1), gradients.bias);
    if (rank() == 0) return {nullptr, dy.rows, 0, 0, 1};
    return adapter_.backward(x, record, dy, gradients, workspace);
  }

  void input_gradient(const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& v, const Record& record,
                      const MatrixView<Scalar>& dx, Workspace& workspace) const {
    const auto mask = adapter_.mask(record);
    const MatrixView<const Scalar> a = view_of(lora_A());
    const bool rides_along = rank() > 0 && !mask.active();
    base_.weight.product_transposed(dy, rides_along ? LowRankTerm<Scalar>{v, a} : LowRankTerm<Scalar>{}, dx, workspace);
    if (rank() > 0 && mask.active()) kernels::add_project_up(v, a, mask, dx, workspace.executor());
  }

  void check_backward(const MatrixView<const Scalar>& x, const Record& record, const MatrixView<const Scalar>& dy,
                      const Gradients& gradients) const {
    constexpr std::string_view operation = "MergedLinear::backward";
    this->require_unmerged(operation);
    if (record.rows() < 0) throw StateError(operation, "record", "one that forward has filled", "a new one");
    check_shape(operation, "record", record.down_projection(), -1, adapter_.total_rank());
    if (!adapter_.fits(record, record.rows())) {
      throw ShapeError(operation, "record", "one that this layer's forward has filled", "another layer's dropout mask");
    }
    check_shape(operation, "x", x, record.rows(), in_features());
    check_shape(operation, "dy", dy, record.rows(), out_features());
    check_shape(operation, "gradients.A", gradients.A, lora_A().rows(), lora_A().cols());
    check_shape(operation, "gradients.B", gradients.B, lora_B().rows(), lora_B().cols());
    check_shape(operation, "gradients.bias", gradients.bias, 1, trained_bias_size());
  }

  [[nodiscard]] Index trained_bias_size() const noexcept { return config().trains_bias() ? base_.bias.size() : 0; }

  [[nodiscard]] MatrixView<const Scalar> remembered(std::string_view operation) const {
    if (record_.rows() < 0) {
      throw StateError(operation, "layer", "a forward(x) in training mode before", "none");
    }
    return remembered_x_.view(record_.rows(), in_features());
  }

  Base base_;
  MergedLinearAdapter<Scalar> adapter_;
  MergeUndo<Scalar> merge_undo_;
  Gradients gradients_;
  std::array<Moments<Scalar>, 3> states_;
  Record record_;
  RememberedInput<Scalar> remembered_x_;
  Workspace workspace_;
  std::uint64_t dropout_step_ = 0;
};

}  // namespace lora
