// SPDX-License-Identifier: MIT
// Training a network inside a random subspace of its parameters.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "common/dense_layer.hpp"
#include "common/mlp.hpp"
#include "common/trainer.hpp"
#include "intrinsic_dimension/projection.hpp"
#include "lora/optim/adamw.hpp"

namespace examples::intrinsic_dimension {

using DenseNetwork = Mlp<DenseLayer<float>>;

/// A network whose parameters are theta_0 + P theta_d: theta_0 (D) is what it was given with, P is fixed, and only
/// theta_d (d), zero at first, trains. The gradient by theta_d is P^T times the gradient by theta.
class SubspaceTraining {
 public:
  /// @throws lora::ConfigError unless 1 <= subspace <= D
  SubspaceTraining(DenseNetwork network, Index subspace, std::uint64_t seed)
      : network_(std::move(network)),
        parameters_(network_.parameters()),
        projection_(parameter_count(parameters_), subspace, seed),
        theta_(static_cast<std::size_t>(projection_.parameters())) {
    coordinates_.value = lora::Matrix<float>::Zero(1, subspace);
    handle_ = coordinates_.parameter("theta_d", lora::ParameterRole::weight);
    origin_.reserve(theta_.size());
    for (const auto& parameter : parameters_) {
      const auto value = parameter.value();
      origin_.insert(origin_.end(), value.data(), value.data() + value.size());
    }
  }
  SubspaceTraining(const SubspaceTraining&) = delete;
  SubspaceTraining& operator=(const SubspaceTraining&) = delete;

  [[nodiscard]] const DenseNetwork& network() const noexcept { return network_; }
  [[nodiscard]] const SubspaceProjection& projection() const noexcept { return projection_; }
  [[nodiscard]] const lora::Matrix<float>& coordinates() const noexcept { return coordinates_.value; }

  /// One update of theta_d by AdamW; returns the loss before it.
  double step(const Batch& batch, double learning_rate) {
    const double loss = loss_and_gradients(network_, batch, pass_);
    for_each_part([&](const lora::Parameter<float>& parameter, float* part) {
      std::copy(parameter.gradient().data(), parameter.gradient().data() + parameter.size(), part);
    });
    projection_.apply_transposed(theta_, {handle_.gradient().data(), static_cast<std::size_t>(handle_.size())});
    optimizer_.set_learning_rate(learning_rate);
    optimizer_.step({&handle_, 1});
    projection_.apply({coordinates_.value.data(), static_cast<std::size_t>(handle_.size())}, theta_);
    const float* origin = origin_.data();
    for_each_part([&](const lora::Parameter<float>& parameter, const float* part) {
      using Values = Eigen::Map<const lora::Matrix<float>>;
      parameter.value() =
          Values(origin, parameter.rows(), parameter.cols()) + Values(part, parameter.rows(), parameter.cols());
      origin += parameter.size();
    });
    return loss;
  }

 private:
  static Index parameter_count(const std::vector<lora::Parameter<float>>& parameters) {
    Index count = 0;
    for (const auto& parameter : parameters) count += parameter.size();
    return count;
  }

  // Calls body(parameter, its part of theta_) for the network's parameters in their order.
  template <class Body>
  void for_each_part(const Body& body) {
    float* part = theta_.data();
    for (const auto& parameter : parameters_) {
      body(parameter, part);
      part += parameter.size();
    }
  }

  DenseNetwork network_;
  std::vector<lora::Parameter<float>> parameters_;
  SubspaceProjection projection_;
  std::vector<float> origin_;  ///< theta_0
  std::vector<float> theta_;   ///< scratch: the gradient by theta, then P theta_d
  lora::Trainable<float> coordinates_;
  lora::Parameter<float> handle_;
  // Decay pulls theta_d to 0, so the network to theta_0; no other method has such a pull, so there is none.
  lora::AdamW<float> optimizer_{{.weight_decay = 0}};
  Pass<DenseLayer<float>> pass_;
};

}  // namespace examples::intrinsic_dimension
