// SPDX-License-Identifier: MIT
// Training steps of one linear layer, ready to be timed: each owns all its memory, and none allocates after its first
// step, except for what Eigen's products take for themselves.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lora/core/random.hpp"
#include "lora/layers/linear.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/moments.hpp"
#include "support/full_update.hpp"

namespace lora::bench {

/// N samples, a weight of d x k, rank r (0 for a full update).
struct StepShape {
  Index n = 0;
  Index d = 0;
  Index k = 0;
  Index r = 0;

  [[nodiscard]] Index trainable() const noexcept { return r > 0 ? r * (d + k) : d * k; }

  /// Multiplications and additions of the products: Y, dX and, with LoRA, U, U B^T, V, V A, dA, dB; else dW.
  [[nodiscard]] double flops() const noexcept {
    const Index count = r > 0 ? 4 * n * d * k + 6 * n * r * (d + k) : 6 * n * d * k;
    return static_cast<double>(count);
  }

  /// Bytes that have to move when nothing stays in cache from one pass to the next, in float. Forward: X, W, Y.
  /// Backward: X, dY, W, dX. AdamW: value and two moments, read and written. LoRA also reads its factors twice and
  /// writes and reads their gradients; the full update's gradient never leaves the cache.
  [[nodiscard]] double bytes() const noexcept {
    const Index passes = n * (3 * k + 2 * d) + 2 * d * k;
    const Index update = r > 0 ? 10 * trainable() : 6 * trainable();
    return static_cast<double>(passes + update) * sizeof(float);
  }
};

/// What every step works on. The same for each of them.
struct StepData {
  Matrix<float> w0, x, dy, y, dx;
  RowVector<float> bias;

  explicit StepData(const StepShape& shape)
      : w0(shape.d, shape.k),
        x(shape.n, shape.k),
        dy(shape.n, shape.d),
        y(shape.n, shape.d),
        dx(shape.n, shape.k),
        bias(shape.d) {
    std::uint64_t stream = 0;
    for (Matrix<float>* matrix : {&w0, &x, &dy}) fill_normal(view_of(*matrix), 1.0, {42, stream++});
    fill_normal(view_of(bias), 1.0, {42, stream});
  }
};

inline constexpr AdamWOptions step_options{.learning_rate = 1e-4};

/// LoraLinear: forward, backward with dX, AdamW on A and B.
class LoraStep {
 public:
  LoraStep(const StepShape& shape, StepData& data)
      : data_(data), layer_(data.w0, data.bias, {.rank = shape.r, .alpha = 16}, 1), gradients_(layer_.gradients()) {}

  void run() {
    layer_.forward(data_.x, tape_, data_.y, workspace_);
    layer_.backward(data_.x, tape_, data_.dy, gradients_, data_.dx, workspace_);
    optimizer_.step(layer_);
    gradients_.set_zero();
  }
  [[nodiscard]] std::size_t moment_bytes() { return lora::moment_bytes(layer_); }

 private:
  StepData& data_;
  LoraLinear<float> layer_;
  LoraGradients<float>& gradients_;
  LoraTape<float> tape_;
  Workspace workspace_;
  AdamW<float> optimizer_{step_options};
};

/// The same step as one would write it with Eigen's products alone.
class EigenLoraStep {
 public:
  EigenLoraStep(const StepShape& shape, StepData& data)
      : data_(data), u_(shape.n, shape.r), v_(shape.n, shape.r), scaling_(16.0F / static_cast<float>(shape.r)) {
    a_.value.resize(shape.r, shape.k);
    b_.value = Matrix<float>::Zero(shape.d, shape.r);
    fill_normal(view_of(a_.value), 1.0, {42, 99});
    parameters_ = {a_.parameter("lora_A.weight", ParameterRole::lora_A),
                   b_.parameter("lora_B.weight", ParameterRole::lora_B)};
  }

  void run() {
    u_.noalias() = data_.x * a_.value.transpose();
    data_.y.rowwise() = data_.bias;
    data_.y.noalias() += data_.x * data_.w0.transpose();
    data_.y.noalias() += (scaling_ * u_) * b_.value.transpose();

    v_.noalias() = scaling_ * data_.dy * b_.value;
    b_.gradient.noalias() = scaling_ * data_.dy.transpose() * u_;
    a_.gradient.noalias() = v_.transpose() * data_.x;
    data_.dx.noalias() = data_.dy * data_.w0;
    data_.dx.noalias() += v_ * a_.value;
    optimizer_.step(parameters_);
  }
  [[nodiscard]] std::size_t moment_bytes() const { return lora::moment_bytes(parameters_); }

 private:
  StepData& data_;
  Matrix<float> u_, v_;
  float scaling_;
  Trainable<float> a_, b_;
  std::array<Parameter<float>, 2> parameters_;
  AdamW<float> optimizer_{step_options};
};

/// Forward, dX, dW and AdamW on the whole weight.
class FullStep {
 public:
  FullStep(const StepShape& /*shape*/, StepData& data) : data_(data), layer_(data.w0, data.bias, step_options) {}

  void run() {
    layer_.forward(data_.x, data_.y);
    layer_.backward_and_update(data_.x, data_.dy, data_.dx);
  }
  [[nodiscard]] std::size_t moment_bytes() const { return layer_.moment_bytes(); }

 private:
  StepData& data_;
  FullUpdateLinear<float> layer_;
};

}  // namespace lora::bench
