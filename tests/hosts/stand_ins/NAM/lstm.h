// SPDX-License-Identifier: MIT
// Stands in for NeuralAmpModelerCore's header of this name: what examples/hosts/neural_amp uses of it, with the same
// arithmetic in process(). Its cells keep their weights private, as there.
#pragma once

#include <Eigen/Dense>
#include <cmath>
#include <utility>
#include <vector>

namespace nam::lstm {

class LSTMCell {
 public:
  LSTMCell(Eigen::MatrixXf w, Eigen::VectorXf b)
      : _w(std::move(w)), _b(std::move(b)), output(Eigen::VectorXf::Zero(_b.size() / 4)), memory_(output) {}

  void process(const Eigen::VectorXf& input) {
    const Eigen::Index hidden = output.size();
    Eigen::VectorXf inputs(input.size() + hidden);
    inputs << input, output;
    const Eigen::VectorXf sums = _w * inputs + _b;
    const auto sigmoid = [](float x) { return 1.0F / (1.0F + std::exp(-x)); };
    for (Eigen::Index h = 0; h < hidden; ++h) {
      memory_(h) = sigmoid(sums(hidden + h)) * memory_(h) + sigmoid(sums(h)) * std::tanh(sums(2 * hidden + h));
      output(h) = sigmoid(sums(3 * hidden + h)) * std::tanh(memory_(h));
    }
  }

 private:
  Eigen::MatrixXf _w;
  Eigen::VectorXf _b;

 public:
  Eigen::VectorXf output;

 private:
  Eigen::VectorXf memory_;
};

class LSTM {
 public:
  [[nodiscard]] int NumInputChannels() const { return channels; }
  [[nodiscard]] int NumOutputChannels() const { return static_cast<int>(_head_weight.rows()); }

  [[nodiscard]] float process(float sample) {
    Eigen::VectorXf input = Eigen::VectorXf::Constant(1, sample);
    for (LSTMCell& cell : _layers) {
      cell.process(input);
      input = cell.output;
    }
    return (_head_weight * input + _head_bias)(0);
  }

  std::vector<LSTMCell> _layers;
  Eigen::MatrixXf _head_weight;
  Eigen::VectorXf _head_bias;
  int channels = 1;
};

}  // namespace nam::lstm
