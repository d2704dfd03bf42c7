// SPDX-License-Identifier: MIT
// Trains adapters of an LSTM of NeuralAmpModelerCore: the same arithmetic as its process(), over batches, with
// backpropagation through time. The model's weights are read where they lie and not written.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "lora/lora.hpp"
#include "neural_amp/lstm_access.hpp"

namespace hosts {

/// For models with one channel. `model` outlives this object and keeps its weights meanwhile.
class LstmTraining {
  using Weight = lora::DenseWeight<float>;
  using Matrix = lora::Matrix<float>;

 public:
  using Layer = lora::LoraLinear<float, Weight>;

  /// Cell l takes the seed `seed + l`. @throws lora::ShapeError for a model with several channels
  LstmTraining(nam::lstm::LSTM& model, const lora::LoraConfig& config, std::uint64_t seed)
      : head_(model._head_weight), head_bias_(model._head_bias) {
    if (model.NumInputChannels() != 1 || model.NumOutputChannels() != 1) {
      throw lora::ShapeError("LstmTraining", "model", "one channel in and out",
                             lora::shape_text(model.NumInputChannels(), model.NumOutputChannels()));
    }
    layers_.reserve(model._layers.size());
    for (auto& cell : model._layers) {
      const Eigen::MatrixXf& w = nam_access::weight_of(cell);
      layers_.emplace_back(Weight(lora::view_of(w)), nam_access::bias_of(cell), config, seed + layers_.size());
    }
    passes_.resize(layers_.size());
  }

  /// The model's output for signals that start in silence: one signal per row, one sample per column.
  [[nodiscard]] Matrix forward(const Matrix& signals) {
    const lora::Index n = signals.rows(), hidden = head_.cols();
    Matrix outputs(n, signals.cols());
    for (auto& steps : passes_) steps.resize(static_cast<std::size_t>(signals.cols()));
    for (lora::Index t = 0; t < signals.cols(); ++t) {
      Matrix input = signals.col(t);
      for (std::size_t l = 0; l < layers_.size(); ++l) {
        Step& step = passes_[l][static_cast<std::size_t>(t)];
        const Step* const previous = t > 0 ? &passes_[l][static_cast<std::size_t>(t) - 1] : nullptr;
        step.inputs.setZero(n, input.cols() + hidden);
        step.inputs.leftCols(input.cols()) = input;
        if (previous != nullptr) step.inputs.rightCols(hidden) = previous->output;
        step.gates.resize(n, 4 * hidden);
        layers_[l].forward(step.inputs, step.tape, step.gates, workspace_);
        activate(step, previous);
        input = step.output;
      }
      outputs.col(t) = (input * head_.transpose()).array() + head_bias_(0);
    }
    return outputs;
  }

  /// Adds to the adapters' gradients for the last forward pass; `d_outputs` has the shape of its outputs.
  void backward(const Matrix& d_outputs) {
    const lora::Index n = d_outputs.rows(), hidden = head_.cols();
    // What flows to the step before: from each cell to itself.
    std::vector<Matrix> d_output(layers_.size(), Matrix::Zero(n, hidden)), d_memory = d_output;
    Matrix d_gates(n, 4 * hidden), d_inputs;
    for (lora::Index t = d_outputs.cols() - 1; t >= 0; --t) {
      d_output.back() += d_outputs.col(t) * head_;
      for (std::size_t l = layers_.size(); l-- > 0;) {
        const Step& step = passes_[l][static_cast<std::size_t>(t)];
        const Step* const previous = t > 0 ? &passes_[l][static_cast<std::size_t>(t) - 1] : nullptr;
        differentiate(step, previous, d_output[l], d_memory[l], d_gates);
        d_inputs.resize(n, step.inputs.cols());
        layers_[l].backward(step.inputs, step.tape, d_gates, layers_[l].gradients(), d_inputs, workspace_);
        d_output[l] = d_inputs.rightCols(hidden);
        if (l > 0) d_output[l - 1] += d_inputs.leftCols(hidden);
      }
    }
  }

  /// One step of the optimiser on half the mean squared error; returns the mean squared error before it.
  float train(const Matrix& signals, const Matrix& targets, lora::AdamW<float>& optimizer) {
    const Matrix error = forward(signals) - targets;
    for (Layer& layer : layers_) layer.zero_grad();
    backward(error / static_cast<float>(error.size()));
    for (Layer& layer : layers_) optimizer.step(layer);
    return error.squaredNorm() / static_cast<float>(error.size());
  }

  [[nodiscard]] std::vector<Layer>& layers() noexcept { return layers_; }

 private:
  struct Step {
    Matrix inputs;  ///< [input, output of the step before]
    Matrix gates;   ///< after their activations: i, f, g, o
    Matrix memory, output;
    lora::LoraTape<float> tape;
  };

  static void activate(Step& step, const Step* previous) {
    const lora::Index hidden = step.gates.cols() / 4;
    const auto sigmoid = [](float z) { return 1.0F / (1.0F + std::exp(-z)); };
    const auto hyperbolic = [](float z) { return std::tanh(z); };
    auto g = step.gates.middleCols(2 * hidden, hidden);
    step.gates.leftCols(2 * hidden) = step.gates.leftCols(2 * hidden).unaryExpr(sigmoid).eval();
    step.gates.rightCols(hidden) = step.gates.rightCols(hidden).unaryExpr(sigmoid).eval();
    g = g.unaryExpr(hyperbolic).eval();
    step.memory = step.gates.leftCols(hidden).cwiseProduct(g);
    if (previous != nullptr) step.memory += step.gates.middleCols(hidden, hidden).cwiseProduct(previous->memory);
    step.output = step.gates.rightCols(hidden).cwiseProduct(step.memory.unaryExpr(hyperbolic));
  }

  /// Takes the gradient of the memory to the step before, and fills that of the gates' sums.
  static void differentiate(const Step& step, const Step* previous, const Matrix& d_output, Matrix& d_memory,
                            Matrix& d_gates) {
    const lora::Index hidden = step.memory.cols();
    const auto gate = [&](lora::Index k) { return step.gates.middleCols(k * hidden, hidden).array(); };
    const auto d_gate = [&](lora::Index k) { return d_gates.middleCols(k * hidden, hidden).array(); };
    const auto i = gate(0), f = gate(1), g = gate(2), o = gate(3);
    const Eigen::ArrayXXf level = step.memory.array().tanh();
    d_memory.array() += d_output.array() * o * (1 - level.square());
    d_gate(0) = d_memory.array() * g * i * (1 - i);
    d_gate(1).setZero();
    if (previous != nullptr) d_gate(1) = d_memory.array() * previous->memory.array() * f * (1 - f);
    d_gate(2) = d_memory.array() * i * (1 - g.square());
    d_gate(3) = d_output.array() * level * o * (1 - o);
    d_memory.array() *= f;
  }

  const Eigen::MatrixXf& head_;
  const Eigen::VectorXf& head_bias_;
  std::vector<Layer> layers_;
  std::vector<std::vector<Step>> passes_;  // of each cell, of each sample
  lora::Workspace workspace_;
};

}  // namespace hosts
