// LoraConv: a frozen convolution with trainable low-rank factors.
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

#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/layers/conv_adapter.hpp"
#include "lora/layers/frozen_conv.hpp"
#include "lora/layers/images.hpp"
#include "lora/layers/merge_state.hpp"
#include "lora/layers/remembered_input.hpp"

namespace lora {

/// y = W0 * x + bias + s * B (A * drop(x)) over `Dim` spatial dimensions, where * convolves as torch.nn.Conv{1,2,3}d
/// does with zero padding, W0 is frozen, A is a convolution of W0's kernel, stride, padding and dilation to `rank`
/// channels, and B one of 1 x 1. Over the unfolded input this is LoraLinear's formula, and so are the gradients:
/// dB = s dY U^T with U = A drop(X), dA = V drop(X)^T with V = s B^T dY, dX = fold(W0^T dY) + drop'(fold(A^T V)).
/// With use_dora y = bias + (m/n) (.) (W0 * x + s B A * x), with a magnitude m per output channel and n the norms of
/// the rows of W0 + s*B*A, constants of the backward pass; with dropout only drop(x) counts for the change that m/n
/// makes, as adapter/dora.hpp has it.
///
/// Weights are matrices as PyTorch's tensors lie in memory: W0 is out_channels x fan_in with fan_in = in_channels /
/// groups * product of the kernel, A is rank x fan_in, B is out_channels x rank / groups. Images are a sample a row,
/// samples x (channels * spatial), given with their extents, in any storage order (read in place); or, with
/// layers/tensor.hpp, row-major Eigen tensors (samples, channels, spatial...), which know their extents.
///
/// PEFT's convolution differs in two cases and agrees in all others: it ignores the dilation in A, and with groups its
/// A (rank x in_channels * kernel) sees all channels, so that its update has not W0's shape and cannot be merged. Here
/// A has the base's dilation, and with groups sees the channels of its group.
///
/// Two forms of every pass, as LoraLinear: `forward(x, extents)` and `backward(dy)` remember the pass; the others are
/// const, reentrant, and work in memory the caller owns, allocating only to grow the record and the workspace. Results
/// depend neither on the number of workers nor, for one sample's y and dx, on the other samples.
///
/// Source: Hu et al., "LoRA", arXiv 2106.09685, section 4; PEFT's tuners/lora/layer.py, _ConvNd.
template <RealScalar ScalarType, int Dim>
class LoraConv : public MergeState<LoraConv<ScalarType, Dim>> {
 public:
  using Scalar = ScalarType;
  using Geometry = ConvGeometry<Dim>;
  using Extents = ImageExtents<Dim>;
  using Record = ConvRecord<Scalar, Dim>;
  using Gradients = LoraGradients<Scalar>;

  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression of out_channels x fan_in. `bias` is a vector of
  /// out_channels. @throws ShapeError; ConfigError, also when the groups do not divide the channels and the rank;
  /// std::bad_alloc
  template <class W, class B>
  LoraConv(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, const Geometry& geometry,
           const LoraConfig& config, std::uint64_t seed)
      : LoraConv(w0, geometry, config, seed) {
    static_assert(B::IsVectorAtCompileTime, "lora: the bias is a vector");
    static_assert(std::is_same_v<typename B::Scalar, Scalar>, "lora: the bias' scalar type is not the layer's");
    if (bias.size() != out_channels()) {
      throw ShapeError("LoraConv", "bias", std::to_string(out_channels()) + " elements", std::to_string(bias.size()));
    }
    bias_.resize(bias.size());
    for (Index o = 0; o < bias.size(); ++o) bias_[o] = bias.derived().coeff(o);
  }

  /// Without bias.
  template <class W>
  LoraConv(const Eigen::DenseBase<W>& w0, const Geometry& geometry, const LoraConfig& config, std::uint64_t seed)
      : weight_("LoraConv", w0, geometry), adapter_("LoraConv", geometry, config, seed) {
    adapter_.start_magnitude(view_of(weight()));
  }

