// SPDX-License-Identifier: MIT
// The count that allocation_counter.hpp keeps, for the other sources of a test program that includes it in one.
#pragma once

#include <atomic>

namespace lora::testing {

inline std::atomic<long>& allocation_counter() noexcept {
  static constinit std::atomic<long> count{0};
  return count;
}

/// Allocations that calling `body` makes, in all threads.
template <class Body>
long allocations_of(const Body& body) {
  const long before = allocation_counter().load();
  body();
  return allocation_counter().load() - before;
}

}  // namespace lora::testing
