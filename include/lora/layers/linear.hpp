// SPDX-License-Identifier: MIT
// LoraLinear: a frozen linear layer with trainable low-rank adapters.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "lora/layers/adapted_layer.hpp"
#include "lora/layers/frozen_weight_from.hpp"
#include "lora/layers/linear_kind.hpp"
#include "lora/weight/packed.hpp"

namespace lora {

/// y = W0 x + bias + the sum of s B A drop(x) over the active adapters, where W0 is frozen, A (rank x in_features) and
/// B (out_features x rank) are trainable, and s = alpha / rank (or alpha / sqrt(rank)). Over rows: Y (N x d) = X W0^T +
/// bias +
/// s (drop(X) A^T) B^T.
///
/// Backward: dB = s dY^T U with U = drop(X) A^T; dA = V^T drop(X) with V = s dY B; dX = dY W0 + drop'(V A);
/// dbias = sum of dY over rows, if the bias trains. Nothing is computed, stored or written for W0. With use_dora a
/// trainable magnitude scales every output; adapter/dora.hpp has the formulas. With pissa and olora A and B start as a
/// part of W0 and the adapter adds s (B A - B0 A0): W0 itself is unchanged.
///
/// Inputs are Eigen matrices of rows, vectors, maps or blocks of any storage order, or a MatrixView (read in place),
/// and, with layers/tensor.hpp, row-major Eigen tensors whose last dimension is features. A row's result does not
/// depend on the other rows, on the storage order or on the number of workers.
///
/// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.
template <RealScalar Scalar, FrozenWeight Weight = PackedWeight<Scalar>>
class LoraLinear : public AdaptedLayer<LoraLinear<Scalar, Weight>, LinearKind<Scalar>, Weight> {
  using Shell = AdaptedLayer<LoraLinear, LinearKind<Scalar>, Weight>;

 public:
  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression: out_features x in_features, or
  /// in_features x out_features with `config.fan_in_fan_out`. `bias` is a vector of out_features.
  /// @throws ShapeError, ConfigError, std::bad_alloc
  template <class W, class B>
  LoraLinear(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, const LoraConfig& config,
             std::uint64_t seed)
      : LoraLinear(weight_from<Weight>(w0, config.fan_in_fan_out), bias, config, seed) {}
  /// The same with a bias in any contiguous memory.
  template <class W>
  LoraLinear(const Eigen::DenseBase<W>& w0, std::span<const Scalar> bias, const LoraConfig& config, std::uint64_t seed)
      : LoraLinear(w0, bias_map(bias), config, seed) {}

  /// Without bias.
  template <class W>
  LoraLinear(const Eigen::DenseBase<W>& w0, const LoraConfig& config, std::uint64_t seed)
      : LoraLinear(weight_from<Weight>(w0, config.fan_in_fan_out), config, seed) {}

  /// Wraps a frozen weight of any kind, already oriented by the caller as out_features x in_features;
  /// `config.fan_in_fan_out` decides how weight() and delta_weight() are handed out.
  template <class B>
  LoraLinear(Weight weight, const Eigen::DenseBase<B>& bias, const LoraConfig& config, std::uint64_t seed)
      : Shell(kind_of(weight), std::move(weight), config) {
    check_bias<Scalar, B>();
    this->set_base_bias(bias);
    this->start(config, seed);
  }
  /// The same with a bias in any contiguous memory.
  LoraLinear(Weight weight, std::span<const Scalar> bias, const LoraConfig& config, std::uint64_t seed)
      : LoraLinear(std::move(weight), bias_map(bias), config, seed) {}

  /// The same without bias.
  LoraLinear(Weight weight, const LoraConfig& config, std::uint64_t seed)
      : Shell(kind_of(weight), std::move(weight), config) {
    this->start(config, seed);
  }

  /// Rejects a call without a seed, with a clear message.
  template <class W>
  LoraLinear(const Eigen::DenseBase<W>& w0, const LoraConfig& config) : LoraLinear(w0, config, std::uint64_t{0}) {
    static_assert(sizeof(W) == 0, "lora: LoraLinear wants (W0, config, seed) or (W0, bias, config, seed)");
  }
  /// Rejects a call without a seed, with a clear message.
  template <class W, class B>
  LoraLinear(const Eigen::DenseBase<W>& w0, const B& bias, const LoraConfig& config)
      : LoraLinear(w0, bias, config, std::uint64_t{0}) {
    static_assert(sizeof(W) == 0, "lora: LoraLinear wants (W0, config, seed) or (W0, bias, config, seed)");
  }

 private:
  [[nodiscard]] static LinearKind<Scalar> kind_of(const Weight& weight) {
    require_not_empty("LoraLinear", weight.out_features(), weight.in_features());
    return LinearKind<Scalar>("LoraLinear", weight.in_features(), OutputBlocks::all(weight.out_features()));
  }
};

#if defined(LORA_COMPILED)
extern template class LayerCore<LinearKind<float>>;
extern template class LayerCore<LinearKind<double>>;
#endif

}  // namespace lora