  [[nodiscard]] const Geometry& geometry() const noexcept { return weight_.geometry(); }
  [[nodiscard]] Index in_channels() const noexcept { return geometry().in_channels; }
  [[nodiscard]] Index out_channels() const noexcept { return geometry().out_channels; }
  /// Extents of the output over an input of these extents. @throws ShapeError
  [[nodiscard]] Extents output_extents(const Extents& extents) const {
    return lora::output_extents("LoraConv::output_extents", geometry(), extents);
  }
  [[nodiscard]] Index rank() const noexcept { return adapter_.rank(); }
  [[nodiscard]] Scalar scaling() const noexcept { return adapter_.scaling(); }
  [[nodiscard]] const LoraConfig& config() const noexcept { return adapter_.config(); }
  [[nodiscard]] std::uint64_t seed() const noexcept { return adapter_.seed(); }

  [[nodiscard]] const Matrix<Scalar>& lora_A() const noexcept { return adapter_.A(); }
  [[nodiscard]] const Matrix<Scalar>& lora_B() const noexcept { return adapter_.B(); }
  [[nodiscard]] const RowVector<Scalar>& lora_bias() const noexcept { return adapter_.lora_bias(); }
  /// DoRA's magnitude, out_channels scalars; empty without use_dora.
  [[nodiscard]] const RowVector<Scalar>& magnitude() const noexcept { return adapter_.magnitude(); }
  /// Empty without bias.
  [[nodiscard]] const RowVector<Scalar>& bias() const noexcept { return bias_; }
  [[nodiscard]] bool has_bias() const noexcept { return bias_.size() > 0; }

  /// The weight as inference uses it now, merged or not, out_channels x fan_in.
  [[nodiscard]] const Matrix<Scalar>& weight() const noexcept { return weight_.matrix(); }
  /// W0, whether or not the layer is merged. A copy, equal bit for bit to what was given.
  [[nodiscard]] Matrix<Scalar> base_weight() const { return weight_.unmerged(); }
  /// s*B*A, of each group: what merging adds, bit for bit. With use_dora merging also multiplies each output channel's
  /// weights by its magnitude over their norm, which this leaves out, as PEFT's get_delta_weight does.
  [[nodiscard]] Matrix<Scalar> delta_weight() const { return weight_.delta(adapter_); }

  /// Replaces A (rank x fan_in) and B (out_channels x rank / groups); the magnitude of DoRA stays.
  /// @throws ShapeError; StateError while merged. Then nothing has changed.
  template <class A, class B>
  void set_factors(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    this->require_unmerged("LoraConv::set_factors");
    check_shape("LoraConv::set_factors", "A", a, rank(), geometry().fan_in());
    check_shape("LoraConv::set_factors", "B", b, out_channels(), adapter_.group_rank());
    Matrix<Scalar> new_a = a.derived();
    Matrix<Scalar> new_b = b.derived();
    adapter_.A().swap(new_a);
    adapter_.B().swap(new_b);
  }
  /// Replaces the bias of B. @throws ShapeError; StateError while merged.
  template <class B>
  void set_lora_bias(const Eigen::DenseBase<B>& lora_bias) {
    this->require_unmerged("LoraConv::set_lora_bias");
    check_shape("LoraConv::set_lora_bias", "lora_bias", lora_bias, 1, adapter_.lora_bias().size());
    adapter_.lora_bias() = lora_bias.derived();
  }
  /// Replaces the magnitude of DoRA. @throws ShapeError, also without use_dora; StateError while merged.
  template <class M>
  void set_magnitude(const Eigen::DenseBase<M>& magnitude) {
    this->require_unmerged("LoraConv::set_magnitude");
    check_shape("LoraConv::set_magnitude", "magnitude", magnitude, 1, adapter_.magnitude().size());
    adapter_.magnitude() = magnitude.derived();
  }
  /// Changes alpha, and with it the scaling. @throws ConfigError; StateError while merged.
  void set_alpha(double alpha) {
    this->require_unmerged("LoraConv::set_alpha");
    adapter_.set_alpha("LoraConv::set_alpha", alpha);
  }
  /// Replaces the adapter by a fresh one, with its gradients and optimiser state; the layer's modes stay. Handles from
  /// parameters() become invalid. @throws ConfigError; StateError while merged. Then nothing has changed.
  void reset_adapter(const LoraConfig& config, std::uint64_t seed) {
    this->require_unmerged("LoraConv::reset_adapter");
    ConvAdapter<Scalar> fresh("LoraConv::reset_adapter", geometry(), config, seed);
    fresh.start_magnitude(view_of(weight()));
    adapter_ = std::move(fresh);
    gradients_ = {};
    states_ = {};
    record_.clear();
    dropout_step_ = 0;
  }

