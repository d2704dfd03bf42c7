// What the encoder's linear layers are: frozen with adapters, or trained whole.
#pragma once

#include <vector>

#include "common/dense_layer.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "sentence_encoder/encoder_weights.hpp"

namespace examples::sentence_encoder {

/// Frozen layers of rank 0 that lora::LoraModel gives adapters to; queries, keys and values get factors of their own.
/// Biases, layer norms and the embedding are frozen too.
template <lora::RealScalar ScalarType>
struct AdaptedLayers {
  using Scalar = ScalarType;
  using Linear = lora::LoraLinear<Scalar>;
  using Qkv = lora::MergedLinear<Scalar>;
  static constexpr bool trains_norms = false;

  [[nodiscard]] static Linear make_linear(const LinearWeights<Scalar>& weights) {
    return Linear(weights.kernel, weights.bias, frozen, 0);
  }
  [[nodiscard]] static Qkv make_qkv(const LinearWeights<Scalar>& weights) {
    return Qkv(weights.kernel, weights.bias, std::vector<bool>(3, true), frozen, 0);
  }

 private:
  static inline const lora::LoraConfig frozen{.rank = 0, .fan_in_fan_out = true};
};

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
