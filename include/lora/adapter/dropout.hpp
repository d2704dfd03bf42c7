// Inverted dropout on the adapter's input, as a pure function of seed, step and element.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lora/core/executor.hpp"
#include "lora/core/philox.hpp"
#include "lora/core/types.hpp"
#include "lora/kernels/dropout_mask.hpp"

namespace lora {

/// Where in the dropout sequence a batch stands. Two batches that are parts of one step (micro-batches of
/// data-parallel ranks, say) share `step` and differ in `first_row`; the union of their masks is the whole batch's mask.
struct DropoutPosition {
  std::uint64_t step = 0;  ///< below 2^63
  Index first_row = 0;     ///< index in the whole batch of the first row given
};

/// The mask of one forward pass: rows * ceil(cols / 8) bytes, grow-only.
///
/// Element (i, j) of step t is kept iff word j % 4 of the Philox block first_row + i, j / 4 is at least p * 2^32. The
/// mask therefore depends on neither threads nor blocking, and any part of it can be computed alone.
/// Source: Srivastava et al., JMLR 15 (2014), in the inverted form: kept elements are scaled by 1 / (1 - p).
class DropoutBits {
 public:
  /// Draws the mask of `rows` x `cols` elements. Allocates only to grow. Work is split over `executor`; the result does
  /// not depend on it. @throws std::bad_alloc
  void draw(double probability, std::uint64_t seed, const DropoutPosition& position, Index rows, Index cols,
            Executor& executor) {
    row_bytes_ = (cols + 7) / 8;
    rows_ = rows;
    const auto wanted = static_cast<std::size_t>(rows * row_bytes_);
    if (bits_.size() < wanted) bits_.resize(wanted);
    const auto threshold = static_cast<std::uint64_t>(probability * 0x1p32 + 0.5);
    const RandomStream stream(seed, position.step);
    parallel_ranges(executor, rows, 1, [&](Index begin, Index end, int /*worker*/) {
      for (Index i = begin; i < end; ++i) draw_row(stream, threshold, position.first_row + i, cols, bits_.data() + i * row_bytes_);
    });
  }

  /// The bits as kernels read them, with the factor 1 / (1 - probability). Valid until the next draw().
  template <class Scalar>
  [[nodiscard]] DropoutMask<Scalar> mask(double probability) const noexcept {
    return {bits_.data(), row_bytes_, static_cast<Scalar>(1.0 / (1.0 - probability))};
  }

  /// Bytes of the mask last drawn.
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(rows_ * row_bytes_); }

 private:
  static void draw_row(const RandomStream& stream, std::uint64_t threshold, Index row, Index cols,
                       std::uint8_t* target) noexcept {
    // 2^30 blocks a row leave room for rows of 2^32 columns and 2^34 rows.
    const std::uint64_t first_block = static_cast<std::uint64_t>(row) << 30U;
    for (Index j = 0; j < cols; j += 8) {
      unsigned byte = 0;
      for (unsigned half = 0; half < 2; ++half) {
        const auto words = stream.block(first_block + static_cast<std::uint64_t>(j / 4) + half);
        for (unsigned w = 0; w < 4; ++w) byte |= static_cast<unsigned>(words[w] >= threshold) << (half * 4 + w);
      }
      const Index valid = cols - j;
      if (valid < 8) byte &= (1U << static_cast<unsigned>(valid)) - 1U;
      target[j / 8] = static_cast<std::uint8_t>(byte);
    }
  }

  std::vector<std::uint8_t> bits_;
  Index rows_ = 0;
  Index row_bytes_ = 0;
};

}  // namespace lora
