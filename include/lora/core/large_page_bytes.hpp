// SPDX-License-Identifier: MIT
// A block of bytes on large pages, if the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace lora {

/// An uninitialised block of bytes, aligned to at least 64 bytes. If the system lets programs request large pages,
/// every whole 2 MiB page within the block is requested: a packed weight then streams faster, and on a virtual machine
/// the first touch of a small page can cost as much as the work on all of its bytes. Movable, not copyable.
class LargePageBytes {
 public:
  static constexpr std::size_t large_page = std::size_t{2} << 20U;
  static constexpr std::size_t smallest_alignment = 64;

  LargePageBytes() = default;
  /// A size of 0 allocates nothing. @throws std::bad_alloc
  explicit LargePageBytes(std::size_t size) : size_(size) {
    if (size == 0) return;
    // Aligned by hand. glibc's memalign asks for more than it keeps, so a freed block is too small for the next request
    // of the same size: the heap grows with every block, and each touches new pages.
    const std::size_t alignment = size >= large_page ? large_page : smallest_alignment;
    if (size > std::numeric_limits<std::size_t>::max() - alignment) throw std::bad_alloc();
    block_ = ::operator new(size + alignment - 1);
    const std::size_t past = reinterpret_cast<std::uintptr_t>(block_) % alignment;
    data_ = static_cast<std::int8_t*>(block_) + (past == 0 ? 0 : alignment - past);
#if defined(MADV_HUGEPAGE)
    // Only advice: a refusal is harmless.
    if (size >= large_page) (void)::madvise(data_, size / large_page * large_page, MADV_HUGEPAGE);
#endif
  }
  LargePageBytes(const LargePageBytes& other) : LargePageBytes(other.size_) {
    if (size_ > 0) std::memcpy(data_, other.data_, size_);
  }
  LargePageBytes& operator=(const LargePageBytes& other) { return *this = LargePageBytes(other); }
  LargePageBytes(LargePageBytes&& other) noexcept { swap(other); }
  // Not by value: in templates clang 14 does not destroy the parameter of `block = {}`.
  LargePageBytes& operator=(LargePageBytes&& other) noexcept {
    LargePageBytes taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~LargePageBytes() { ::operator delete(block_); }

  [[nodiscard]] std::int8_t* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  void swap(LargePageBytes& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  void* block_ = nullptr;
  std::int8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace lora
