// A layer of any kind as a model sees it: something that takes an adapter, trains it, merges it and gives it away.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

#include "lora/adapter/config.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

/// What LoraModel asks of a layer, whatever its class. The layer itself stays with its owner.
template <RealScalar Scalar>
class ModelLayer {
 public:
  ModelLayer() = default;
  ModelLayer(const ModelLayer&) = delete;
  ModelLayer& operator=(const ModelLayer&) = delete;
  ModelLayer(ModelLayer&&) = delete;
  ModelLayer& operator=(ModelLayer&&) = delete;
  virtual ~ModelLayer() = default;

  [[nodiscard]] virtual ModuleKind kind() const noexcept = 0;
  [[nodiscard]] virtual const LoraConfig& config() const noexcept = 0;
  /// Scalars of the frozen weight and its bias.
  [[nodiscard]] virtual Index base_size() const noexcept = 0;
  /// Scalars of the adapter.
  [[nodiscard]] virtual Index adapter_size() const noexcept = 0;

  /// The configuration this layer needs for an adapter that a file describes with `config`.
  [[nodiscard]] virtual LoraConfig config_of_file(const LoraConfig& config) const = 0;
  /// Replaces the adapter by a fresh one; one of rank 0 is none. @throws ConfigError, StateError, std::bad_alloc; then
  /// nothing has changed.
  virtual void reset_adapter(const LoraConfig& config, std::uint64_t seed) = 0;

  /// The frozen layer's bias; empty without one.
  [[nodiscard]] virtual RowVector<Scalar> bias() const = 0;
  /// What the adapter has learned. A copy.
  [[nodiscard]] virtual ModuleWeights<Scalar> weights() const = 0;
  /// What keeps `weights` from being an adapter of `config` in this layer; empty when nothing does.
  [[nodiscard]] virtual std::string misfit(const LoraConfig& config, const ModuleWeights<Scalar>& weights) const = 0;
  /// Takes over values that fit the current configuration. @throws StateError while merged
  virtual void load(const ModuleWeights<Scalar>& weights) = 0;

  [[nodiscard]] virtual ParameterList<Scalar> parameters() = 0;
  virtual void zero_grad() noexcept = 0;
  virtual void train() = 0;
  virtual void eval() = 0;
  virtual void merge() = 0;
  virtual void unmerge() noexcept = 0;
  /// Makes the adapter part of the weight for good; the layer is plain afterwards.
  virtual void merge_and_unload() = 0;
  [[nodiscard]] virtual bool training() const noexcept = 0;
  [[nodiscard]] virtual bool merged() const noexcept = 0;
};

/// Columns of A and rows of B, whatever the rank.
struct FactorShape {
  Index a_cols = 0;
  Index b_rows = 0;
};

/// What a layer's class says of itself to a model; see StandardLayerTraits. Specialised for each class.
template <class Layer>
struct ModelLayerTraits;

/// A layer that can be added to a LoraModel.
template <class Layer>
concept AdaptableLayer = requires(Layer& layer, const Layer& same, const LoraConfig& config) {
  { ModelLayerTraits<Layer>::factor_shape(same) } -> std::same_as<FactorShape>;
  { ModelLayerTraits<Layer>::weights(same) } -> std::same_as<ModuleWeights<typename Layer::Scalar>>;
  layer.reset_adapter(config, std::uint64_t{});
  { layer.parameters() } -> std::same_as<ParameterList<typename Layer::Scalar>>;
  layer.merge_and_unload();
};

/// Traits of a layer whose delta weight is scaling * B * A with the A and B it holds, and which has LoraLinear's names.
template <class Layer, ModuleKind kind_of_layer>
struct StandardLayerTraits {
  using Scalar = typename Layer::Scalar;
  static constexpr ModuleKind kind = kind_of_layer;

  [[nodiscard]] static FactorShape factor_shape(const Layer& layer) {
    return {layer.lora_A().cols(), layer.lora_B().rows()};
  }
  [[nodiscard]] static Index base_size(const Layer& layer) {
    return layer.lora_A().cols() * layer.lora_B().rows() + bias_size(layer);
  }
  [[nodiscard]] static Index adapter_size(const Layer& layer) {
    Index size = layer.lora_A().size() + layer.lora_B().size();
    if constexpr (requires { layer.lora_bias(); }) size += layer.lora_bias().size();
    if constexpr (requires { layer.magnitude(); }) size += layer.magnitude().size();
    return size;
  }
  /// The configuration the layer needs for an adapter that a file describes with `config`.
  [[nodiscard]] static LoraConfig config_of_file(const Layer& /*layer*/, const LoraConfig& config) { return config; }

