// SPDX-License-Identifier: MIT
// The layers of the library behind the interface of support/layer_cases.hpp.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/layers/conv.hpp"
#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "lora/optim/adamw.hpp"
#include "support/layer_cases.hpp"

namespace lora::testing {

template <class Scalar>
using ColumnMajor = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

namespace detail {

template <class Derived>
[[nodiscard]] Rows doubled(const Eigen::MatrixBase<Derived>& m) {
  return m.template cast<double>();
}

template <class Scalar>
[[nodiscard]] AdapterValues values_of(const LoraAdapter<Scalar>& a) {
  return {a.name(),
          a.config(),
          a.seed(),
          static_cast<double>(a.scaling()),
          a.scale(),
          a.merged(),
          doubled(a.A),
          doubled(a.B),
          doubled(a.start.A),
          doubled(a.start.B),
          doubled(a.lora_bias),
          doubled(a.magnitude),
          doubled(a.bias)};
}

template <class Scalar>
[[nodiscard]] GradientValues values_of(const LoraGradients<Scalar>& g) {
  return {doubled(g.A), doubled(g.B), doubled(g.lora_bias), doubled(g.bias), doubled(g.magnitude)};
}

}  // namespace detail

/// How a layer is used: the calls that make a pass over a batch `x` of any type.

struct AsRows {
  static constexpr bool has_dx = true;
  static constexpr bool by_row = true;
  template <class X>
  [[nodiscard]] const X& batch(const X& x) const {
    return x;
  }
  template <class L, class X, class... Rest>
  void infer(const L& layer, const X& x, Rest&... rest) const {
    layer.infer(x, rest...);
  }
  template <class L, class X, class... Rest>
  void forward(L& layer, const X& x, Rest&... rest) const {
    layer.forward(x, rest...);
  }
  template <class L, class X, class... Rest>
  void backward(const L& layer, const X& x, Rest&... rest) const {
    layer.backward(x, rest...);
  }
  template <class L, class... Rest>
  void backward_of_last(L& layer, Rest&... rest) const {
    layer.backward(rest...);
  }
  template <class L, class X>
  [[nodiscard]] auto answer(const L& layer, const X& x) const {
    return layer.infer(x);
  }
  template <class L, class X>
  [[nodiscard]] auto answer(const L& layer, const X& x, const Names& choices) const {
    return layer.infer(x, choices);
  }
  template <class L, class X>
  [[nodiscard]] auto remembered(L& layer, const X& x) const {
    return layer.forward(x);
  }
};

struct AsIds : AsRows {
  static constexpr bool has_dx = false;
};

template <int Dim>
struct AsImages : AsRows {
  ImageExtents<Dim> extents;
  explicit AsImages(const ImageExtents<Dim>& e) : extents(e) {}
  template <class L, class X, class... Rest>
  void infer(const L& layer, const X& x, Rest&... rest) const {
    layer.infer(Images<X, Dim>{x, extents}, rest...);
  }
  template <class L, class X, class... Rest>
  void forward(L& layer, const X& x, Rest&... rest) const {
    layer.forward(Images<X, Dim>{x, extents}, rest...);
  }
  template <class L, class X>
  [[nodiscard]] auto answer(const L& layer, const X& x) const {
    return layer.infer(x, extents);
  }
  template <class L, class X>
  [[nodiscard]] auto answer(const L& layer, const X& x, const Names& choices) const {
    return layer.infer(Images<X, Dim>{x, extents}, choices);
  }
  template <class L, class X>
  [[nodiscard]] auto remembered(L& layer, const X& x) const {
    return layer.forward(x, extents);
  }
};

struct AsProjection {
  static constexpr bool has_dx = true;
  static constexpr bool by_row = false;
  template <class L, class X, class Y>
  void infer(const L& layer, const X& x, Y& y, Workspace& workspace) const {
    layer.project(x, y, workspace);
  }
  template <class L, class X, class... Rest>
  void forward(L& layer, const X& x, Rest&... rest) const {
    layer.project_forward(x, rest...);
  }
  template <class L, class X, class... Rest>
  void backward(const L& layer, const X& x, Rest&... rest) const {
    layer.project_backward(x, rest...);
  }
  template <class L, class... Rest>
  void backward_of_last(L& layer, Rest&... rest) const {
    layer.project_backward(rest...);
  }
  template <class L, class X>
  [[nodiscard]] auto answer(const L& layer, const X& x) const {
    return layer.project(x);
  }
  template <class L, class X>
  [[nodiscard]] auto remembered(L& layer, const X& x) const {
    return layer.project_forward(x);
  }
};

template <class Layer, class Use, class Input>
class NativePass final : public LayerPass {
  using Scalar = typename Layer::Scalar;

