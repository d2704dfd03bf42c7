// SPDX-License-Identifier: MIT
// The matrix types of every other header: row-major, rows are samples.
#pragma once

#include <Eigen/Core>
#include <concepts>

#include "lora/core/compiled.hpp"

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "lora: Eigen 3.4 or newer is needed");

namespace lora {

/// Signed, as in Eigen: numbers of rows, columns and elements.
using Index = Eigen::Index;

/// The scalars a layer computes in.
template <class T>
concept RealScalar = std::same_as<T, float> || std::same_as<T, double>;

/// Row-major matrix, as in PyTorch and safetensors.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// One row.
template <class Scalar>
using RowVector = Eigen::Matrix<Scalar, 1, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace lora
