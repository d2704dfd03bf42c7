// SPDX-License-Identifier: MIT
// Counts the allocations of each thread: malloc and its relatives, which operator new and Eigen end in. Include this in
// one source of a program. For glibc, which lets a program replace these functions and keeps its own under other names.
#pragma once

#include <cerrno>
#include <cstddef>

namespace hosts {

/// Of the calling thread.
inline thread_local long allocation_count = 0;

}  // namespace hosts

extern "C" {
void* __libc_malloc(std::size_t size) noexcept;
void* __libc_calloc(std::size_t count, std::size_t size) noexcept;
void* __libc_realloc(void* block, std::size_t size) noexcept;
void* __libc_memalign(std::size_t alignment, std::size_t size) noexcept;
void __libc_free(void* block) noexcept;

void* malloc(std::size_t size) noexcept {
  ++hosts::allocation_count;
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) noexcept {
  ++hosts::allocation_count;
  return __libc_calloc(count, size);
}
void* realloc(void* block, std::size_t size) noexcept {
  ++hosts::allocation_count;
  return __libc_realloc(block, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  ++hosts::allocation_count;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** block, std::size_t alignment, std::size_t size) noexcept {
  ++hosts::allocation_count;
  *block = __libc_memalign(alignment, size);
  return *block == nullptr ? ENOMEM : 0;
}
void free(void* block) noexcept {  // an audio thread does not free either
  if (block != nullptr) ++hosts::allocation_count;
  __libc_free(block);
}
}  // extern "C"