 public:
  NativePass(Layer& layer, const Use& use, const Rows& x, Index outputs) : layer_(layer), use_(use), outputs_(outputs) {
    set_x(x);
    renew_gradients();
  }

  void infer() override { use_.infer(std::as_const(layer_), x_, y_, workspace_); }
  void infer(const std::vector<Index>& choices) override { infer_by(choices); }
  void infer(const Names& choices) override { infer_by(choices); }
  void forward() override { use_.forward(layer_, x_, tape_, y_, workspace_); }
  void backward() override {
    if constexpr (Use::has_dx) {
      use_.backward(layer_, x_, tape_, dy_, gradients_, dx_, workspace_);
    } else {
      use_.backward(layer_, x_, tape_, dy_, gradients_, workspace_);
    }
  }
  void accumulate() override { use_.backward(layer_, x_, tape_, dy_, gradients_, workspace_); }
  void remembered_forward() override { use_.forward(layer_, x_, y_); }
  void remembered_backward() override {
    if constexpr (Use::has_dx) {
      use_.backward_of_last(layer_, dy_, dx_);
    } else {
      use_.backward_of_last(layer_, dy_);
    }
  }
  void remembered_accumulate() override {
    if constexpr (std::is_same_v<Use, AsProjection>) {
      remembered_backward();
    } else {
      layer_.accumulate_gradients(dy_);
    }
  }

  void set_position(std::uint64_t step, Index first_row) override { tape_.position = {step, first_row}; }
  void set_x(const Rows& x) override {
    if constexpr (EigenDense<Input>) {
      x_ = x.template cast<typename Input::Scalar>();
      if constexpr (Use::has_dx) dx_.setConstant(x.rows(), x.cols(), Scalar(-7));
    } else {
      x_.assign(x.data(), x.data() + x.size());
    }
    y_.setConstant(x.rows(), outputs_, Scalar(-7));
  }
  void set_dy(const Rows& dy) override { dy_ = dy.template cast<Scalar>(); }
  void fill_y(double value) override { y_.setConstant(static_cast<Scalar>(value)); }
  void resize_y(Index rows) override { y_.setZero(rows, outputs_); }
  void set_executor(Executor& executor) override { workspace_ = Workspace(executor); }
  void renew_gradients() override { gradients_ = layer_.make_gradients(); }
  void take_tape(const LayerPass& other) override { tape_ = dynamic_cast<const NativePass&>(other).tape_; }

  [[nodiscard]] Rows y() const override { return detail::doubled(y_); }
  [[nodiscard]] Rows dx() const override { return detail::doubled(dx_); }
  [[nodiscard]] std::vector<GradientValues> gradients() const override {
    std::vector<GradientValues> all;
    for (std::size_t i = 0; i < gradients_.size(); ++i) all.push_back(detail::values_of(gradients_[i]));
    return all;
  }
  [[nodiscard]] Index tape_rows() const override { return tape_.rows(); }
  [[nodiscard]] std::size_t tape_bytes() const override { return tape_.bytes(); }

 private:
  template <class Choices>
  void infer_by(const Choices& choices) {
    if constexpr (Use::by_row) {
      use_.infer(std::as_const(layer_), x_, choices, y_, workspace_);
    } else {
      ADD_FAILURE() << "rows do not choose here";
    }
  }

  Layer& layer_;
  Use use_;
  Index outputs_;
  Input x_;
  Matrix<Scalar> y_, dy_, dx_;
  typename Layer::Tape tape_;
  typename Layer::Gradients gradients_;
  Workspace workspace_;
};

template <class Scalar>
class NativeAdapter final : public AnyAdapter {
 public:
  explicit NativeAdapter(LoraAdapter<Scalar> held) : adapter(std::move(held)) {}
  [[nodiscard]] AdapterValues values() const override { return detail::values_of(adapter); }
  LoraAdapter<Scalar> adapter;
};

template <class Layer, class Use>
class NativeLayer final : public AnyLayer {
  using Scalar = typename Layer::Scalar;
  using Storage = std::shared_ptr<std::vector<Scalar>>;

 public:
  /// `memory` is what the weight views, if it views; `outputs` columns of y; `transposed` as the layer hands out
  /// weights.
  NativeLayer(Layer&& layer, Use use, Index outputs, bool transposed, Storage memory)
      : memory_(std::move(memory)),
        layer_(std::move(layer)),
        use_(std::move(use)),
        outputs_(outputs),
        transposed_(transposed) {}

