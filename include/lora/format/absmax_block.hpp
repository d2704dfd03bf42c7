// SPDX-License-Identifier: MIT
// What the 4-bit formats of bitsandbytes share: a block of codes for fractions of its largest magnitude.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "lora/core/finite.hpp"
#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats::detail {

/// Sixteen fractions in [-1, 1]. `ascending` lists the codes in the order of their values.
struct Codebook {
  std::array<float, 16> values;
  std::array<std::uint8_t, 16> ascending;

  /// The number half-way between the two values at this place and the next of the ascending order.
  [[nodiscard]] constexpr float midpoint(std::size_t place) const noexcept {
    return (values[ascending[place]] + values[ascending[place + 1]]) / 2.0F;
  }
};

/// The code of the value nearest to `fraction`; the lower value for a midpoint.
template <const Codebook& book>
[[nodiscard]] std::uint8_t nearest_code(float fraction) noexcept {
  static constexpr auto midpoints = [] {
    std::array<float, 15> all{};
    for (std::size_t place = 0; place < all.size(); ++place) all[place] = book.midpoint(place);
    return all;
  }();
  std::size_t place = 0;
  while (place < midpoints.size() && midpoints[place] < fraction) ++place;
  return book.ascending[place];
}

/// BlockSize weights: [absmax: float][two codes a byte, the first weight in the high nibble]. value = book[q] * absmax.
///
/// bitsandbytes stores the codes and the absmax of a tensor apart; a block here has both. Its files may also hold an
/// absmax that was quantized itself, which a reader decodes first.
template <const Codebook& book, Index BlockSize>
struct AbsmaxBlock {
  static_assert(BlockSize >= 32 && BlockSize <= 4096 && (BlockSize & (BlockSize - 1)) == 0,
                "lora: the block size is a power of two from 32 to 4096");

  static constexpr Index block_size = BlockSize;
  static constexpr Index block_bytes = 4 + BlockSize / 2;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float absmax = f32_at(block);
    for (Index i = 0; i < block_size; ++i) {
      const std::uint8_t byte = block[4 + i / 2];
      const int q = i % 2 == 0 ? high_nibble(byte) : low_nibble(byte);
      values[i] = product(book.values[static_cast<std::size_t>(q)], absmax);
    }
  }

  /// absmax = max |w| and q = the code nearest to w * (1 / absmax), by the midpoints between the values; the divisor is
  /// at least 1e-38, so a block of zeros has the codes of zero. A weight that is not finite makes absmax NaN.
  static void encode(const float* values, std::uint8_t* block) noexcept {
    const float largest = first_largest(values, block_size);
    const bool finite = is_finite(largest);
    const float absmax = finite ? std::bit_cast<float>(magnitude_bits(largest)) : quiet_nan;
    const float inverse = finite ? quotient(1.0F, less(absmax, least_divisor) ? least_divisor : absmax) : 0.0F;
    put_f32(absmax, block);
    for (Index i = 0; i < block_size; i += 2) {
      const int first = finite ? nearest_code<book>(product(values[i], inverse)) : 0;
      const int second = finite ? nearest_code<book>(product(values[i + 1], inverse)) : 0;
      block[4 + i / 2] = static_cast<std::uint8_t>(first << 4 | second);
    }
  }

 private:
  static constexpr float quiet_nan = std::numeric_limits<float>::quiet_NaN();
  static constexpr float least_divisor = 1e-38F;
};

}  // namespace lora::formats::detail
