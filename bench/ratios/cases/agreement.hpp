// SPDX-License-Identifier: MIT
// A peer that computes something else is no peer.
#pragma once

#include <limits>
#include <stdexcept>
#include <string>

#include "lora/core/types.hpp"

namespace lora::bench {

/// @throws std::runtime_error unless the norm of the difference is within `terms` roundings of the products' magnitude.
inline void require_agreement(const std::string& what, const Matrix<float>& got, const Matrix<float>& expected,
                              double magnitude, Index terms) {
  const double bound = static_cast<double>(terms) * std::numeric_limits<float>::epsilon() * magnitude;
  const double difference = (got - expected).norm();
  if (!(difference <= bound)) {
    throw std::runtime_error(what + " differs from ours by " + std::to_string(difference) + ", and at most " +
                             std::to_string(bound) + " can be rounding");
  }
}

}  // namespace lora::bench