  [[nodiscard]] std::unique_ptr<LayerPass> pass(const Rows& x, Order order) override {
    constexpr bool ids = std::is_same_v<Use, AsIds>;
    using ByRows = std::conditional_t<ids, std::vector<std::int64_t>, Matrix<Scalar>>;
    using ByColumns = std::conditional_t<ids, ColumnMajor<std::int32_t>, ColumnMajor<Scalar>>;
    if (order == Order::rows) return std::make_unique<NativePass<Layer, Use, ByRows>>(layer_, use_, x, outputs_);
    return std::make_unique<NativePass<Layer, Use, ByColumns>>(layer_, use_, x, outputs_);
  }
  [[nodiscard]] Rows infer(const Rows& x) const override { return detail::doubled(use_.answer(layer_, native(x))); }
  [[nodiscard]] Rows infer(const Rows& x, const Names& choices) const override {
    if constexpr (Use::by_row) return detail::doubled(use_.answer(layer_, native(x), choices));
    ADD_FAILURE() << "rows do not choose here";
    return {};
  }
  [[nodiscard]] Rows forward(const Rows& x) override { return detail::doubled(use_.remembered(layer_, native(x))); }

  void train() override { layer_.train(); }
  void eval() override { layer_.eval(); }
  void merge() override { layer_.merge(); }
  void merge(const Names& names) override { layer_.merge(names); }
  void unmerge() override { layer_.unmerge(); }
  void unmerge(const Names& names) override { layer_.unmerge(names); }
  void merge_and_unload() override { layer_.merge_and_unload(); }
  void unload() override { layer_.unload(); }
  [[nodiscard]] bool training() const override { return layer_.training(); }
  [[nodiscard]] bool merged() const override { return layer_.merged(); }
  [[nodiscard]] Names merged_adapters() const override { return layer_.merged_adapters(); }
  [[nodiscard]] bool mergeable() override { return layer_.mergeable(); }
  [[nodiscard]] std::size_t merge_bytes() const override { return layer_.merge_bytes(); }
  [[nodiscard]] Rows weight() const override { return oriented(layer_.weight()); }
  [[nodiscard]] Rows base_weight() const override { return oriented(layer_.base_weight()); }
  [[nodiscard]] Rows delta_weight(std::string_view name) const override { return oriented(layer_.delta_weight(name)); }
  [[nodiscard]] Rows bias() const override { return detail::doubled(layer_.bias()); }
  [[nodiscard]] Rows base_bias() const override { return detail::doubled(layer_.base_bias()); }

  void add(std::string_view name, const LoraConfig& config, std::uint64_t seed) override {
    layer_.add_adapter(name, config, seed);
  }
  void add(const AnyAdapter& adapter) override {
    layer_.add_adapter(dynamic_cast<const NativeAdapter<Scalar>&>(adapter).adapter);
  }
  [[nodiscard]] std::unique_ptr<AnyAdapter> make_adapter(std::string_view name, const LoraConfig& config,
                                                         std::uint64_t seed) override {
    return std::make_unique<NativeAdapter<Scalar>>(layer_.make_adapter(name, config, seed));
  }
  void swap(std::string_view name, AnyAdapter& other) override {
    layer_.swap_adapter(name, dynamic_cast<NativeAdapter<Scalar>&>(other).adapter);
  }
  void erase(std::string_view name) override { layer_.delete_adapter(name); }
  void reset(const LoraConfig& config, std::uint64_t seed) override { layer_.reset_adapter(config, seed); }
  void set_adapters(const Names& names) override { layer_.set_adapters(names); }
  void enable() override { layer_.enable_adapters(); }
  void disable() override { layer_.disable_adapters(); }
  [[nodiscard]] bool enabled() const override { return layer_.adapters_enabled(); }
  [[nodiscard]] Names names() const override { return layer_.adapter_names(); }
  [[nodiscard]] Names active() const override { return layer_.active_adapters(); }
  [[nodiscard]] AdapterValues values(std::string_view name) const override {
    return detail::values_of(layer_.adapter(name));
  }
  void set_factors(std::string_view name, const Rows& a, const Rows& b) override {
    layer_.set_factors(name, scalars(a), scalars(b));
  }
  void set_lora_bias(std::string_view name, const Rows& values) override {
    layer_.set_lora_bias(name, scalars(values));
  }
  void set_magnitude(std::string_view name, const Rows& values) override {
    layer_.set_magnitude(name, scalars(values));
  }
  void set_bias(std::string_view name, const Rows& values) override { layer_.set_adapter_bias(name, scalars(values)); }
  void set_scale(std::string_view name, double factor) override { layer_.set_scale(name, factor); }
  void set_alpha(std::string_view name, double alpha) override { layer_.set_alpha(name, alpha); }
  void scale_layer(double factor) override { layer_.scale_layer(factor); }
  void unscale_layer(double factor) override { layer_.unscale_layer(factor); }
  void unscale_layer() override { layer_.unscale_layer(); }
  void set_row_adapters(const Names& names, bool unknown_is_base) override {
    layer_.set_row_adapters(names, unknown_is_base);
  }
  void clear_row_adapters() override { layer_.clear_row_adapters(); }

