// SPDX-License-Identifier: MIT
// Two trainable tensors with values and gradients that differ everywhere, for the tests of optimisers.
#pragma once

#include <cmath>
#include <vector>

#include "lora/core/parameter.hpp"

namespace lora::testing {

template <class Scalar>
struct TwoFactors {
  Trainable<Scalar> a;
  Trainable<Scalar> b;

  /// A is rank x in_features, B out_features x rank.
  explicit TwoFactors(Index rank = 3, Index in_features = 11, Index out_features = 7) {
    a.value = wave(rank, in_features, 0.3);
    b.value = wave(out_features, rank, 1.1);
    a.gradient = wave(rank, in_features, 2.7);
    b.gradient = wave(out_features, rank, 4.9);
  }

  [[nodiscard]] std::vector<Parameter<Scalar>> parameters(const bool* locked = nullptr) {
    return {a.parameter("lora_A.weight", ParameterRole::lora_A),
            b.parameter("lora_B.weight", ParameterRole::lora_B, locked)};
  }

  /// sin(phase + 0.7 i) over the elements i.
  [[nodiscard]] static Matrix<Scalar> wave(Index rows, Index cols, double phase) {
    return Matrix<Scalar>::NullaryExpr(rows, cols, [phase, cols](Index i, Index j) {
      return static_cast<Scalar>(std::sin(phase + 0.7 * static_cast<double>(i * cols + j)));
    });
  }
};

/// Whether values, gradients and states are the same, bit for bit.
template <class Scalar>
[[nodiscard]] bool same(const Trainable<Scalar>& one, const Trainable<Scalar>& other) {
  return one.value == other.value && one.gradient == other.gradient && one.moments.owner == other.moments.owner &&
         one.moments.steps == other.moments.steps && one.moments.first == other.moments.first &&
         one.moments.second == other.moments.second;
}

template <class Scalar>
[[nodiscard]] bool same(const TwoFactors<Scalar>& one, const TwoFactors<Scalar>& other) {
  return same(one.a, other.a) && same(one.b, other.b);
}

}  // namespace lora::testing
