// SPDX-License-Identifier: MIT
// The ways of adapting a pretrained network that are compared.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/dense_layer.hpp"
#include "common/mlp.hpp"
#include "lora/layers/linear.hpp"

namespace examples {

using DenseNetwork = Mlp<DenseLayer<float>>;
using LoraNetwork = Mlp<lora::LoraLinear<float>>;
using AnyNetwork = std::variant<DenseNetwork, LoraNetwork>;

/// LoRA at a rank, or full fine-tuning.
struct Method {
  Index rank = 0;  ///< 0 stands for full fine-tuning

  [[nodiscard]] bool full() const noexcept { return rank == 0; }
  [[nodiscard]] std::string name() const {
    return full() ? std::string("full fine-tuning") : "LoRA, r = " + std::to_string(rank);
  }
};

inline constexpr std::array<Method, 6> methods = {Method{1}, Method{2}, Method{4}, Method{8}, Method{16}, Method{0}};

/// The method whose adapter is merged, saved and loaded.
inline constexpr std::size_t shown_method = 3;

/// The base network with adapters on all layers: scaling alpha / rank is 2 whatever the rank.
[[nodiscard]] inline LoraNetwork with_adapters(const DenseNetwork& base, const lora::LoraConfig& config,
                                               std::uint64_t seed) {
  std::vector<lora::LoraLinear<float>> layers;
  layers.reserve(base.layers().size());
  for (const auto& layer : base.layers()) {
    layers.emplace_back(layer.weight(), layer.bias(), config, seed + layers.size());
  }
  return LoraNetwork(std::move(layers));
}

[[nodiscard]] inline lora::LoraConfig config_of(const Method& method) {
  return {.rank = method.rank, .alpha = 2.0 * static_cast<double>(method.rank)};
}

/// A copy of the base network, ready to be trained by the method.
[[nodiscard]] inline AnyNetwork prepare(const DenseNetwork& base, const Method& method, std::uint64_t seed) {
  if (method.full()) return base;
  return with_adapters(base, config_of(method), seed);
}

}  // namespace examples