  void zero_grad() override { layer_.zero_grad(); }
  [[nodiscard]] GradientValues gradients(std::string_view name) override {
    return detail::values_of(layer_.gradients(name));
  }
  [[nodiscard]] Names parameter_names() override {
    Names names;
    for (const auto& parameter : layer_.parameters()) names.push_back(parameter.name());
    return names;
  }
  [[nodiscard]] std::size_t parameter_count() override { return layer_.parameters().size(); }
  void step() override { optimizer_.step(layer_); }
  [[nodiscard]] std::vector<std::int64_t> steps_taken() override {
    std::vector<std::int64_t> steps;
    for (const auto& parameter : layer_.parameters()) steps.push_back(parameter.moments().steps);
    return steps;
  }
  [[nodiscard]] std::size_t parameter_bytes() const override { return layer_.parameter_bytes(); }
  [[nodiscard]] std::uint64_t dropout_step() const override { return layer_.dropout_step(); }
  void set_dropout_step(std::uint64_t step) override { layer_.set_dropout_step(step); }
  void set_executor(Executor& executor) override { layer_.set_executor(executor); }

  [[nodiscard]] bool copyable() const override { return std::is_copy_constructible_v<Layer>; }
  [[nodiscard]] std::unique_ptr<AnyLayer> copy() const override {
    if constexpr (std::is_copy_constructible_v<Layer>) {
      return std::make_unique<NativeLayer>(Layer(layer_), use_, outputs_, transposed_, memory_);
    } else {
      return nullptr;
    }
  }

 private:
  [[nodiscard]] static Matrix<Scalar> scalars(const Rows& m) { return m.template cast<Scalar>(); }
  [[nodiscard]] static auto native(const Rows& x) {
    if constexpr (std::is_same_v<Use, AsIds>) {
      return std::vector<std::int64_t>(x.data(), x.data() + x.size());
    } else {
      return scalars(x);
    }
  }
  [[nodiscard]] Rows oriented(const Matrix<Scalar>& w) const {
    return transposed_ ? detail::doubled(w.transpose()) : detail::doubled(w);
  }

  Storage memory_;
  Layer layer_;
  Use use_;
  Index outputs_;
  bool transposed_;
  AdamW<Scalar> optimizer_{AdamWOptions{.learning_rate = 0.01}};
};

/// A weight over `w` (out_features x in_features, in the layer's scalar), whose memory, if it is viewed, is `memory`:
/// row-major of W, or of its transpose.
enum class Lies : std::uint8_t { by_output, by_input };

template <class Weight>
[[nodiscard]] Weight weight_over(const Rows& w, Lies lies, bool read_only,
                                 std::shared_ptr<std::vector<typename Weight::Scalar>>& memory) {
  using Scalar = typename Weight::Scalar;
  const bool transposed = lies == Lies::by_input;
  const Matrix<Scalar> stored =
      transposed ? Matrix<Scalar>(w.transpose().template cast<Scalar>()) : Matrix<Scalar>(w.template cast<Scalar>());
  memory = std::make_shared<std::vector<Scalar>>(stored.data(), stored.data() + stored.size());
  const MatrixView<Scalar> view{memory->data(), stored.rows(), stored.cols(), stored.cols(), 1};
  const MatrixView<Scalar> whole = transposed ? view.transpose() : view;
  if constexpr (requires { typename Weight::Format; }) return Weight::quantize(MatrixView<const Scalar>(whole));
  if constexpr (requires { typename Weight::Weight; }) {
    return Weight(Weight::Weight::quantize(MatrixView<const Scalar>(whole.transpose())));
  }
  if constexpr (std::is_constructible_v<Weight, const MatrixView<Scalar>&>) {
    if (!read_only) return Weight(whole);
  }
  if constexpr (std::is_same_v<Weight, MatrixWeight<Scalar>>) {
    if (transposed) return Weight(stored, true);
  }
  if constexpr (std::is_constructible_v<Weight, const MatrixView<const Scalar>&>) {
    return Weight(MatrixView<const Scalar>(whole));
  }
}

/// The values that a weight of this kind has when it is made from `w`: rounded, in formats of fewer bits.
template <class Weight>
[[nodiscard]] Rows stored_values(const Rows& w) {
  std::shared_ptr<std::vector<typename Weight::Scalar>> memory;
  const auto weight = weight_over<Weight>(w, Lies::by_output, true, memory);
  Matrix<typename Weight::Scalar> values(w.rows(), w.cols());
  read_back(weight, view_of(values));
  return values.template cast<double>();
}

}  // namespace lora::testing
