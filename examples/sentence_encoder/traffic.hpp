// SPDX-License-Identifier: MIT
// What a step of data parallelism sends, in bytes and in seconds.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"

namespace examples::sentence_encoder {

/// Bytes that one rank sends, and receives, to average n = `bytes` of gradients among p ranks: 2 n (p-1)/p. No
/// algorithm sends less (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", J. Parallel Distrib. Comput.
/// 69, 2009).
[[nodiscard]] inline double step_traffic(double bytes, int ranks) {
  if (ranks < 1) throw lora::ConfigError("step_traffic", "ranks", "at least 1", std::to_string(ranks));
  return 2 * bytes * (ranks - 1) / ranks;
}

/// The cost of a message of m bytes: alpha + m beta (Hockney's model).
struct Link {
  double latency = 0;    ///< alpha, seconds a message
  double byte_time = 0;  ///< beta, seconds a byte

  /// Bytes a second; infinite when byte_time is 0.
  [[nodiscard]] double bandwidth() const noexcept { return 1 / byte_time; }
};

/// Seconds in which p ranks average n = `bytes` of gradients, without overlap. Each of two exchanges sends p - 1
/// messages of n/p bytes from every rank, one after the other:
///
///     T = 2 (p - 1) (alpha + n/p beta)
///
/// The sums, p n/p elements a rank, are not counted. For n large it tends to 2 n beta whatever p is, for n small to
/// 2 (p - 1) alpha.
[[nodiscard]] inline double reduction_seconds(const Link& link, double bytes, int ranks) {
  return 2.0 * (ranks - 1) * link.latency + step_traffic(bytes, ranks) * link.byte_time;
}

/// A measured reduction: `seconds` for `bytes` of gradients.
struct ReductionTime {
  double bytes = 0;
  double seconds = 0;
};

/// The link that explains measurements of `ranks` ranks best by the formula above: least squares of the relative
/// errors, with neither number below 0.
/// @throws ConfigError unless there are two ranks and measurements of two sizes or more, of positive times
[[nodiscard]] inline Link fit_link(std::span<const ReductionTime> measured, int ranks) {
  constexpr std::string_view operation = "fit_link";
  if (ranks < 2) throw lora::ConfigError(operation, "ranks", "at least 2", std::to_string(ranks));
  // Minimises sum (a_i alpha + b_i beta - 1)^2 with a_i = 2 (p-1) / T_i and b_i = traffic_i / T_i.
  double aa = 0;
  double ab = 0;
  double bb = 0;
  double a1 = 0;
  double b1 = 0;
  for (const auto& one : measured) {
    if (!(one.seconds > 0)) {
      throw lora::ConfigError(operation, "measured", "positive times", std::to_string(one.seconds));
    }
    const double a = 2.0 * (ranks - 1) / one.seconds;
    const double b = step_traffic(one.bytes, ranks) / one.seconds;
    aa += a * a;
    ab += a * b;
    bb += b * b;
    a1 += a;
    b1 += b;
  }
  const double determinant = aa * bb - ab * ab;
  if (!(determinant > 1e-12 * aa * bb)) {
    throw lora::ConfigError(operation, "measured", "two sizes or more", std::to_string(measured.size()) + " alike");
  }
  const double latency = (a1 * bb - b1 * ab) / determinant;
  const double byte_time = (b1 * aa - a1 * ab) / determinant;
  if (latency < 0) return {0, b1 / bb};
  if (byte_time < 0) return {a1 / aa, 0};
  return {latency, byte_time};
}

}  // namespace examples::sentence_encoder
