// SPDX-License-Identifier: MIT
// The gradients of one adapted layer, owned by whoever runs the backward pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "lora/core/types.hpp"

namespace lora {

/// Gradients of what trains in one layer; a member is empty if its parameter does not train. W0 has no gradient.
///
/// A layer with one active adapter fills only this object. With several, `others` holds the gradients of the second and
/// later active adapters, and `gradients[i]` is the gradient of the i-th.
template <RealScalar Scalar>
struct LoraGradients {
  Matrix<Scalar> A;                     ///< like the adapter's A: rank x in_features
  Matrix<Scalar> B;                     ///< like the adapter's B: out_features x rank
  RowVector<Scalar> lora_bias;          ///< out_features, with lora_bias
  RowVector<Scalar> bias;               ///< out_features, if the layer's bias trains
  RowVector<Scalar> magnitude;          ///< out_features, with use_dora
  std::vector<LoraGradients> others{};  ///< of the other active adapters, in their order

  /// Active adapters: this one and the others.
  [[nodiscard]] std::size_t size() const noexcept { return 1 + others.size(); }
  /// The gradients of active adapter i, below size().
  [[nodiscard]] LoraGradients& operator[](std::size_t i) noexcept { return i == 0 ? *this : others[i - 1]; }
  /// The gradients of active adapter i, below size().
  [[nodiscard]] const LoraGradients& operator[](std::size_t i) const noexcept { return i == 0 ? *this : others[i - 1]; }

  /// Zeroes the gradients of all active adapters. No allocation.
  void set_zero() noexcept {
    const auto clear = [](Scalar* values, Index count) { std::fill_n(values, count, Scalar(0)); };
    clear(A.data(), A.size());
    clear(B.data(), B.size());
    clear(lora_bias.data(), lora_bias.size());
    clear(bias.data(), bias.size());
    clear(magnitude.data(), magnitude.size());
    for (LoraGradients& other : others) other.set_zero();
  }

  /// Adds another worker's gradients of the same layer, which have the same shapes.
  LoraGradients& operator+=(const LoraGradients& more) noexcept {
    const auto add = [](Scalar* values, const Scalar* by, Index count) {
      for (Index i = 0; i < count; ++i) values[i] += by[i];
    };
    add(A.data(), more.A.data(), A.size());
    add(B.data(), more.B.data(), B.size());
    add(lora_bias.data(), more.lora_bias.data(), lora_bias.size());
    add(bias.data(), more.bias.data(), bias.size());
    add(magnitude.data(), more.magnitude.data(), magnitude.size());
    for (std::size_t i = 0; i < others.size(); ++i) others[i] += more.others[i];
    return *this;
  }

  /// Bytes of all gradients.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total =
        static_cast<std::size_t>(A.size() + B.size() + lora_bias.size() + bias.size() + magnitude.size()) *
        sizeof(Scalar);
    for (const LoraGradients& other : others) total += other.bytes();
    return total;
  }
};

}  // namespace lora
