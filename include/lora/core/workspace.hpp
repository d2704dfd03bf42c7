// Scratch memory that only grows, owned by the caller, so that a steady step allocates nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>

#include "lora/core/executor.hpp"
#include "lora/core/large_page_bytes.hpp"

namespace lora {

/// A block of bytes that grows on demand and never shrinks, aligned and laid on large pages as LargePageBytes. Contents
/// do not survive growth. A copy starts empty: scratch belongs to its owner.
class AlignedBuffer {
 public:
  static constexpr std::size_t alignment = LargePageBytes::smallest_alignment;

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

/// Scratch for one call at a time, and the executor that call runs on. One workspace per concurrent caller.
class Workspace {
 public:
  /// Who uses a block. Two users that are active in one call have different slots.
  enum class Slot : std::uint8_t {
    weight_input,     ///< a product's input, rearranged
    weight_output,    ///< a product's output, before it is rearranged
    weight_panel,     ///< a part of the weight, packed
    bias,             ///< bias + scaling * lora_bias
    down_projection,  ///< U in inference, V in the backward pass
    up_factor,        ///< scaling * B, transposed
    factor_gradient,  ///< the gradient of B, transposed
    row_norm_terms,   ///< DoRA: W0 A^T transposed, and A A^T
    output_factors,   ///< DoRA: magnitude / norm, and sums over rows
    scaled_gradient,  ///< DoRA: dY (.) magnitude / norm
    masked_input,     ///< DoRA with dropout: drop(X), or the gradient of it
    count
  };

  Workspace() = default;
  /// `executor` must outlive this workspace.
  explicit Workspace(Executor& executor) noexcept : executor_(&executor) {}

  [[nodiscard]] Executor& executor() noexcept { return executor_ != nullptr ? *executor_ : serial_.value; }

  /// Room for `count` objects of T in the slot's block; the previous contents are lost. @throws std::bad_alloc
  template <class T>
  [[nodiscard]] T* reserve(Slot slot, Index count) {
    return blocks_.at(static_cast<std::size_t>(slot)).template reserve<T>(static_cast<std::size_t>(count));
  }

  /// Bytes held in all slots.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const auto& block : blocks_) total += block.bytes();
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

  Executor* executor_ = nullptr;
  Serial serial_;
  std::array<AlignedBuffer, static_cast<std::size_t>(Slot::count)> blocks_;
};

}  // namespace lora
