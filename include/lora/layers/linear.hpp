// LoraLinear: a frozen linear layer with trainable low-rank factors.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/adapter/adaptation.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/layers/frozen_linear.hpp"
#include "lora/layers/merge_state.hpp"
#include "lora/layers/remembered_input.hpp"
#include "lora/layers/rows.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/merge_undo.hpp"
#include "lora/weight/packed.hpp"

namespace lora {

/// y = W0 x + bias + s * B A drop(x), with W0 frozen, A (rank x in_features) and B (out_features x rank) trainable,
/// s = alpha / rank (or alpha / sqrt(rank)). Over rows: Y (N x d) = X W0^T + bias + s (drop(X) A^T) B^T.
///
/// Backward: dB = s dY^T U with U = drop(X) A^T; dA = V^T drop(X) with V = s dY B; dX = dY W0 + drop'(V A);
/// dbias = sum of dY over rows where the bias trains. Nothing is computed, stored or written for W0. With use_dora a
/// trainable magnitude scales every output; adapter/dora.hpp has the formulas.
///
/// Two forms of every pass:
/// - `forward(x)`, `backward(dy)`: the layer remembers the pass; one thread at a time.
/// - `infer(x, y, workspace)`, `forward(x, record, y, workspace)`, `backward(x, record, dy, gradients, ...)`: const,
///   reentrant, over memory the caller owns; allocates only to grow the record and the workspace.
///
/// Inputs are Eigen matrices of rows, vectors, maps or blocks of any storage order (read in place), and, with
/// layers/tensor.hpp, row-major Eigen tensors whose last dimension is features.
///
/// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.
template <RealScalar ScalarType, FrozenWeight WeightType = PackedWeight<ScalarType>>
class LoraLinear : public MergeState<LoraLinear<ScalarType, WeightType>> {
 public:
  using Scalar = ScalarType;
  using Weight = WeightType;
  using Record = LoraRecord<Scalar>;
  using Gradients = LoraGradients<Scalar>;
  static_assert(std::is_same_v<Scalar, typename Weight::Scalar>, "lora: the weight's scalar type is not the layer's");

  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression: out_features x in_features, or
  /// in_features x out_features with `config.fan_in_fan_out`. `bias` is a vector of out_features.
  /// @throws ShapeError, ConfigError, std::bad_alloc
  template <class W, class B>
  LoraLinear(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, const LoraConfig& config,
             std::uint64_t seed)
      : LoraLinear(Base::weight_from(w0, config.fan_in_fan_out), bias, config, seed) {}

  /// Without bias.
  template <class W>
  LoraLinear(const Eigen::DenseBase<W>& w0, const LoraConfig& config, std::uint64_t seed)
      : LoraLinear(Base::weight_from(w0, config.fan_in_fan_out), config, seed) {}

  /// Wraps a frozen weight of any kind, which is always out_features x in_features: its maker has seen to the
  /// orientation, and `config.fan_in_fan_out` decides how weight() and delta_weight() are handed out.
  template <class B>
  LoraLinear(Weight weight, const Eigen::DenseBase<B>& bias, const LoraConfig& config, std::uint64_t seed)
      : LoraLinear(std::move(weight), config, seed) {
    base_.set_bias("LoraLinear", bias);
  }

  /// With pissa and olora the weight becomes the residual W0 - s*B*A, in the caller's memory where it is a view.
  /// @throws as above, and StateError when pissa or olora meet a weight that is read-only.
  LoraLinear(Weight weight, const LoraConfig& config, std::uint64_t seed)
      : base_("LoraLinear", std::move(weight), config.fan_in_fan_out),
        adaptation_(make_adaptation("LoraLinear", base_.weight, config, seed)) {}

  [[nodiscard]] Index in_features() const noexcept { return base_.weight.in_features(); }
  [[nodiscard]] Index out_features() const noexcept { return base_.weight.out_features(); }
  [[nodiscard]] Index rank() const noexcept { return adapter().rank(); }
  [[nodiscard]] Scalar scaling() const noexcept { return adapter().scaling(); }
  [[nodiscard]] const LoraConfig& config() const noexcept { return adapter().config(); }
  [[nodiscard]] std::uint64_t seed() const noexcept { return adapter().seed(); }

