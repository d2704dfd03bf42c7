// SPDX-License-Identifier: MIT
// What the encoder's linear layers are: frozen with adapters, or trained whole.
#pragma once

#include <vector>

#include "common/dense_layer.hpp"
#include "lora/core/view.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/weight_format.hpp"

namespace examples::sentence_encoder {

/// Frozen layers of rank 0 that lora::LoraModel gives adapters to; queries, keys and values get factors of their own.
/// Biases, layer norms and the embedding are frozen too. The kernels are kept in `format`, all else in the scalar type.
template <lora::RealScalar ScalarType>
struct AdaptedLayers {
  using Scalar = ScalarType;
  using Weight = lora::AnyWeight<Scalar>;
  using Linear = lora::LoraLinear<Scalar, Weight>;
  using Qkv = lora::MergedLinear<Scalar, Weight>;
  static constexpr bool trains_norms = false;

  WeightFormat format = WeightFormat::scalar;

  [[nodiscard]] Linear make_linear(const LinearWeights<Scalar>& weights) const {
    return Linear(oriented(weights.kernel), weights.bias, frozen, 0);
  }
  [[nodiscard]] Qkv make_qkv(const LinearWeights<Scalar>& weights) const {
    return Qkv(oriented(weights.kernel), weights.bias, std::vector<bool>(3, true), frozen, 0);
  }

 private:
  // Kernels are in_features x out_features, frozen weights the other way round, with blocks along in_features.
  [[nodiscard]] Weight oriented(const lora::Matrix<Scalar>& kernel) const {
    return frozen_weight<Scalar>(format, lora::view_of(kernel).transpose());
  }

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
