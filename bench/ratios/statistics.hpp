// SPDX-License-Identifier: MIT
// Order statistics of repeated measurements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace lora::bench {

struct Summary {
  double median = 0;
  double lower_quartile = 0;
  double upper_quartile = 0;
  std::size_t count = 0;
};

/// The q-quantile of sorted values, interpolated linearly between order statistics; q in [0, 1].
[[nodiscard]] inline double quantile(const std::vector<double>& sorted, double q) {
  const double position = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// `values` is not empty.
[[nodiscard]] inline Summary summarize(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75), values.size()};
}

}  // namespace lora::bench
