// SPDX-License-Identifier: MIT
// The layers that the cases time, with the memory their passes need.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "lora/core/random.hpp"
#include "lora/layers/linear.hpp"

#if defined(__AVX__)
#error "build/bin/ratios measures what a user gets who compiles with a plain -O2: compile it without -march and -mavx"
#endif

namespace lora::bench {

/// Normal numbers, the same for the same stream. They repeat after a prime number of elements, for drawing as many as a
/// large weight has takes longer than measuring it.
[[nodiscard]] inline Matrix<float> normal_matrix(Index rows, Index cols, std::uint64_t stream) {
  constexpr Index period = 262139;
  Matrix<float> matrix(rows, cols);
  const Index drawn = std::min(matrix.size(), period);
  fill_normal(MatrixView<float>{matrix.data(), 1, drawn, drawn, 1}, 1.0, {42, stream});
  for (Index i = drawn; i < matrix.size(); ++i) matrix.data()[i] = matrix.data()[i - period];
  return matrix;
}

/// Input, weight and gradient of one case. Every contender works on the same ones.
struct LayerData {
  Matrix<float> w0, x, dy, y, dx;
  RowVector<float> bias;

  LayerData(Index n, Index d, Index k)
      : w0(normal_matrix(d, k, 0)),
        x(normal_matrix(n, k, 1)),
        dy(normal_matrix(n, d, 2)),
        y(n, d),
        dx(n, k),
        bias(normal_matrix(1, d, 3)) {}
};

/// Rank 0 is the base layer. B is not zero.
[[nodiscard]] inline LoraConfig timed_config(Index rank, double dropout = 0) {
  return {.rank = rank, .alpha = 16, .dropout = dropout, .init_lora_weights = InitLoraWeights::random};
}

/// A layer with everything one caller of it owns.
template <class Weight>
class TimedLayerOver {
 public:
  TimedLayerOver(LayerData& data, Index rank, double dropout = 0) : TimedLayerOver(data, timed_config(rank, dropout)) {}
  TimedLayerOver(LayerData& data, const LoraConfig& config)
      : data_(data), layer_(data.w0, data.bias, config, 1), gradients_(layer_.make_gradients()) {}
  TimedLayerOver(LayerData& data, Weight weight, const LoraConfig& config)
      : data_(data), layer_(std::move(weight), data.bias, config, 1), gradients_(layer_.make_gradients()) {}

  void infer() { layer_.infer(data_.x, data_.y, workspace_); }
  void forward() { layer_.forward(data_.x, tape_, data_.y, workspace_); }
  void backward() { layer_.backward(data_.x, tape_, data_.dy, gradients_, data_.dx, workspace_); }
  void step() {
    forward();
    backward();
  }
  void zero_grad() { gradients_.set_zero(); }
  void run_on(Executor& executor) { workspace_ = Workspace(executor); }

  [[nodiscard]] LoraLinear<float, Weight>& layer() { return layer_; }
  [[nodiscard]] const LoraTape<float>& tape() const { return tape_; }

 private:
  LayerData& data_;
  LoraLinear<float, Weight> layer_;
  LoraGradients<float> gradients_;
  LoraTape<float> tape_;
  Workspace workspace_;
};

using TimedLayer = TimedLayerOver<PackedWeight<float>>;

/// Multiplications and additions of Y = X W^T.
[[nodiscard]] inline double product_flops(Index n, Index d, Index k) {
  return 2.0 * static_cast<double>(n) * static_cast<double>(d) * static_cast<double>(k);
}

/// Bytes of X, W and Y in float.
[[nodiscard]] inline double product_bytes(Index n, Index d, Index k) {
  return 4.0 * static_cast<double>(n * k + d * k + n * d);
}

}  // namespace lora::bench
