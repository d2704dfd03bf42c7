// SPDX-License-Identifier: MIT
// Bytes that the process holds from malloc, where the C library tells.
#pragma once

#include <cstddef>
#include <cstdlib>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "support/allocation_counter.hpp"

namespace lora::testing {

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
/// A sanitizer's malloc does not tell.
inline constexpr bool held_bytes_known = allocations_can_fail;
/// Of blocks in use.
[[nodiscard]] inline std::size_t held_bytes() noexcept {
  const auto info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}
/// Of blocks in use and free ones.
[[nodiscard]] inline std::size_t heap_bytes() noexcept {
  const auto info = ::mallinfo2();
  return info.arena + info.hblkhd;
}
#else
inline constexpr bool held_bytes_known = false;
[[nodiscard]] inline std::size_t held_bytes() noexcept { return 0; }
[[nodiscard]] inline std::size_t heap_bytes() noexcept { return 0; }
#endif

}  // namespace lora::testing