  /// The layer's answer without dropout: y as above with drop(x) = x, or the plain convolution while merged. Allocates
  /// the result and scratch. Reentrant. @throws ShapeError
  template <EigenDense Input>
  [[nodiscard]] auto infer(const Input& x, const Extents& extents) const {
    auto y = answer("LoraConv::infer", x, extents);
    Workspace workspace;
    infer(x, extents, y, workspace);
    return y;
  }
  template <TensorLike Input>
  [[nodiscard]] auto infer(const Input& x) const {
    auto y = answer("LoraConv::infer", x, extents_of<Dim>(x));
    Workspace workspace;
    infer(x, y, workspace);
    return y;
  }
  /// The same into `y`, samples x (out_channels * output extents), which does not overlap x. Reentrant.
  template <EigenDense Input, class Output>
  void infer(const Input& x, const Extents& extents, Output&& y, Workspace& workspace) const {
    run_inference(x, extents, y, workspace);
  }
  template <TensorLike Input, class Output>
  void infer(const Input& x, Output&& y, Workspace& workspace) const {
    run_inference(x, extents_of<Dim>(x), y, workspace);
  }

  /// The forward pass of training, with dropout at `record.position`. Fills `record` for backward. Reentrant.
  /// @throws ShapeError; StateError while merged
  template <EigenDense Input, class Output>
  void forward(const Input& x, const Extents& extents, Record& record, Output&& y, Workspace& workspace) const {
    run_training(x, extents, record, y, workspace);
  }
  template <TensorLike Input, class Output>
  void forward(const Input& x, Record& record, Output&& y, Workspace& workspace) const {
    run_training(x, extents_of<Dim>(x), record, y, workspace);
  }

  /// Gradients of the right shapes, zero.
  [[nodiscard]] Gradients make_gradients() const { return adapter_.make_gradients(trained_bias_size()); }

