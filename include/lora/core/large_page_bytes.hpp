// A block of bytes on large pages, where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace lora {

/// An uninitialised block of bytes, aligned to 64 of them at least. Where the system lets programs ask for large pages,
/// the whole ones of 2 MiB within the block are asked for: a packed weight is then streamed faster, and on a virtual
/// machine the first touch of a small page can cost as much as the work on all of its bytes. Moves, and does not copy.
class LargePageBytes {
 public:
  static constexpr std::size_t large_page = std::size_t{2} << 20U;
  static constexpr std::size_t smallest_alignment = 64;

  LargePageBytes() = default;
  /// Of 0 bytes: none, and nothing is allocated. @throws std::bad_alloc
  explicit LargePageBytes(std::size_t size)
      : data_(size > 0 ? static_cast<std::int8_t*>(::operator new(size, alignment(size))) : nullptr), size_(size) {
#if defined(MADV_HUGEPAGE)
    // Advice: a refusal changes nothing.
    if (size >= large_page) (void)::madvise(data_, size / large_page * large_page, MADV_HUGEPAGE);
#endif
  }
  LargePageBytes(LargePageBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  // Not by value: in templates clang 14 does not destroy the parameter of `block = {}`.
  LargePageBytes& operator=(LargePageBytes&& other) noexcept {
    LargePageBytes taken(std::move(other));
    std::swap(data_, taken.data_);
    std::swap(size_, taken.size_);
    return *this;
  }
  ~LargePageBytes() { ::operator delete(data_, alignment(size_)); }

  [[nodiscard]] std::int8_t* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  [[nodiscard]] static std::align_val_t alignment(std::size_t size) noexcept {
    return std::align_val_t{size >= large_page ? large_page : smallest_alignment};
  }

  std::int8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace lora
