// What the encoder's linear layers are: frozen with adapters, or trained whole.
#pragma once

#include <type_traits>
#include <vector>

#include "common/dense_layer.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "sentence_encoder/encoder_weights.hpp"

namespace examples::sentence_encoder {

/// Frozen layers of rank 0 that lora::LoraModel gives adapters to. Biases, layer norms and the embedding are frozen
/// too. `QkvLayer` is lora::MergedLinear, with factors of their own for queries, keys and values, or lora::LoraLinear,
/// with one pair over all three; DoRA needs the latter.
template <lora::RealScalar ScalarType, class QkvLayer = lora::MergedLinear<ScalarType>>
struct AdaptedLayers {
  using Scalar = ScalarType;
  using Linear = lora::LoraLinear<Scalar>;
  using Qkv = QkvLayer;
  static constexpr bool trains_norms = false;

  [[nodiscard]] static Linear make_linear(const LinearWeights<Scalar>& weights) {
    return Linear(weights.kernel, weights.bias, frozen, 0);
  }
  [[nodiscard]] static Qkv make_qkv(const LinearWeights<Scalar>& weights) {
    if constexpr (std::is_same_v<Qkv, Linear>) {
      return make_linear(weights);
    } else {
      return Qkv(weights.kernel, weights.bias, std::vector<bool>(3, true), frozen, 0);
    }
  }

 private:
  static inline const lora::LoraConfig frozen{.rank = 0, .fan_in_fan_out = true};
};

/// The same with one pair of factors over queries, keys and values.
template <lora::RealScalar Scalar>
using StackedAdaptedLayers = AdaptedLayers<Scalar, lora::LoraLinear<Scalar>>;

/// Full fine-tuning: every kernel, every bias and the layer norms train. The table of token embeddings stays as it is,
/// as in AdaptedLayers.
template <lora::RealScalar ScalarType>
struct TrainedLayers {
  using Scalar = ScalarType;
  using Linear = DenseLayer<Scalar>;
  using Qkv = Linear;
  static constexpr bool trains_norms = true;

  [[nodiscard]] static Linear make_linear(const LinearWeights<Scalar>& weights) {
    return Linear(weights.kernel.transpose(), weights.bias);
  }
  [[nodiscard]] static Qkv make_qkv(const LinearWeights<Scalar>& weights) { return make_linear(weights); }
};

}  // namespace examples::sentence_encoder
