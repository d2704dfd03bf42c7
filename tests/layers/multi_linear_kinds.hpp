// Layers of several adapters for each scalar and each kind and storage of the weight, and the adapters tests give them.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "lora/layers/multi_linear.hpp"
#include "support/layer_kinds.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {

/// A layer and the caller's memory that its weight may view. Kind is one of LayerKinds.
template <class Kind>
struct MultiLayerUnderTest {
  using Scalar = typename Kind::Scalar;
  using Weight = typename Kind::Layer::Weight;
  using Layer = MultiLoraLinear<Scalar, Weight>;
  typename Kind::Storage storage;
  std::unique_ptr<Layer> owner;

  /// `w` is out_features x in_features; it is stored transposed with `fan_in_fan_out`.
  MultiLayerUnderTest(const Matrix<Scalar>& w, const RowVector<Scalar>& bias, bool fan_in_fan_out = false) {
    storage = fan_in_fan_out ? Matrix<Scalar>(w.transpose()) : w;
    const auto view = view_of(storage);
    Weight weight(fan_in_fan_out ? view.transpose() : view);
    owner = bias.size() > 0 ? std::make_unique<Layer>(std::move(weight), bias, fan_in_fan_out)
                            : std::make_unique<Layer>(std::move(weight), fan_in_fan_out);
  }
  [[nodiscard]] Layer& layer() { return *owner; }
};

/// An adapter whose B is not zero.
[[nodiscard]] inline LoraConfig random_config(Index rank, double dropout = 0) {
  LoraConfig config;
  config.rank = rank;
  config.alpha = 2;
  config.dropout = dropout;
  config.init_lora_weights = InitLoraWeights::random;
  return config;
}

}  // namespace lora::testing