  [[nodiscard]] const Matrix<Scalar>& lora_A() const noexcept { return adapter().A(); }
  [[nodiscard]] const Matrix<Scalar>& lora_B() const noexcept { return adapter().B(); }
  [[nodiscard]] const RowVector<Scalar>& lora_bias() const noexcept { return adapter().lora_bias(); }
  /// DoRA's magnitude, out_features scalars; empty without use_dora.
  [[nodiscard]] const RowVector<Scalar>& magnitude() const noexcept { return dora().value(); }
  /// Empty without bias.
  [[nodiscard]] const RowVector<Scalar>& bias() const noexcept { return base_.bias; }
  [[nodiscard]] bool has_bias() const noexcept { return base_.bias.size() > 0; }
  [[nodiscard]] const Weight& frozen_weight() const noexcept { return base_.weight; }

  /// The weight as inference uses it now, merged or not, oriented as the caller stores it. A copy.
  [[nodiscard]] Matrix<Scalar> weight() const {
    return base_.oriented([&](const MatrixView<Scalar>& out) { read_back(base_.weight, out); });
  }
  /// W0, whether or not the layer is merged, oriented as the caller stores it. A copy, equal bit for bit to what was
  /// given; after pissa and olora, to the residual.
  [[nodiscard]] Matrix<Scalar> base_weight() const {
    if (!this->merged()) return weight();
    return base_.oriented([&](const MatrixView<Scalar>& out) { merge_undo_.read_unmerged(base_.weight, out); });
  }
  /// s*B*A (its transpose with fan_in_fan_out): what merging adds, bit for bit. Merging with DoRA then multiplies every
  /// output's weights by its magnitude over their norm, which this leaves out, as PEFT's get_delta_weight does.
  [[nodiscard]] Matrix<Scalar> delta_weight() const {
    return base_.oriented([&](const MatrixView<Scalar>& out) { write_delta(adapter().update(), out); });
  }

  /// Replaces A and B; the magnitude of DoRA stays. @throws ShapeError; StateError while merged. Then nothing has
  /// changed.
  template <class A, class B>
  void set_factors(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    this->require_unmerged("LoraLinear::set_factors");
    check_shape("LoraLinear::set_factors", "A", a, rank(), in_features());
    check_shape("LoraLinear::set_factors", "B", b, out_features(), rank());
    Matrix<Scalar> new_a = a.derived();
    Matrix<Scalar> new_b = b.derived();
    adapter().A().swap(new_a);
    adapter().B().swap(new_b);
  }
  /// Replaces the bias of B. @throws ShapeError; StateError while merged.
  template <class B>
  void set_lora_bias(const Eigen::DenseBase<B>& lora_bias) {
    this->require_unmerged("LoraLinear::set_lora_bias");
    check_shape("LoraLinear::set_lora_bias", "lora_bias", lora_bias, 1, adapter().lora_bias().size());
    adapter().lora_bias() = lora_bias.derived();
  }
  /// Replaces the magnitude of DoRA. @throws ShapeError, also without use_dora; StateError while merged.
  template <class M>
  void set_magnitude(const Eigen::DenseBase<M>& magnitude) {
    this->require_unmerged("LoraLinear::set_magnitude");
    check_shape("LoraLinear::set_magnitude", "magnitude", magnitude, 1, dora().value().size());
    dora().value() = magnitude.derived();
  }
  /// Changes alpha, and with it the scaling. @throws ConfigError; StateError while merged.
  void set_alpha(double alpha) {
    this->require_unmerged("LoraLinear::set_alpha");
    adapter().set_alpha("LoraLinear::set_alpha", alpha);
  }
  /// Replaces the adapter by a fresh one, with its gradients and optimiser state; the layer's modes stay. W0 is what it
  /// is: after pissa or olora the residual, from which these take again. Handles from parameters() become invalid.
  /// @throws ConfigError, also when config.fan_in_fan_out differs from the layer's; StateError while merged, or as the
  /// constructor. Then nothing has changed.
  void reset_adapter(const LoraConfig& config, std::uint64_t seed) {
    constexpr std::string_view operation = "LoraLinear::reset_adapter";
    this->require_unmerged(operation);
    if (config.fan_in_fan_out != this->config().fan_in_fan_out) {
      throw ConfigError(operation, "fan_in_fan_out", config.fan_in_fan_out ? "false" : "true",
                        config.fan_in_fan_out ? "true" : "false");
    }
    adaptation_ = make_adaptation(operation, base_.weight, config, seed);
    gradients_ = {};
    states_ = {};
    record_.clear();
    dropout_step_ = 0;
  }

