// SPDX-License-Identifier: MIT
// LoRA for the dense layers of an rl_tools MLP. The network has the capability Backward: parameters without gradients,
// and the pre-activations of a batch, which is what a frozen layer needs. Weights are viewed where they lie, and
// pre-activations are written where rl_tools writes them, so rl_tools::backward_input sees what this pass left.
//
// Include this after rl_tools' headers.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "lora/lora.hpp"

namespace hosts {

/// `Math` is DEVICE::SPEC::MATH of the rl_tools device; the network's numbers are float.
template <class Math, class Network>
class MlpLora {
  using Matrix = lora::Matrix<float>;
  using Weight = lora::DenseWeight<float>;

 public:
  using Layer = lora::LoraLinear<float, Weight>;
  static constexpr lora::Index batch = Network::SPEC::INTERNAL_BATCH_SIZE;

  /// `network` is allocated and outlives this object. The layer at position i takes the seed `seed + i`.
  MlpLora(Network& network, const lora::LoraConfig& config, std::uint64_t seed) {
    add(network.input_layer, config, seed);
    for (auto& hidden : network.hidden_layers) add(hidden, config, seed);
    add(network.output_layer, config, seed);
  }

  /// The outputs for `x`, batch x inputs. @throws lora::ShapeError
  [[nodiscard]] Matrix forward(const Matrix& x) {
    Matrix activations = x;
    for (Dense& dense : layers_) {
      dense.inputs = activations;
      dense.layer.forward(dense.inputs, dense.tape, dense.pre_activations, workspace_);
      activations = dense.pre_activations.map().unaryExpr(dense.activation);
    }
    return activations;
  }

  /// Adds to the adapters' gradients for the last forward pass, and returns the gradient of its inputs.
  Matrix backward(const Matrix& d_outputs) {
    Matrix gradient = d_outputs;
    for (auto dense = layers_.rbegin(); dense != layers_.rend(); ++dense) {
      const Matrix d_sums = gradient.cwiseProduct(dense->pre_activations.map().unaryExpr(dense->slope));
      gradient.resize(d_sums.rows(), dense->layer.in_features());
      dense->layer.backward(dense->inputs, dense->tape, d_sums, dense->layer.gradients(), gradient, workspace_);
    }
    return gradient;
  }

  /// One step of the optimiser; then the gradients are zero.
  void update(lora::AdamW<float>& optimizer) {
    for (Dense& dense : layers_) {
      optimizer.step(dense.layer);
      dense.layer.zero_grad();
    }
  }

  /// Writes the adapters into the network's weights, so that rl_tools::evaluate uses them; takes them out, bit for bit.
  void merge() {
    for (Dense& dense : layers_) dense.layer.merge();
  }
  void unmerge() {
    for (Dense& dense : layers_) dense.layer.unmerge();
  }

  [[nodiscard]] lora::Index trainable_parameter_count() const {
    lora::Index count = 0;
    for (const Dense& dense : layers_) count += dense.layer.trainable_parameter_count();
    return count;
  }

 private:
  using Function = float (*)(float);

  struct Dense {
    Layer layer;
    lora::MatrixView<float> pre_activations;
    Function activation, slope;
    Matrix inputs{};
    lora::LoraTape<float> tape{};
  };

  template <class RlLayer>
  void add(RlLayer& layer, const lora::LoraConfig& config, std::uint64_t seed) {
    namespace rlt = RL_TOOLS_NAMESPACE_WRAPPER ::rl_tools;
    constexpr auto function = RlLayer::SPEC::ACTIVATION_FUNCTION;
    constexpr lora::Index outputs = RlLayer::OUTPUT_DIM, inputs = RlLayer::INPUT_DIM;
    using Sums = std::remove_reference_t<decltype(layer.pre_activations)>;
    static_assert(Sums::SPEC::COL_PITCH == 1, "pre-activations have contiguous rows");
    float* const weights = rlt::data(layer.weights.parameters);
    const float* const biases = rlt::data(layer.biases.parameters);
    layers_.push_back({Layer(Weight(lora::MatrixView<float>{weights, outputs, inputs}),
                             Eigen::Map<const lora::RowVector<float>>(biases, outputs), config, seed + layers_.size()),
                       {layer.pre_activations._data, batch, outputs, Sums::SPEC::ROW_PITCH},
                       [](float x) { return rlt::activation<Math, float, function>(x); },
                       [](float x) { return rlt::d_activation_d_x<Math, float, function>(x); }});
  }

  std::vector<Dense> layers_;
  lora::Workspace workspace_;
};

}  // namespace hosts
