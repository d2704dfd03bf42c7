// SPDX-License-Identifier: MIT
// Comparison of arrays bit for bit: signed zeros and NaNs count.
#pragma once

#include <bit>
#include <cstdint>
#include <gtest/gtest.h>
#include <type_traits>

#include "lora/core/types.hpp"

namespace lora::testing {

template <class Scalar>
[[nodiscard]] auto bits_of(Scalar value) {
  return std::bit_cast<std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>>(value);
}

/// Success when both have the same shape and the same bits.
template <class A, class B>
[[nodiscard]] ::testing::AssertionResult same_bits(const A& a, const B& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) {
    return ::testing::AssertionFailure() << a.rows() << " x " << a.cols() << " against " << b.rows() << " x "
                                         << b.cols();
  }
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index j = 0; j < a.cols(); ++j) {
      if (bits_of(a(i, j)) != bits_of(b(i, j))) {
        return ::testing::AssertionFailure()
               << "(" << i << ", " << j << "): " << a(i, j) << " against " << b(i, j) << ", bits " << std::hex
               << bits_of(a(i, j)) << " against " << bits_of(b(i, j));
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace lora::testing
