// SPDX-License-Identifier: MIT
// Checks of the host programs: each prints one line, and the program fails if any does not hold.
#pragma once

#include <cstdio>

namespace hosts {

class Checks {
 public:
  void operator()(bool holds, const char* claim) {
    std::printf("  [%s] %s\n", holds ? "ok" : "FAILED", claim);
    if (!holds) ++failures_;
  }
  /// Also prints the two numbers compared. NaN fails.
  void at_most(double value, double limit, const char* claim) {
    std::printf("  [%s] %s: %.3g, at most %.3g\n", value <= limit ? "ok" : "FAILED", claim, value, limit);
    if (!(value <= limit)) ++failures_;
  }
  [[nodiscard]] int failures() const noexcept { return failures_; }

 private:
  int failures_ = 0;
};

}  // namespace hosts