  /// The layer's answer without dropout: Y as above with drop(X) = X, or X W^T + bias while merged.
  /// Allocates the result and scratch. Reentrant. @throws ShapeError
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
      const auto out = output("LoraLinear::infer", rows, y);
      const auto term = this->merged() ? LowRankTerm<Scalar>{} : adapter().infer(rows, workspace);
      const Scalar* bias = effective_bias(workspace);
      if (dora().active() && !this->merged()) {
        dora().infer(base_.weight, adapter().update(), rows, bias, term, out, workspace);
      } else {
        base_.weight.product(rows, bias, term, out, workspace);
      }
    });
  }

  /// The forward pass of training, with dropout at `record.position`. Fills `record` for backward. Reentrant.
  /// @throws ShapeError; StateError while merged
  template <class Input, class Output>
  void forward(const Input& x, Record& record, Output&& y, Workspace& workspace) const {
    this->require_unmerged("LoraLinear::forward");
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const auto out = output("LoraLinear::forward", rows, y);
      const auto term = adapter().forward(rows, record, workspace);
      const Scalar* bias = effective_bias(workspace);
      if (dora().active()) {
        dora().forward(base_.weight, adapter().update(), rows, adapter().mask(record), bias, term, record, out,
                       workspace);
      } else {
        base_.weight.product(rows, bias, term, out, workspace);
      }
    });
  }

  /// Gradients of the right shapes, zero.
  [[nodiscard]] Gradients make_gradients() const {
    return {Matrix<Scalar>::Zero(rank(), in_features()), Matrix<Scalar>::Zero(out_features(), rank()),
            RowVector<Scalar>::Zero(lora_bias().size()), RowVector<Scalar>::Zero(trained_bias_size()),
            RowVector<Scalar>::Zero(magnitude().size())};
  }

  /// Adds the gradients of the trainable parameters for the pass that took `x` and filled `record`. Reentrant for
  /// different `gradients`. @throws ShapeError; StateError while merged. Then nothing has changed.
  template <class Input, class OutputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const auto& x_rows) {
      with_rows<Scalar>(dy, [&](const auto& dy_rows) {
        check_backward(x_rows, record, dy_rows, gradients);
        differentiate(x_rows, record, dy_rows, gradients, nullptr, workspace);
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
        const auto dx_rows = output_rows<Scalar>("LoraLinear::backward", "dx", dx, x_rows.rows, in_features());
        if (overlap(dx_rows, dy_rows)) {
          throw ShapeError("LoraLinear::backward", "dx", "memory apart from dy", "overlapping memory");
        }
        differentiate(x_rows, record, dy_rows, gradients, &dx_rows, workspace);
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
    backward(remembered("LoraLinear::backward").map(), record_, dy, gradients(), dx, workspace_);
  }
  /// The same without dX: for the first layer of a network.
  template <class OutputGradient>
  void accumulate_gradients(const OutputGradient& dy) {
    backward(remembered("LoraLinear::accumulate_gradients").map(), record_, dy, gradients(), workspace_);
  }

  /// The gradients backward(dy) adds to; memory for them comes with the first use.
  [[nodiscard]] Gradients& gradients() {
    if (gradients_.A.rows() != rank() || gradients_.A.cols() != in_features()) gradients_ = make_gradients();
    return gradients_;
  }
  void zero_grad() noexcept { gradients_.set_zero(); }

  /// Handles on what trains: "lora_A.weight", "lora_B.weight", then "lora_magnitude_vector.weight", "lora_B.bias" and
  /// "bias" where they train.
  /// Values cannot be changed through them while the layer is merged. Valid while the layer stays where it is. Without
  /// allocation once gradients() has its memory, but for the long name of the magnitude: steady steps keep the list.
  [[nodiscard]] ParameterList<Scalar> parameters() {
    ParameterList<Scalar> list;
    Gradients& g = gradients();
    const auto add = [&](const char* name, ParameterRole role, auto& value, auto& gradient) {
      list.add_trained(name, role, value, gradient, states_, this->merged_flag());
    };
    add("lora_A.weight", ParameterRole::lora_A, adapter().A(), g.A);
    add("lora_B.weight", ParameterRole::lora_B, adapter().B(), g.B);
    add("lora_magnitude_vector.weight", ParameterRole::magnitude, dora().value(), g.magnitude);
    add("lora_B.bias", ParameterRole::lora_bias, adapter().lora_bias(), g.lora_bias);
    add("bias", ParameterRole::bias, base_.bias, g.bias);
    return list;
  }

  /// Number of scalars that train.
  [[nodiscard]] Index trainable_parameter_count() const noexcept {
    return lora_A().size() + lora_B().size() + magnitude().size() + lora_bias().size() + trained_bias_size();
  }

  /// Step of the dropout sequence that the next forward(x) draws; part of what a checkpoint saves.
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

  /// Runs forward(x) and backward(dy) on `executor`, which must outlive the layer or be replaced.
  void set_executor(Executor& executor) { workspace_ = Workspace(executor); }

  /// Bytes held beyond W0 while merged, without the copies of the factors.
  [[nodiscard]] std::size_t merge_bytes() const noexcept { return merge_undo_.bytes(); }
  /// Bytes of W0 as stored, the factors, the magnitude with the norms of W0, and the bias.
  [[nodiscard]] std::size_t parameter_bytes() const noexcept {
    const Index scalars = lora_A().size() + lora_B().size() + lora_bias().size() + base_.bias.size();
    return base_.weight.bytes() + dora().bytes() + static_cast<std::size_t>(scalars) * sizeof(Scalar);
  }

 private:
  using Base = FrozenLinear<Scalar, Weight>;

  friend class MergeState<LoraLinear>;

  [[nodiscard]] const LoraAdapter<Scalar>& adapter() const noexcept { return adaptation_.adapter; }
  [[nodiscard]] LoraAdapter<Scalar>& adapter() noexcept { return adaptation_.adapter; }
  [[nodiscard]] const DoraMagnitude<Scalar>& dora() const noexcept { return adaptation_.dora; }
  [[nodiscard]] DoraMagnitude<Scalar>& dora() noexcept { return adaptation_.dora; }

  [[nodiscard]] bool merges_weights() const noexcept { return config().merge_weights; }
  void apply_merge() {
    std::span<const Scalar> factors;
    if (dora().active()) factors = dora().factors(base_.weight, adapter().update(), workspace_);
    merge_undo_ = MergeUndo<Scalar>::merge("LoraLinear::merge", base_.weight, adapter().update(), factors);
  }
  void apply_unmerge() noexcept {
    merge_undo_.unmerge(base_.weight);
    merge_undo_ = {};
  }
  void drop_merged_adapter() {
    const LoraConfig plain{
        .rank = 0, .fan_in_fan_out = config().fan_in_fan_out, .merge_weights = config().merge_weights};
    RowVector<Scalar> bias = base_.bias;
    if (config().lora_bias) {
      if (!has_bias()) bias = RowVector<Scalar>::Zero(out_features());
      bias += scaling() * lora_bias();
    }
    adaptation_ = make_adaptation("LoraLinear::merge_and_unload", base_.weight, plain, 0);
    base_.bias.swap(bias);
    merge_undo_ = {};
    gradients_ = {};
    states_ = {};
    record_.clear();
  }

  template <class Output>
  [[nodiscard]] MatrixView<Scalar> output(std::string_view operation, const MatrixView<const Scalar>& x,
                                          Output& y) const {
    check_shape(operation, "x", x, -1, in_features());
    const auto out = output_rows<Scalar>(operation, "y", y, x.rows, out_features());
    if (overlap(x, out)) throw ShapeError(operation, "y", "memory apart from x", "overlapping memory");
    return out;
  }

  // bias + s * lora_bias, or null. lora_bias counts whether the layer is merged or not.
  [[nodiscard]] const Scalar* effective_bias(Workspace& workspace) const {
    if (!config().lora_bias) return has_bias() ? base_.bias.data() : nullptr;
    auto* sum = workspace.reserve<Scalar>(Workspace::Slot::bias, out_features());
    for (Index j = 0; j < out_features(); ++j)
      sum[j] = (has_bias() ? base_.bias[j] : Scalar(0)) + scaling() * lora_bias()[j];
    return sum;
  }

  // Adds the gradients of the parameters, and writes dX where `dx` is not null.
  void differentiate(const MatrixView<const Scalar>& x, const Record& record, const MatrixView<const Scalar>& dy,
                     Gradients& gradients, const MatrixView<Scalar>* dx, Workspace& workspace) const {
    if (gradients.bias.size() > 0) adapter().add_column_sums(dy, Scalar(1), gradients.bias);
    const auto dz = dora().active() ? dora().backward(record, dy, gradients.magnitude, workspace) : dy;
    LowRankTerm<Scalar> term;
    if (rank() > 0) term = {adapter().backward(x, record, dz, gradients, workspace), view_of(lora_A())};
    if (dx == nullptr) return;
    const auto mask = adapter().mask(record);
    if (!mask.active()) {
      base_.weight.product_transposed(dz, term, *dx, workspace);
    } else if (dora().active()) {
      dora().input_gradient(base_.weight, dy, term, mask, *dx, workspace);
    } else {
      base_.weight.product_transposed(dy, {}, *dx, workspace);
      if (rank() > 0) kernels::add_project_up(term.down, term.up, mask, *dx, workspace.executor());
    }
  }

  void check_backward(const MatrixView<const Scalar>& x, const Record& record, const MatrixView<const Scalar>& dy,
                      const Gradients& gradients) const {
    constexpr std::string_view operation = "LoraLinear::backward";
    this->require_unmerged(operation);
    if (record.rows() < 0) throw StateError(operation, "record", "one that forward has filled", "a new one");
    check_shape(operation, "record", record.down_projection(), -1, rank());
    if (!adapter().fits(record, record.rows())) {
      throw ShapeError(operation, "record", "one that this layer's forward has filled", "another layer's dropout mask");
    }
    check_shape(operation, "record", record.unscaled_output(), -1, magnitude().size());
    check_shape(operation, "x", x, record.rows(), in_features());
    check_shape(operation, "dy", dy, record.rows(), out_features());
    check_shape(operation, "gradients.A", gradients.A, rank(), in_features());
    check_shape(operation, "gradients.B", gradients.B, out_features(), rank());
    check_shape(operation, "gradients.lora_bias", gradients.lora_bias, 1, lora_bias().size());
    check_shape(operation, "gradients.bias", gradients.bias, 1, trained_bias_size());
    check_shape(operation, "gradients.magnitude", gradients.magnitude, 1, magnitude().size());
  }

  [[nodiscard]] Index trained_bias_size() const noexcept { return config().trains_bias() ? base_.bias.size() : 0; }

  [[nodiscard]] MatrixView<const Scalar> remembered(std::string_view operation) const {
    if (record_.rows() < 0) {
      throw StateError(operation, "layer", "a forward(x) in training mode before", "none");
    }
    return remembered_x_.view(record_.rows(), in_features());
  }

  Base base_;
  Adaptation<Scalar> adaptation_;
  MergeUndo<Scalar> merge_undo_;
  Gradients gradients_;
  std::array<Moments<Scalar>, 5> states_;
  Record record_;
  RememberedInput<Scalar> remembered_x_;
  Workspace workspace_;
  std::uint64_t dropout_step_ = 0;
};

}  // namespace lora
