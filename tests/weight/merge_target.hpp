// Weights of either kind and orientation, for the laws of merging.
#pragma once

#include <gtest/gtest.h>
#include <utility>

#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"

namespace lora::testing {

/// A weight of one kind, with the memory it may view.
template <class WeightType>
struct MergeTarget {
  using Number = typename WeightType::Scalar;
  Matrix<Number> memory;
  WeightType weight{MatrixView<Number>(view_of(memory))};
  explicit MergeTarget(Matrix<Number> w) : memory(std::move(w)) {}
  [[nodiscard]] Matrix<Number> values() const {
    Matrix<Number> out(weight.out_features(), weight.in_features());
    read_back(weight, view_of(out));
    return out;
  }
};

/// Tiles of a packed weight have inputs for lines, those of a dense one in row-major order outputs.
using MergeTargetKinds =
    ::testing::Types<PackedWeight<float>, PackedWeight<double>, DenseWeight<float>, DenseWeight<double>>;

}  // namespace lora::testing
