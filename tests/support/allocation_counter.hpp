// SPDX-License-Identifier: MIT
// Counts every allocation of the process, and lets one fail: operator new, malloc and its relatives, in any library.
// It defines malloc, weakly, so that several sources of a program may include it.
#pragma once

#include <atomic>
#include <cstddef>

#include "support/allocation_count.hpp"

namespace lora::testing {

/// Allocations that still succeed before one fails; -1: none fails; -2: all fail.
inline std::atomic<long>& allocations_left() noexcept {
  static constinit std::atomic<long> left{-1};
  return left;
}

/// What the value above becomes once an allocation has failed.
inline std::atomic<long>& allocations_left_then() noexcept {
  static constinit std::atomic<long> left{-1};
  return left;
}

enum class Shortage : bool { once, lasting };

/// While it lives, the allocation after the next `successes` fails: once, or with all that follow.
class FailingAllocation {
 public:
  explicit FailingAllocation(long successes, Shortage shortage = Shortage::once) noexcept {
    allocations_left_then() = shortage == Shortage::once ? -1 : -2;
    allocations_left() = successes;
  }
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;
  ~FailingAllocation() { allocations_left() = -1; }
};

/// Counts an allocation and says whether it may succeed.
inline bool count_allocation() noexcept {
  ++allocation_counter();
  if (allocations_left() < 0) return allocations_left() == -1;
  if (allocations_left()-- > 0) return true;
  allocations_left() = allocations_left_then().load();
  return false;
}

}  // namespace lora::testing

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define LORA_TEST_SANITIZED_MALLOC 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LORA_TEST_SANITIZED_MALLOC 1
#endif

#if defined(LORA_TEST_SANITIZED_MALLOC)

// A sanitizer owns malloc and offers a hook instead, which cannot refuse.
namespace lora::testing {
inline constexpr bool allocations_can_fail = false;
}

extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, std::size_t),
                                                         void (*free_hook)(const volatile void*));

namespace lora::testing {
// Inline, as a second hook would count everything twice.
inline const int sanitizer_hook = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t) { ++allocation_counter(); }, [](const volatile void*) {});
}  // namespace lora::testing

#else

#include <cerrno>

namespace lora::testing {
inline constexpr bool allocations_can_fail = true;
}

// glibc lets a program replace these and keeps its own under other names; operator new ends in one of them.
extern "C" {
void* __libc_malloc(std::size_t size) noexcept;
void* __libc_calloc(std::size_t count, std::size_t size) noexcept;
void* __libc_realloc(void* block, std::size_t size) noexcept;
void* __libc_memalign(std::size_t alignment, std::size_t size) noexcept;

__attribute__((weak)) void* malloc(std::size_t size) noexcept {
  return lora::testing::count_allocation() ? __libc_malloc(size) : nullptr;
}

__attribute__((weak)) void* calloc(std::size_t count, std::size_t size) noexcept {
  return lora::testing::count_allocation() ? __libc_calloc(count, size) : nullptr;
}

__attribute__((weak)) void* realloc(void* block, std::size_t size) noexcept {
  return lora::testing::count_allocation() ? __libc_realloc(block, size) : nullptr;
}

__attribute__((weak)) void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return lora::testing::count_allocation() ? __libc_memalign(alignment, size) : nullptr;
}

__attribute__((weak)) int posix_memalign(void** block, std::size_t alignment, std::size_t size) noexcept {
  *block = lora::testing::count_allocation() ? __libc_memalign(alignment, size) : nullptr;
  return *block == nullptr ? ENOMEM : 0;
}
}  // extern "C"

#endif
