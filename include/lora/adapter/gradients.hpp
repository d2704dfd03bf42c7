// The gradients of one adapted layer, owned by whoever runs the backward pass.
#pragma once

#include <cstddef>

#include "lora/core/types.hpp"

namespace lora {

/// Gradients of what trains in one layer; an empty member stands for what does not train. There is none for W0.
template <RealScalar Scalar>
struct LoraGradients {
  Matrix<Scalar> A;                  ///< rank x in_features
  Matrix<Scalar> B;                  ///< out_features x rank
  RowVector<Scalar> lora_bias;       ///< out_features, with lora_bias
  RowVector<Scalar> bias;            ///< out_features, where the layer's bias trains
  RowVector<Scalar> magnitude = {};  ///< out_features, with use_dora

  void set_zero() noexcept {
    A.setZero();
    B.setZero();
    lora_bias.setZero();
    bias.setZero();
    magnitude.setZero();
  }

  /// Adds another worker's gradients of the same layer.
  LoraGradients& operator+=(const LoraGradients& other) noexcept {
    A += other.A;
    B += other.B;
    lora_bias += other.lora_bias;
    bias += other.bias;
    magnitude += other.magnitude;
    return *this;
  }

  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(A.size() + B.size() + lora_bias.size() + bias.size() + magnitude.size()) *
           sizeof(Scalar);
  }
};

}  // namespace lora