  /// Adds the gradients of the trainable parameters for the pass that took `x` and filled `record`. Reentrant for
  /// different `gradients`. @throws ShapeError; StateError while merged. Then nothing has changed.
  template <class Input, class OutputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                Workspace& workspace) const {
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& x_rows) {
      with_images<Scalar, Dim>(dy, [&](const MatrixView<const Scalar>& dy_rows) {
        check_backward(x, x_rows, record, dy, dy_rows, gradients);
        differentiate(x_rows, record, dy_rows, gradients, nullptr, workspace);
      });
    });
  }
  /// The same, and writes dx into `dx`, of x's shape, which does not overlap `dy`.
  template <class Input, class OutputGradient, class InputGradient>
  void backward(const Input& x, const Record& record, const OutputGradient& dy, Gradients& gradients,
                InputGradient&& dx, Workspace& workspace) const {
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& x_rows) {
      with_images<Scalar, Dim>(dy, [&](const MatrixView<const Scalar>& dy_rows) {
        constexpr std::string_view operation = "LoraConv::backward";
        check_backward(x, x_rows, record, dy, dy_rows, gradients);
        const auto out =
            output_images<Scalar, Dim>(operation, "dx", dx, record.samples(), in_channels(), record.extents());
        if (overlap(out, dy_rows)) throw ShapeError(operation, "dx", "memory apart from dy", "overlapping memory");
        differentiate(x_rows, record, dy_rows, gradients, &out, workspace);
      });
    });
  }

  /// In training mode the forward pass of training, remembering x (a copy) and the record; else infer.
  /// @throws ShapeError; StateError in training mode while merged
  template <EigenDense Input>
  auto forward(const Input& x, const Extents& extents) {
    auto y = answer("LoraConv::forward", x, extents);
    forward(x, extents, y);
    return y;
  }
  template <TensorLike Input>
  auto forward(const Input& x) {
    auto y = answer("LoraConv::forward", x, extents_of<Dim>(x));
    forward(x, y);
    return y;
  }
  /// The same into `y`. Allocates only to grow what the layer keeps.
  template <EigenDense Input, class Output>
  void forward(const Input& x, const Extents& extents, Output&& y) {
    remember(x, extents, y);
  }
  template <TensorLike Input, class Output>
  void forward(const Input& x, Output&& y) {
    remember(x, extents_of<Dim>(x), y);
  }

  /// Adds to the gradients for the last forward pass of training and returns dx, of dy's kind.
  /// @throws ShapeError; StateError before any such pass, or while merged
  template <class OutputGradient>
  auto backward(const OutputGradient& dy) {
    const auto x = remembered("LoraConv::backward");
    auto dx = make_images<Dim>(dy, x.rows, in_channels(), record_.extents());
    backward(dy, dx);
    return dx;
  }
  /// The same, writing dx into `dx`. Allocates only to grow what the layer keeps.
  template <class OutputGradient, class InputGradient>
  void backward(const OutputGradient& dy, InputGradient&& dx) {
    backward(remembered("LoraConv::backward").map(), record_, dy, gradients(), dx, workspace_);
  }
  /// The same without dx: for the first layer of a network.
  template <class OutputGradient>
  void accumulate_gradients(const OutputGradient& dy) {
    backward(remembered("LoraConv::accumulate_gradients").map(), record_, dy, gradients(), workspace_);
  }

  /// The gradients backward(dy) adds to; memory for them comes with the first use.
  [[nodiscard]] Gradients& gradients() {
    if (gradients_.A.rows() != rank() || gradients_.A.cols() != geometry().fan_in()) gradients_ = make_gradients();
    return gradients_;
  }
  void zero_grad() noexcept { gradients_.set_zero(); }

  /// Handles on what trains: "lora_A.weight", "lora_B.weight", then "lora_magnitude_vector.weight", "lora_B.bias" and
  /// "bias" where they train. Values cannot be changed through them while the layer is merged. Valid while the layer
  /// stays where it is.
  [[nodiscard]] ParameterList<Scalar> parameters() {
    ParameterList<Scalar> list;
    Gradients& g = gradients();
    const auto add = [&](const char* name, ParameterRole role, auto& value, auto& gradient) {
      list.add_trained(name, role, value, gradient, states_, this->merged_flag());
    };
    add("lora_A.weight", ParameterRole::lora_A, adapter_.A(), g.A);
    add("lora_B.weight", ParameterRole::lora_B, adapter_.B(), g.B);
    add("lora_magnitude_vector.weight", ParameterRole::magnitude, adapter_.magnitude(), g.magnitude);
    add("lora_B.bias", ParameterRole::lora_bias, adapter_.lora_bias(), g.lora_bias);
    add("bias", ParameterRole::bias, bias_, g.bias);
    return list;
  }

  /// Number of scalars that train.
  [[nodiscard]] Index trainable_parameter_count() const noexcept {
    return lora_A().size() + lora_B().size() + magnitude().size() + lora_bias().size() + trained_bias_size();
  }

  /// Step of the dropout sequence that the next forward(x, extents) draws; part of what a checkpoint saves.
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

  /// Runs forward(x, extents) and backward(dy) on `executor`, which must outlive the layer or be replaced.
  void set_executor(Executor& executor) { workspace_ = Workspace(executor); }

  /// Bytes held beyond W0 while merged, without the copies of the factors.
  [[nodiscard]] std::size_t merge_bytes() const noexcept { return weight_.merge_bytes(); }
  /// Bytes of W0, the factors, the magnitude and the biases.
  [[nodiscard]] std::size_t parameter_bytes() const noexcept {
    return static_cast<std::size_t>(weight().size() + lora_A().size() + lora_B().size() + magnitude().size() +
                                    lora_bias().size() + bias_.size()) *
           sizeof(Scalar);
  }

 private:
  friend class MergeState<LoraConv>;

  [[nodiscard]] bool dora() const noexcept { return magnitude().size() > 0; }

  [[nodiscard]] bool merges_weights() const noexcept { return config().merge_weights; }
  void apply_merge() {
    std::span<const Scalar> factors;
    if (dora()) factors = {adapter_.factors(view_of(weight()), workspace_), static_cast<std::size_t>(out_channels())};
    weight_.merge("LoraConv::merge", adapter_, factors);
  }
  void apply_unmerge() noexcept { weight_.unmerge(); }
  void drop_merged_adapter() {
    ConvAdapter<Scalar> plain("LoraConv::merge_and_unload", geometry(),
                              {.rank = 0, .merge_weights = config().merge_weights}, 0);
    RowVector<Scalar> bias = bias_;
    if (lora_bias().size() > 0) {
      if (bias.size() == 0) bias = RowVector<Scalar>::Zero(out_channels());
      bias += scaling() * lora_bias();
    }
    adapter_ = std::move(plain);
    bias_.swap(bias);
    weight_.keep_merged();
    gradients_ = {};
    states_ = {};
    record_.clear();
    dropout_step_ = 0;
  }

  template <class Input>
  [[nodiscard]] auto answer(std::string_view operation, const Input& x, const Extents& extents) const {
    const Extents output = lora::output_extents(operation, geometry(), extents);
    Index samples = 0;
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& rows) {
      check_input(operation, x, rows, extents);
      samples = rows.rows;
    });
    return make_images<Dim>(x, samples, out_channels(), output);
  }

  template <class Input>
  void check_input(std::string_view operation, const Input& x, const MatrixView<const Scalar>& rows,
                   const Extents& extents) const {
    check_images<Dim>(operation, "x", x, -1, in_channels(), extents);
    check_shape(operation, "x", rows, -1, detail::saturated_product(in_channels(), extents));
  }

  // The call of a pass over x, which takes the merged weight as it is.
  template <class Input, class Output>
  [[nodiscard]] kernels::ConvCall<Scalar> call_of(std::string_view operation, const Input& x,
                                                  const MatrixView<const Scalar>& rows, const Extents& extents,
                                                  Output& y, Workspace& workspace) const {
    const Extents output = lora::output_extents(operation, geometry(), extents);
    check_input(operation, x, rows, extents);
    kernels::ConvCall<Scalar> call;
    call.y = output_images<Scalar, Dim>(operation, "y", y, rows.rows, out_channels(), output);
    if (overlap(rows, call.y)) throw ShapeError(operation, "y", "memory apart from x", "overlapping memory");
    call.shape = weight_.shape(rows.rows, extents, output, this->merged() ? 0 : adapter_.group_rank());
    call.x = rows;
    call.weight = view_of(weight());
    call.bias = adapter_.effective_bias(bias_, workspace);
    call.scale = scaling();
    if (!this->merged()) {
      call.a = view_of(lora_A());
      call.b = view_of(lora_B());
    }
    return call;
  }

  template <class Input, class Output>
  void run_inference(const Input& x, const Extents& extents, Output& y, Workspace& workspace) const {
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& rows) {
      auto call = call_of("LoraConv::infer", x, rows, extents, y, workspace);
      if (dora() && !this->merged()) call.factors = adapter_.factors(view_of(weight()), workspace);
      kernels::convolve(call, workspace);
    });
  }

  template <class Input, class Output>
  void run_training(const Input& x, const Extents& extents, Record& record, Output& y, Workspace& workspace) const {
    constexpr std::string_view operation = "LoraConv::forward";
    this->require_unmerged(operation);
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& rows) {
      auto call = call_of(operation, x, rows, extents, y, workspace);
      record.clear();
      if (adapter_.drops()) {
        record.dropout_bits().draw(config().dropout, seed(), record.position, rows.rows, rows.cols,
                                   workspace.executor());
      }
      const Index size = call.shape.walk.output_size();
      const auto room = record.prepare(rows.rows, rank(), size, magnitude().size());
      call.mask = adapter_.mask(record.dropout_bits());
      call.u = room.down;
      if (dora()) {
        auto* factors = workspace.reserve<Scalar>(Workspace::Slot::output_factors, out_channels());
        adapter_.row_norms(call.weight, room.norms, workspace);
        adapter_.divide(room.norms, factors);
        call.factors = factors;
        call.z = room.unscaled;
      }
      kernels::convolve(call, workspace);
      record.keep(rows.rows, extents, rank(), size, magnitude().size());
    });
  }

  template <class Input, class Output>
  void remember(const Input& x, const Extents& extents, Output& y) {
    if (!this->training()) return run_inference(x, extents, y, workspace_);
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& rows) {
      remembered_x_.reserve(rows);
      record_.position = {dropout_step_, 0};
      run_training(x, extents, record_, y, workspace_);
      remembered_x_.assign(rows);
      ++dropout_step_;
    });
  }

  [[nodiscard]] MatrixView<const Scalar> remembered(std::string_view operation) const {
    if (record_.samples() < 0) throw StateError(operation, "layer", "a forward(x) in training mode before", "none");
    const Index features = detail::saturated_product(in_channels(), record_.extents());
    return remembered_x_.view(record_.samples(), features);
  }

  // Adds the gradients of the parameters, and writes dx where it is not null.
  void differentiate(const MatrixView<const Scalar>& x, const Record& record, const MatrixView<const Scalar>& dy,
                     Gradients& gradients, const MatrixView<Scalar>* dx, Workspace& workspace) const {
    Executor& executor = workspace.executor();
    const Extents output = lora::output_extents("LoraConv::backward", geometry(), record.extents());
    const auto s = weight_.shape(record.samples(), record.extents(), output, adapter_.group_rank());
    if (gradients.bias.size() > 0) adapter_.add_channel_sums(dy, Scalar(1), gradients.bias, executor);
    Scalar* factors = nullptr;
    if (dora()) {
      adapter_.add_magnitude_gradient(record.unscaled_output(), record.row_norms(), dy, gradients.magnitude, executor);
      factors = workspace.reserve<Scalar>(Workspace::Slot::output_factors, out_channels());
      adapter_.divide(record.row_norms(), factors);
    }
    const auto mask = adapter_.mask(record.dropout_bits());
    MatrixView<const Scalar> v;
    if (rank() > 0) v = adapter_.backward(s, x, mask, record.down_projection(), dy, factors, gradients, workspace);
    if (dx == nullptr) return;
    kernels::ConvAdjointCall<Scalar> call{s, dy, v, view_of(weight()), view_of(lora_A()), mask, factors, nullptr, *dx};
    if (dora() && mask.active()) {
      for (Index o = 0; o < out_channels(); ++o) factors[o] -= Scalar(1);
      call.weight_factors = nullptr;
      call.dropped_factors = factors;
    }
    kernels::convolve_adjoint(call, workspace);
  }

  template <class Input, class OutputGradient>
  void check_backward(const Input& x, const MatrixView<const Scalar>& x_rows, const Record& record,
                      const OutputGradient& dy, const MatrixView<const Scalar>& dy_rows,
                      const Gradients& gradients) const {
    constexpr std::string_view operation = "LoraConv::backward";
    this->require_unmerged(operation);
    if (record.samples() < 0) throw StateError(operation, "record", "one that forward has filled", "a new one");
    const Extents output = lora::output_extents(operation, geometry(), record.extents());
    const Index positions = detail::saturated_product(record.samples(), output);
    const Index inputs = detail::saturated_product(in_channels(), record.extents());
    check_shape(operation, "record", record.down_projection(), rank(), positions);
    if (!adapter_.fits(record.dropout_bits(), record.samples(), inputs)) {
      throw ShapeError(operation, "record", "one that this layer's forward has filled", "another layer's dropout mask");
    }
    check_shape(operation, "record", record.unscaled_output(), -1,
                detail::saturated_product(magnitude().size(), output));
    check_images<Dim>(operation, "x", x, record.samples(), in_channels(), record.extents());
    check_shape(operation, "x", x_rows, record.samples(), inputs);
    check_images<Dim>(operation, "dy", dy, record.samples(), out_channels(), output);
    check_shape(operation, "dy", dy_rows, record.samples(), detail::saturated_product(out_channels(), output));
    adapter_.check_gradients(operation, gradients, trained_bias_size());
  }

  [[nodiscard]] Index trained_bias_size() const noexcept { return config().trains_bias() ? bias_.size() : 0; }

  FrozenConv<Scalar, Dim> weight_;
  ConvAdapter<Scalar> adapter_;
  RowVector<Scalar> bias_;
  Gradients gradients_;
  std::array<Moments<Scalar>, 5> states_;
  Record record_;
  RememberedInput<Scalar> remembered_x_;
  Workspace workspace_;
  std::uint64_t dropout_step_ = 0;
};

template <RealScalar Scalar>
using LoraConv1d = LoraConv<Scalar, 1>;
template <RealScalar Scalar>
using LoraConv2d = LoraConv<Scalar, 2>;
template <RealScalar Scalar>
using LoraConv3d = LoraConv<Scalar, 3>;

}  // namespace lora
