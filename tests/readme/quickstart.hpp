// SPDX-License-Identifier: MIT
// The names that the README's code takes for granted: a weight, a bias, data, and the gradient of a loss.
#pragma once

// The page's short names stand at namespace scope here, where a user has them in a function.
#pragma GCC diagnostic ignored "-Wshadow"

#include <cstddef>
#include <utility>
#include <vector>

#include "lora/lora.hpp"

inline constexpr std::ptrdiff_t out_features = 9;
inline constexpr std::ptrdiff_t in_features = 32;
inline const Eigen::MatrixXf W0 = Eigen::MatrixXf::Constant(out_features, in_features, 0.25F);
inline const Eigen::VectorXf bias = Eigen::VectorXf::Ones(out_features);
inline const lora::Matrix<float> X = lora::Matrix<float>::Constant(4, in_features, 0.5F);
inline const lora::Matrix<float> target = lora::Matrix<float>::Zero(4, out_features);
inline const Eigen::VectorXf x = Eigen::VectorXf::Ones(in_features);
inline const std::vector<std::pair<lora::Matrix<float>, lora::Matrix<float>>> batches = {{X, target}, {X, target}};

inline lora::Matrix<float> loss_gradient(const lora::Matrix<float>& y, const lora::Matrix<float>& wanted) {
  return y - wanted;
}