  [[nodiscard]] static ModuleWeights<Scalar> weights(const Layer& layer) {
    ModuleWeights<Scalar> weights;
    weights.kind = kind;
    weights.A = layer.lora_A();
    weights.B = layer.lora_B();
    if constexpr (requires { layer.lora_bias(); }) weights.lora_bias = layer.lora_bias();
    if constexpr (requires { layer.magnitude(); }) weights.magnitude = layer.magnitude();
    weights.scaling = layer.config().scaling();
    return weights;
  }
  static void load(Layer& layer, const ModuleWeights<Scalar>& weights) {
    layer.set_factors(weights.A, weights.B);
    if constexpr (requires { layer.set_lora_bias(weights.lora_bias); }) {
      if (weights.lora_bias.size() > 0) layer.set_lora_bias(weights.lora_bias);
    }
    if constexpr (requires { layer.set_magnitude(weights.magnitude); }) {
      if (weights.magnitude.size() > 0) layer.set_magnitude(weights.magnitude);
    }
  }

 protected:
  static Index bias_size(const Layer& layer) {
    if constexpr (requires { layer.bias(); }) return layer.bias().size();
    return 0;
  }
};

/// A reference to a layer of a known class. The layer outlives it and does not move.
template <AdaptableLayer Layer>
class HeldLayer final : public ModelLayer<typename Layer::Scalar> {
 public:
  using Scalar = typename Layer::Scalar;
  using Traits = ModelLayerTraits<Layer>;

  explicit HeldLayer(Layer& layer) noexcept : layer_(&layer) {}

  [[nodiscard]] ModuleKind kind() const noexcept override { return Traits::kind; }
  [[nodiscard]] const LoraConfig& config() const noexcept override { return layer_->config(); }
  [[nodiscard]] Index base_size() const noexcept override { return Traits::base_size(*layer_); }
  [[nodiscard]] Index adapter_size() const noexcept override { return Traits::adapter_size(*layer_); }
  [[nodiscard]] LoraConfig config_of_file(const LoraConfig& config) const override {
    return Traits::config_of_file(*layer_, config);
  }
  void reset_adapter(const LoraConfig& config, std::uint64_t seed) override { layer_->reset_adapter(config, seed); }
  [[nodiscard]] RowVector<Scalar> bias() const override {
    if constexpr (requires { layer_->bias(); }) {
      return layer_->bias();
    } else {
      return {};
    }
  }
  [[nodiscard]] ModuleWeights<Scalar> weights() const override { return Traits::weights(*layer_); }
  [[nodiscard]] std::string misfit(const LoraConfig& config, const ModuleWeights<Scalar>& weights) const override {
    const FactorShape shape = Traits::factor_shape(*layer_);
    if (weights.kind != Traits::kind) return "it is a module of another kind";
    Index rank = config.rank;
    if constexpr (requires { Traits::rank_in_file(*layer_, config); }) rank = Traits::rank_in_file(*layer_, config);
    std::string text = differs("A", weights.A.rows(), weights.A.cols(), rank, shape.a_cols);
    text += differs("B", weights.B.rows(), weights.B.cols(), shape.b_rows, rank);
    text += differs("lora_bias", 1, weights.lora_bias.size(), 1, config.lora_bias ? shape.b_rows : 0);
    text += differs("magnitude", 1, weights.magnitude.size(), 1, config.use_dora ? shape.b_rows : 0);
    return text;
  }
  void load(const ModuleWeights<Scalar>& weights) override { Traits::load(*layer_, weights); }
  [[nodiscard]] ParameterList<Scalar> parameters() override { return layer_->parameters(); }
  void zero_grad() noexcept override { layer_->zero_grad(); }
  void train() override { layer_->train(); }
  void eval() override { layer_->eval(); }
  void merge() override { layer_->merge(); }
  void unmerge() noexcept override { layer_->unmerge(); }
  void merge_and_unload() override { layer_->merge_and_unload(); }
  [[nodiscard]] bool training() const noexcept override { return layer_->training(); }
  [[nodiscard]] bool merged() const noexcept override { return layer_->merged(); }

 private:
  static std::string differs(const char* what, Index rows, Index cols, Index wanted_rows, Index wanted_cols) {
    if (rows == wanted_rows && cols == wanted_cols) return {};
    std::string text = " ";
    text += what;
    text += " is ";
    text += shape_text(rows, cols);
    text += " for ";
    text += shape_text(wanted_rows, wanted_cols);
    return text;
  }

  Layer* layer_;
};

}  // namespace lora
