// SPDX-License-Identifier: MIT
// Range checks of options: always on, even with -ffast-math.
#pragma once

#include <limits>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"

namespace lora::detail {

/// @throws ConfigError unless 0 <= value < limit; a NaN is refused too.
inline void require_below(std::string_view operation, std::string_view argument, double value, double limit) {
  if (!is_finite(value) || !(value >= 0 && value < limit)) {
    throw ConfigError(operation, argument, "a number in [0, " + number_text(limit) + ")", number_text(value));
  }
}

/// @throws ConfigError unless the value is at least 0 and finite as a Scalar.
template <class Scalar>
void require_not_negative(std::string_view operation, std::string_view argument, double value) {
  if (!is_finite(value) || !(value >= 0 && value <= static_cast<double>(std::numeric_limits<Scalar>::max()))) {
    throw ConfigError(operation, argument, "a finite number that is not negative", number_text(value));
  }
}

}  // namespace lora::detail
