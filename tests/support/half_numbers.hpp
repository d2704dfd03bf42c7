// SPDX-License-Identifier: MIT
// Rounding to numbers of 16 bits, by arithmetic on long doubles.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "lora/weight/frozen_weight.hpp"

namespace lora::testing {

/// The number of 16 bits next to value + rest, ties to even; infinite beyond the range. |rest| is below half a unit of
/// last place of `value`.
[[nodiscard]] inline float rounded_to_half(WeightStorage storage, long double value, long double rest = 0) {
  const bool f16 = storage == WeightStorage::f16;
  if (value == 0 || !std::isfinite(value)) return static_cast<float>(value);
  int exponent = 0;
  static_cast<void>(std::frexp(value, &exponent));
  const int last_place = std::max(exponent - (f16 ? 11 : 8), f16 ? -24 : -133);
  const long double scaled = std::ldexp(value, -last_place);
  const bool middle = std::abs(scaled - std::trunc(scaled)) == 0.5L;
  const long double whole = !middle || rest == 0 ? std::nearbyint(scaled)
                            : rest > 0           ? std::ceil(scaled)
                                                 : std::floor(scaled);
  const long double rounded = std::copysign(std::ldexp(whole, last_place), value);
  const long double infinite = f16 ? 0x1p16L : 0x1p128L;
  if (std::abs(rounded) < infinite) return static_cast<float>(rounded);
  return std::copysign(std::numeric_limits<float>::infinity(), static_cast<float>(rounded));
}

/// (w + delta) * factor rounded once.
[[nodiscard]] inline float merged_half(WeightStorage storage, float w, float delta, float factor) {
  using Exact = long double;
  const Exact larger = std::abs(w) > std::abs(delta) ? w : delta;
  const Exact smaller = std::abs(w) > std::abs(delta) ? delta : w;
  const Exact sum = larger + smaller;
  const Exact product = sum * Exact{factor};
  if (!std::isfinite(product)) return static_cast<float>(product);
  const Exact rest = (smaller - (sum - larger)) * Exact{factor} + std::fma(sum, Exact{factor}, -product);
  return rounded_to_half(storage, product, rest);
}

}  // namespace lora::testing
