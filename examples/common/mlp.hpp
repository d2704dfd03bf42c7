// SPDX-License-Identifier: MIT
// A multilayer perceptron over any kind of linear layer, with a hand-written backward pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/batches.hpp"
#include "common/dense_layer.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/workspace.hpp"

namespace examples {

/// What one pass through an Mlp needs beside its input: every layer's output, the gradients of these, the layers'
/// tapes, and the kernels' scratch. One per concurrent caller. Reuse with the same number of rows allocates nothing.
template <class Layer>
struct Pass {
  using Scalar = typename Layer::Scalar;

  std::vector<lora::Matrix<Scalar>> outputs;    ///< N x out_features, after the activation
  std::vector<lora::Matrix<Scalar>> gradients;  ///< of the loss by `outputs` before the activation
  std::vector<typename Layer::Tape> tapes;
  lora::Workspace workspace;

  /// Bytes of outputs, their gradients and tapes.
  [[nodiscard]] std::size_t activation_bytes() const noexcept {
    std::size_t total = 0;
    for (const auto& matrix : outputs) total += static_cast<std::size_t>(matrix.size()) * sizeof(Scalar);
    for (const auto& matrix : gradients) total += static_cast<std::size_t>(matrix.size()) * sizeof(Scalar);
    for (const auto& tape : tapes) total += tape.bytes();
    return total;
  }
};

/// Linear layers with max(0, .) between them; the last layer's outputs are logits. `Layer` offers the explicit form of
/// lora::LoraLinear: infer, forward, backward, gradients, parameters. Const functions are reentrant.
template <class LayerType>
class Mlp {
 public:
  using Layer = LayerType;
  using Scalar = typename Layer::Scalar;

  explicit Mlp(std::vector<Layer> layers) : layers_(std::move(layers)) {}

  [[nodiscard]] std::vector<Layer>& layers() & noexcept { return layers_; }
  [[nodiscard]] const std::vector<Layer>& layers() const& noexcept { return layers_; }
  /// The layers of a temporary would not outlive the expression.
  void layers() const&& = delete;

  /// Name of layer l, counted from 0: "fc1", "fc2", ...
  [[nodiscard]] static std::string layer_name(std::size_t l) { return "fc" + std::to_string(l + 1); }

  /// The logits for X (N x in_features), which stay in the pass.
  const lora::Matrix<Scalar>& infer(const lora::Matrix<Scalar>& x, Pass<Layer>& pass) const {
    return run(x, pass, [&](std::size_t l, const lora::Matrix<Scalar>& in, lora::Matrix<Scalar>& out) {
      layers_[l].infer(in, out, pass.workspace);
    });
  }

  /// The same in training: fills the pass for `backward`.
  const lora::Matrix<Scalar>& forward(const lora::Matrix<Scalar>& x, Pass<Layer>& pass) const {
    pass.tapes.resize(layers_.size());
    return run(x, pass, [&](std::size_t l, const lora::Matrix<Scalar>& in, lora::Matrix<Scalar>& out) {
      layers_[l].forward(in, pass.tapes[l], out, pass.workspace);
    });
  }

  /// Where the caller writes the gradient of the loss by the logits, N x classes, between forward and backward.
  [[nodiscard]] lora::Matrix<Scalar>& logits_gradient(Pass<Layer>& pass) const {
    prepare(pass.gradients, pass.outputs.back().rows());
    return pass.gradients.back();
  }

  /// From pass.gradients.back() to the layers' gradients(). Call zero_grad() first.
  void backward(const lora::Matrix<Scalar>& x, Pass<Layer>& pass) {
    for (std::size_t l = layers_.size(); l-- > 1;) {
      auto& below = pass.gradients[l - 1];
      layers_[l].backward(pass.outputs[l - 1], pass.tapes[l], pass.gradients[l], layers_[l].gradients(), below,
                          pass.workspace);
      below = (pass.outputs[l - 1].array() > Scalar(0)).select(below, Scalar(0));
    }
    layers_[0].backward(x, pass.tapes[0], pass.gradients[0], layers_[0].gradients(), pass.workspace);
  }

  void zero_grad() {
    for (auto& layer : layers_) layer.zero_grad();
  }

  /// Handles on all that trains, named "fc1.weight" and so on. Valid while the network stays where it is.
  [[nodiscard]] std::vector<lora::Parameter<Scalar>> parameters() {
    std::vector<lora::Parameter<Scalar>> all;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      for (lora::Parameter<Scalar> parameter : layers_[l].parameters()) {
        parameter.rename(layer_name(l) + "." + parameter.name());
        all.push_back(std::move(parameter));
      }
    }
    return all;
  }

 private:
  void prepare(std::vector<lora::Matrix<Scalar>>& matrices, Index rows) const {
    matrices.resize(layers_.size());
    for (std::size_t l = 0; l < layers_.size(); ++l) matrices[l].resize(rows, layers_[l].out_features());
  }

  template <class Apply>
  const lora::Matrix<Scalar>& run(const lora::Matrix<Scalar>& x, Pass<Layer>& pass, const Apply& apply) const {
    prepare(pass.outputs, x.rows());
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      apply(l, l == 0 ? x : pass.outputs[l - 1], pass.outputs[l]);
      if (l + 1 < layers_.size()) pass.outputs[l] = pass.outputs[l].cwiseMax(Scalar(0));
    }
    return pass.outputs.back();
  }

  std::vector<Layer> layers_;
};

/// A network of DenseLayers with these widths, {784, 512, 256, 10} say, from a seed.
template <class Scalar>
[[nodiscard]] Mlp<DenseLayer<Scalar>> random_mlp(const std::vector<Index>& widths, std::uint64_t seed) {
  std::vector<DenseLayer<Scalar>> layers;
  for (std::size_t l = 0; l + 1 < widths.size(); ++l) {
    layers.push_back(DenseLayer<Scalar>::random(widths[l], widths[l + 1], seed + l));
  }
  return Mlp<DenseLayer<Scalar>>(std::move(layers));
}

/// The logits for every image of a set, count x classes.
template <class Layer>
[[nodiscard]] lora::Matrix<float> logits_of(const Mlp<Layer>& network, const ImageSet& set) {
  constexpr Index rows_at_once = 500;
  lora::Matrix<float> logits(set.count(), network.layers().back().out_features());
  Pass<Layer> pass;
  Batch batch;
  std::vector<Index> order;
  for (Index first = 0; first < set.count(); first += rows_at_once) {
    order.resize(static_cast<std::size_t>(std::min(rows_at_once, set.count() - first)));
    std::iota(order.begin(), order.end(), first);
    fill_batch(set, order, batch);
    logits.middleRows(first, batch.x.rows()) = network.infer(batch.x, pass);
  }
  return logits;
}

}  // namespace examples
