// SPDX-License-Identifier: MIT
// Random test data that is the same on every machine.
#pragma once

#include <cstdint>

#include "lora/core/random.hpp"

namespace lora::testing {

/// rows x cols of U(-bound, bound).
template <class Scalar>
[[nodiscard]] Matrix<Scalar> random_matrix(Index rows, Index cols, std::uint64_t seed, double bound = 1.0) {
  Matrix<Scalar> result(rows, cols);
  fill_uniform(view_of(result), bound, RandomStream(seed, 0));
  return result;
}

template <class Scalar>
[[nodiscard]] RowVector<Scalar> random_vector(Index size, std::uint64_t seed, double bound = 1.0) {
  return random_matrix<Scalar>(1, size, seed, bound);
}

}  // namespace lora::testing
