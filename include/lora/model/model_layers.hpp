// What each of the library's layers says of itself to a model.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/layers/conv.hpp"
#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "lora/model/model_layer.hpp"

namespace lora {

template <class Scalar, class Weight>
struct ModelLayerTraits<LoraLinear<Scalar, Weight>>
    : StandardLayerTraits<LoraLinear<Scalar, Weight>, ModuleKind::linear> {};

/// Convolutions without groups: with groups the factors of a file are not those of the layer.
template <class ScalarType, int Dim>
struct ModelLayerTraits<LoraConv<ScalarType, Dim>>
    : StandardLayerTraits<LoraConv<ScalarType, Dim>, Dim == 1   ? ModuleKind::conv1d
                                                     : Dim == 2 ? ModuleKind::conv2d
                                                                : ModuleKind::conv3d> {
  using Layer = LoraConv<ScalarType, Dim>;
  using Standard = StandardLayerTraits<Layer, ModuleKind::conv1d>;

  [[nodiscard]] static Index base_size(const Layer& layer) { return layer.weight().size() + layer.bias().size(); }
  [[nodiscard]] static ModuleWeights<ScalarType> weights(const Layer& layer) {
    ModuleWeights<ScalarType> weights = Standard::weights(layer);
    weights.kind = ModelLayerTraits::kind;
    weights.kernel_size.assign(layer.geometry().kernel.begin(), layer.geometry().kernel.end());
    return weights;
  }
};

template <class ScalarType>
struct ModelLayerTraits<LoraEmbedding<ScalarType>> {
  using Layer = LoraEmbedding<ScalarType>;
  static constexpr ModuleKind kind = ModuleKind::embedding;

  [[nodiscard]] static FactorShape factor_shape(const Layer& layer) {
    return {layer.num_embeddings(), layer.embedding_dim()};
  }
  [[nodiscard]] static Index base_size(const Layer& layer) { return layer.num_embeddings() * layer.embedding_dim(); }
  [[nodiscard]] static Index adapter_size(const Layer& layer) {
    return layer.lora_embedding_A().size() + layer.lora_embedding_B().size() + layer.magnitude().size();
  }
  [[nodiscard]] static LoraConfig config_of_file(const Layer& /*layer*/, const LoraConfig& config) { return config; }
  [[nodiscard]] static ModuleWeights<ScalarType> weights(const Layer& layer) {
    ModuleWeights<ScalarType> weights;
    weights.kind = kind;
    weights.A = layer.lora_embedding_A();
    weights.B = layer.lora_embedding_B();
    weights.magnitude = layer.magnitude();
    weights.scaling = layer.config().scaling();
    return weights;
  }
  static void load(Layer& layer, const ModuleWeights<ScalarType>& weights) {
    layer.set_factors(weights.A, weights.B);
    if (weights.magnitude.size() > 0) layer.set_magnitude(weights.magnitude);
  }
};

/// To files a MergedLinear of E enabled projections is a linear layer of rank r E, whose B is zero outside the blocks
/// of the enabled projections, with alpha E times the layer's (sqrt(E) times with use_rslora), so that the scaling is
/// the layer's.
template <class ScalarType, class Weight>
struct ModelLayerTraits<MergedLinear<ScalarType, Weight>> {
  using Layer = MergedLinear<ScalarType, Weight>;
  static constexpr ModuleKind kind = ModuleKind::linear;

  [[nodiscard]] static FactorShape factor_shape(const Layer& layer) {
    return {layer.in_features(), layer.out_features()};
  }
  [[nodiscard]] static Index base_size(const Layer& layer) {
    return layer.in_features() * layer.out_features() + layer.bias().size();
  }
  [[nodiscard]] static Index adapter_size(const Layer& layer) { return layer.lora_A().size() + layer.lora_B().size(); }
  [[nodiscard]] static LoraConfig config_of_file(const Layer& layer, LoraConfig config) {
    const Index enabled = enabled_count(layer);
    if (config.rank % enabled == 0) {
      config.rank /= enabled;
      const auto count = static_cast<double>(enabled);
      config.alpha /= config.use_rslora ? std::sqrt(count) : count;
    }
    return config;
  }
  /// The rank that the module has in files for a layer of this configuration.
  [[nodiscard]] static Index rank_in_file(const Layer& layer, const LoraConfig& config) {
    return config.rank * enabled_count(layer);
  }
  [[nodiscard]] static ModuleWeights<ScalarType> weights(const Layer& layer) {
    ModuleWeights<ScalarType> weights;
    weights.A = layer.lora_A();
    weights.B = Matrix<ScalarType>::Zero(layer.out_features(), layer.lora_A().rows());
    for_each_block(layer, [&](Index output, Index outputs, Index e) {
      weights.B.block(output, e * layer.rank(), outputs, layer.rank()) =
          layer.lora_B().middleRows(e * outputs, outputs);
    });
    weights.scaling = layer.config().scaling();
    return weights;
  }
  static void load(Layer& layer, const ModuleWeights<ScalarType>& weights) {
    Matrix<ScalarType> b(layer.lora_B().rows(), layer.lora_B().cols());
    Matrix<ScalarType> rest = weights.B;
    for_each_block(layer, [&](Index output, Index outputs, Index e) {
      auto block = rest.block(output, e * layer.rank(), outputs, layer.rank());
      b.middleRows(e * outputs, outputs) = block;
      block.setZero();
    });
    if ((rest.array() != ScalarType(0)).any()) {
      throw ConfigError("LoraModel::load", "B", "zeros outside the enabled projections", "other numbers");
    }
    layer.set_factors(weights.A, b);
  }

 private:
  static Index enabled_count(const Layer& layer) {
    Index count = 0;
    for (const bool enabled : layer.enable_lora()) count += enabled ? 1 : 0;
    return count == 0 ? 1 : count;
  }
  template <class Body>
  static void for_each_block(const Layer& layer, const Body& body) {
    const std::vector<bool>& enabled = layer.enable_lora();
    const Index outputs = layer.out_features() / static_cast<Index>(enabled.size());
    Index e = 0;
    for (std::size_t g = 0; g < enabled.size(); ++g) {
      if (enabled[g]) body(static_cast<Index>(g) * outputs, outputs, e++);
    }
  }
};

}  // namespace lora
