// SPDX-License-Identifier: MIT
// A fused multiply-add that rounds once, whatever the flags of the including file.
#pragma once

#include <cmath>

namespace lora::detail {

/// a b + c, rounded once. With -ffast-math clang replaces std::fma by a product and a sum unless the machine's
/// instruction may be used; it does not see through the pointer.
[[nodiscard]] inline double fused(double a, double b, double c) noexcept {
#if defined(__clang__)
  double (*function)(double, double, double) = &::fma;
  __asm__("" : "+r"(function));
  return function(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

}  // namespace lora::detail
