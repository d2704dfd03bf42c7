// SPDX-License-Identifier: MIT
// Scratch memory that only grows, owned by the caller, so that a steady step allocates nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "lora/core/executor.hpp"
#include "lora/core/large_page_bytes.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// A block of bytes that grows on demand and never shrinks, aligned and on large pages like LargePageBytes. Growing
/// discards the contents. A copy starts empty: scratch belongs to its owner.
class AlignedBuffer {
 public:
  static constexpr std::size_t alignment = LargePageBytes::smallest_alignment;  ///< bytes

  AlignedBuffer() = default;
  AlignedBuffer(const AlignedBuffer& /*other*/) noexcept {}
  AlignedBuffer(AlignedBuffer&&) noexcept = default;
  AlignedBuffer& operator=(const AlignedBuffer& /*other*/) noexcept {
    bytes_ = LargePageBytes();
    return *this;
  }
  AlignedBuffer& operator=(AlignedBuffer&&) noexcept = default;
  ~AlignedBuffer() = default;

  /// Room for `count` objects of a trivial type T. Allocates only when the block is too small.
  /// @throws std::bad_alloc, in which case the block is unchanged.
  template <class T>
  [[nodiscard]] T* reserve(std::size_t count) {
    if (count > std::numeric_limits<std::size_t>::max() / sizeof(T)) throw std::bad_alloc();
    const std::size_t wanted = count * sizeof(T);
    if (wanted > bytes_.size()) bytes_ = LargePageBytes(wanted);
    return reinterpret_cast<T*>(bytes_.data());
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_.size(); }

 private:
  LargePageBytes bytes_;
};

class Workspace;

/// Where the next scratch matrix would lie.
struct ScratchMark {
  std::size_t block = 0;   ///< number of the block
  std::size_t offset = 0;  ///< bytes from its beginning
};

/// A matrix in a workspace's memory, with contiguous rows and undefined contents. Its memory returns to the workspace
/// at the end of its scope; like local variables, matrices are released in reverse order.
template <class Scalar>
class ScratchMatrix : public MatrixView<Scalar> {
 public:
  ScratchMatrix(ScratchMatrix&& other) noexcept
      : MatrixView<Scalar>(other), workspace_(std::exchange(other.workspace_, nullptr)), mark_(other.mark_) {}
  ScratchMatrix(const ScratchMatrix&) = delete;
  ScratchMatrix& operator=(const ScratchMatrix&) = delete;
  ScratchMatrix& operator=(ScratchMatrix&&) = delete;
  ~ScratchMatrix();

 private:
  friend class Workspace;
  ScratchMatrix(const MatrixView<Scalar>& view, Workspace& workspace, ScratchMark mark) noexcept
      : MatrixView<Scalar>(view), workspace_(&workspace), mark_(mark) {}

  Workspace* workspace_;
  ScratchMark mark_;
};

/// Scratch for one call at a time, and the executor that call runs on. One workspace per concurrent caller.
class Workspace {
 public:
  Workspace() = default;
  /// `executor` must outlive this workspace.
  explicit Workspace(Executor& executor) noexcept : executor_{&executor} {}

  /// Runs on a pool of threads, which must outlive this workspace and its copies. Include the header that supports the
  /// pool: core/thread_pool_executor.hpp for Eigen's. @throws std::bad_alloc
  template <PoolOfThreads Pool>
  explicit Workspace(Pool& pool)
      : owned_executor_(std::make_shared<typename ExecutorOf<Pool>::Type>(pool)), executor_{owned_executor_.get()} {}

  /// What loops run on: the executor given, or the calling thread alone.
  [[nodiscard]] Executor& executor() noexcept {
    return executor_.pointer != nullptr ? *executor_.pointer : serial_.value;
  }

