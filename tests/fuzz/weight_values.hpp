// SPDX-License-Identifier: MIT
// The values of a weight, and whether two readings of them are the same.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "lora/core/types.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora::fuzzing {

using Values = lora::Matrix<float>;

template <class Weight>
Values values_of(const Weight& weight) {
  Values values(weight.out_features(), weight.in_features());
  lora::read_back(weight, lora::view_of(values));
  return values;
}

/// Ends the program unless both have the same shape and the same bits. One NaN is as good as another: which sign it has
/// depends on the order in which an instruction takes its operands.
inline void require_same(const Values& a, const Values& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) std::abort();
  for (Index i = 0; i < a.size(); ++i) {
    const float x = a.data()[i];
    const float y = b.data()[i];
    const bool alike =
        std::isnan(x) ? std::isnan(y) : std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
    if (!alike) std::abort();
  }
}

}  // namespace lora::fuzzing
