// SPDX-License-Identifier: MIT
// Inverted dropout on the adapter's input, as a pure function of seed, step and element.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/core/executor.hpp"
#include "lora/core/types.hpp"
#include "lora/kernels/dropout_mask.hpp"
#include "lora/kernels/keep_bits.hpp"

namespace lora {

/// The position of a batch in the dropout sequence. Two batches that are parts of one step (such as micro-batches or
/// data-parallel shards) share `step` and differ in `first_row`; together their masks form the mask of the whole batch.
struct DropoutPosition {
  std::uint64_t step = 0;  ///< below 2^63
  Index first_row = 0;     ///< index of the first row within the whole batch
};

/// The mask of one forward pass: rows * ceil(cols / 8) bytes, grow-only.
///
/// Element (i, j) of step t is kept iff word j % 4 of block (first_row + i) * 2^30 + j / 4 of stream t under the seed
/// is at least the integer t nearest to p * 2^32. An element is kept with probability exactly (2^32 - t) / 2^32, and
/// scaled by the inverse of that. The mask depends on neither threads nor blocking, and any part can be computed alone.
/// Source: Srivastava et al., JMLR 15 (2014), in the inverted form.
class DropoutBits {
 public:
  /// Draws the mask of `rows` x `cols` elements. Allocates only to grow. The work is split over `executor`; the result
  /// does not depend on it. Pre: check_config accepts `probability` as a dropout. @throws std::bad_alloc
  void draw(double probability, std::uint64_t seed, const DropoutPosition& position, Index rows, Index cols,
            Executor& executor) {
    const Index row_bytes = (cols + 7) / 8;
    const auto wanted = static_cast<std::size_t>(rows * row_bytes);
    if (bits_.size() < wanted) bits_.resize(wanted);
    row_bytes_ = row_bytes;
    rows_ = rows;
    const kernels::KeepBitsKernel kernel = kernels::keep_bits_kernel(active_isa());
    const auto threshold = static_cast<std::uint32_t>(detail::drop_threshold(probability));
    parallel_ranges(executor, rows, 1, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i) {
        // 2^30 blocks per row leave room for 2^32 columns and 2^34 rows.
        const auto first_block = static_cast<std::uint64_t>(position.first_row + i) << 30U;
        std::uint8_t* const row = bits_.data() + i * row_bytes;
        kernel({seed, position.step, first_block, threshold}, row_bytes, row);
        if (cols % 8 != 0)
          row[row_bytes - 1] &= static_cast<std::uint8_t>((1U << static_cast<unsigned>(cols % 8)) - 1U);
      }
    });
  }

  /// The bits as kernels read them, with the factor 1 / (fraction kept). Valid until the next draw().
  template <class Scalar>
  [[nodiscard]] DropoutMask<Scalar> mask(double probability) const noexcept {
    const auto dropped = static_cast<double>(detail::drop_threshold(probability));
    return {bits_.data(), row_bytes_, static_cast<Scalar>(0x1p32 / (0x1p32 - dropped))};
  }

  /// Forgets the mask and keeps its memory.
  void clear() noexcept { rows_ = 0; }

  /// Bytes of the most recently drawn mask.
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(rows_ * row_bytes_); }

 private:
  std::vector<std::uint8_t> bits_;
  Index rows_ = 0;
  Index row_bytes_ = 0;
};

}  // namespace lora