  /// A rows x cols matrix for this scope, aligned to 64 bytes. Allocates only when no free block is large enough:
  /// repeating a call with the same shapes allocates nothing. Never null. @throws std::bad_alloc
  template <class T>
  [[nodiscard]] ScratchMatrix<T> matrix(Index rows, Index cols) {
    const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols);
    if (cols > 0 && count / static_cast<std::size_t>(cols) != static_cast<std::size_t>(rows)) throw std::bad_alloc();
    if (count > (std::numeric_limits<std::size_t>::max() - AlignedBuffer::alignment) / sizeof(T))
      throw std::bad_alloc();
    const ScratchMark before = scratch_.next;
    auto* const data = reinterpret_cast<T*>(take(count * sizeof(T)));
    return ScratchMatrix<T>({data, rows, cols, cols, 1}, *this, before);
  }
  /// The same, with one row.
  template <class T>
  [[nodiscard]] ScratchMatrix<T> row(Index size) {
    return matrix<T>(1, size);
  }

  /// Bytes of scratch held.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const auto& block : scratch_.blocks) total += block.size();
    return total;
  }

 private:
  // Copying a workspace copies neither scratch nor the serial executor, which has no state.
  struct Serial {
    SerialExecutor value;
    Serial() = default;
    Serial(const Serial& /*other*/) noexcept {}
    Serial& operator=(const Serial& /*other*/) noexcept { return *this; }
  };

  // A workspace that was moved from may not refer to an executor that went with the other.
  struct Borrowed {
    Executor* pointer = nullptr;
    Borrowed() = default;
    explicit Borrowed(Executor* executor) noexcept : pointer(executor) {}
    Borrowed(const Borrowed&) = default;
    Borrowed(Borrowed&& other) noexcept : pointer(std::exchange(other.pointer, nullptr)) {}
    Borrowed& operator=(const Borrowed&) = default;
    Borrowed& operator=(Borrowed&& other) noexcept {
      pointer = std::exchange(other.pointer, nullptr);
      return *this;
    }
    ~Borrowed() = default;
  };

  template <class T>
  friend class ScratchMatrix;

  // The first block from the current one on that is large enough, or else a new one at the end. Blocks in use stay
  // where they are; while none is in use, one larger block replaces them all.
  std::int8_t* take(std::size_t bytes) {
    const std::size_t wanted = std::max(round_up(bytes), AlignedBuffer::alignment);
    std::vector<LargePageBytes>& blocks = scratch_.blocks;
    ScratchMark& next = scratch_.next;
    ScratchMark place = next;
    while (place.block < blocks.size() && blocks[place.block].size() - place.offset < wanted) {
      place = {place.block + 1, 0};
    }
    if (place.block == blocks.size()) {
      const bool unused = next.block == 0 && next.offset == 0;
      LargePageBytes block(std::max(wanted, smallest_block));
      if (unused) {
        blocks.clear();
        place = {};
      }
      blocks.push_back(std::move(block));
    }
    next = {place.block, place.offset + wanted};
    return blocks[place.block].data() + place.offset;
  }
  void release(ScratchMark mark) noexcept { scratch_.next = mark; }

  static constexpr std::size_t smallest_block = 4096;
  [[nodiscard]] static constexpr std::size_t round_up(std::size_t bytes) noexcept {
    return (bytes + AlignedBuffer::alignment - 1) / AlignedBuffer::alignment * AlignedBuffer::alignment;
  }

  // Scratch belongs to one owner: a copy starts without any.
  struct Arena {
    std::vector<LargePageBytes> blocks;
    ScratchMark next;
    Arena() = default;
    Arena(const Arena& /*other*/) noexcept {}
    Arena(Arena&&) noexcept = default;
    Arena& operator=(const Arena& /*other*/) noexcept {
      blocks.clear();
      next = {};
      return *this;
    }
    Arena& operator=(Arena&&) noexcept = default;
    ~Arena() = default;
  };

  std::shared_ptr<Executor> owned_executor_;  // shared by copies: any thread may run on it
  Borrowed executor_;
  Serial serial_;
  Arena scratch_;
};

template <class Scalar>
ScratchMatrix<Scalar>::~ScratchMatrix() {
  if (workspace_ != nullptr) workspace_->release(mark_);
}

}  // namespace lora
