// SPDX-License-Identifier: MIT
// MergedLinear: a frozen linear layer whose outputs are several projections, with adapters for some of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "lora/layers/adapted_layer.hpp"
#include "lora/layers/frozen_weight_from.hpp"
#include "lora/layers/linear_kind.hpp"
#include "lora/weight/packed.hpp"

namespace lora {

/// One frozen linear layer with G = enable_lora.size() stacked projections, such as query, key and value of attention
/// in one weight. Projection g has the m = out_features / G outputs from g m on. For the e-th enabled one
///   y_g = W0_g x + bias_g + s B_e A_e drop(x),   s = alpha / rank (or alpha / sqrt(rank)),
/// with A_e rows [e r, (e+1) r) of A (r E x in_features), B_e rows [e m, (e+1) m) of B (m E x r), and E the number of
/// enabled projections; the others are the frozen layer, bit for bit. All share one dropout mask. The magnitude of DoRA
/// and the bias of B have one element per output of an enabled projection.
///
/// Starts: A Kaiming-uniform and B zero, or the gaussian and random initialisations with the rank of one projection.
/// Forms of the passes, accepted inputs and thread safety: see LoraLinear.
///
/// Source: microsoft/LoRA, loralib, MergedLinear; arXiv 2106.09685, section 4.2.
template <RealScalar Scalar, FrozenWeight Weight = PackedWeight<Scalar>>
class MergedLinear : public AdaptedLayer<MergedLinear<Scalar, Weight>, LinearKind<Scalar>, Weight> {
  using Shell = AdaptedLayer<MergedLinear, LinearKind<Scalar>, Weight>;

 public:
  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression: out_features x in_features, or
  /// in_features x out_features with `config.fan_in_fan_out`. `bias` is a vector of out_features; `enable_lora` has one
  /// entry per projection; `config.rank` is that of one projection.
  /// @throws ShapeError; ConfigError, also when out_features is not a multiple of the number of projections, or when no
  /// projection is enabled and the rank is 1 or more; std::bad_alloc
  template <class W, class B>
  MergedLinear(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, std::vector<bool> enable_lora,
               const LoraConfig& config, std::uint64_t seed)
      : MergedLinear(weight_from<Weight>(w0, config.fan_in_fan_out), bias, std::move(enable_lora), config, seed) {}

  /// Without bias.
  template <class W>
  MergedLinear(const Eigen::DenseBase<W>& w0, std::vector<bool> enable_lora, const LoraConfig& config,
               std::uint64_t seed)
      : MergedLinear(weight_from<Weight>(w0, config.fan_in_fan_out), std::move(enable_lora), config, seed) {}

  /// Wraps a frozen weight of any kind, already oriented by the caller as out_features x in_features;
  /// `config.fan_in_fan_out` decides how weight() and delta_weight() are handed out.
  template <class B>
  MergedLinear(Weight weight, const Eigen::DenseBase<B>& bias, std::vector<bool> enable_lora, const LoraConfig& config,
               std::uint64_t seed)
      : Shell(kind_of(weight, enable_lora), std::move(weight), config), enable_lora_(std::move(enable_lora)) {
    check_bias<Scalar, B>();
    this->set_base_bias(bias);
    this->start(config, seed);
  }
  /// The same without bias.
  MergedLinear(Weight weight, std::vector<bool> enable_lora, const LoraConfig& config, std::uint64_t seed)
      : Shell(kind_of(weight, enable_lora), std::move(weight), config), enable_lora_(std::move(enable_lora)) {
    this->start(config, seed);
  }

  MergedLinear(const MergedLinear&) = default;
  MergedLinear(MergedLinear&&) noexcept = default;
  /// All or nothing. @throws std::bad_alloc
  MergedLinear& operator=(const MergedLinear& other) { return *this = MergedLinear(other); }
  MergedLinear& operator=(MergedLinear&&) noexcept = default;
  ~MergedLinear() override = default;

  /// Which of the stacked blocks are adapted.
  [[nodiscard]] const std::vector<bool>& enable_lora() const noexcept { return enable_lora_; }

 private:
  [[nodiscard]] static LinearKind<Scalar> kind_of(const Weight& weight, const std::vector<bool>& enable_lora) {
    require_not_empty("MergedLinear", weight.out_features(), weight.in_features());
    const auto projections = static_cast<Index>(enable_lora.size());
    if (projections == 0) {
      throw ConfigError("MergedLinear", "enable_lora", "one entry for each projection", "none");
    }
    const Index outputs = weight.out_features();
    if (outputs % projections != 0) {
      throw ConfigError("MergedLinear", "enable_lora",
                        "a number of projections that divides out_features, " + std::to_string(outputs),
                        std::to_string(projections));
    }
    OutputBlocks blocks{outputs, outputs / projections, {}};
    for (Index g = 0; g < projections; ++g) {
      if (enable_lora[static_cast<std::size_t>(g)]) blocks.first.push_back(g * blocks.features);
    }
    return LinearKind<Scalar>("MergedLinear", weight.in_features(), std::move(blocks));
  }

  std::vector<bool> enable_lora_;
};

}  // namespace lora
