// SPDX-License-Identifier: MIT
// What ggml's formats with blocks of 32 weights share: where the codes stand, and how weights become codes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "lora/core/finite.hpp"
#include "lora/core/types.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats::detail {

/// The codes of the 32 weights of a block, in the order of the row.
using Codes32 = std::array<std::uint8_t, 32>;

/// The 4-bit code of weight i of 32. Byte j has weight j in its low nibble and weight j + 16 in its high one.
[[nodiscard]] inline int nibble_of_32(const std::uint8_t* bytes, Index i) noexcept {
  return i < 16 ? low_nibble(bytes[i]) : high_nibble(bytes[i - 16]);
}

/// Writes the low 4 bits of every code where nibble_of_32 finds them.
inline void put_nibbles_of_32(const Codes32& codes, std::uint8_t* bytes) noexcept {
  for (std::size_t j = 0; j < 16; ++j) {
    bytes[j] = static_cast<std::uint8_t>((codes[j] & 0xF) | (codes[j + 16] & 0xF) << 4);
  }
}

/// The fifth bit of the code of weight i: bit i of a little-endian word of 4 bytes.
[[nodiscard]] inline int fifth_bit_of_32(const std::uint8_t* bytes, Index i) noexcept {
  return bits_at(bytes[i / 8], static_cast<int>(i % 8), 1);
}

/// Writes the fifth bits of the codes where fifth_bit_of_32 finds them.
inline void put_fifth_bits_of_32(const Codes32& codes, std::uint8_t* bytes) noexcept {
  for (std::size_t byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (std::size_t bit = 0; bit < 8; ++bit) bits |= bits_at(codes[byte * 8 + bit], 4, 1) << bit;
    bytes[byte] = static_cast<std::uint8_t>(bits);
  }
}

/// The value of the largest magnitude, with its sign; the first one of several. A NaN or an infinity if there is one,
/// and +0 for zeros of either sign.
[[nodiscard]] inline float first_largest(const float* values, Index count) noexcept {
  float largest = 0.0F;
  for (Index i = 0; i < count; ++i) {
    if (magnitude_bits(values[i]) > magnitude_bits(largest)) largest = values[i];
  }
  return largest;
}

/// 32 weights as value = scale * (code - 2^(Bits - 1)).
struct SymmetricBlock {
  float scale = 0.0F;
  Codes32 codes{};
};

/// ggml's rule: the weight of the largest magnitude becomes code 0, the others round half up. Its negative would need
/// one code more and is cut to the last. Codes come from the scale as a float, before it is stored as F16. Where its
/// reciprocal overflows, codes are 0, as they are in ggml on x86; such a scale is zero in F16. A weight that is not
/// finite gives the scale NaN and codes 0.
template <int Bits>
[[nodiscard]] SymmetricBlock symmetric_block(const float* values) noexcept {
  constexpr int half_range = 1 << (Bits - 1);
  constexpr int last_code = 2 * half_range - 1;
  const float largest = first_largest(values, 32);
  SymmetricBlock block;
  if (!is_finite(largest)) {
    block.scale = std::numeric_limits<float>::quiet_NaN();
    return block;
  }
  block.scale = quotient(largest, -static_cast<float>(half_range));
  const float inverse = reciprocal_or_zero(block.scale);
  for (std::size_t i = 0; i < 32; ++i) {
    const int code = truncated(sum(product(values[i], inverse), static_cast<float>(half_range) + 0.5F));
    block.codes[i] = static_cast<std::uint8_t>(code < last_code ? code : last_code);
  }
  return block;
}

/// 32 weights as value = scale * code + minimum.
struct AffineBlock {
  float scale = 0.0F;
  float minimum = 0.0F;
  Codes32 codes{};
};

/// ggml's rule: the least weight becomes code 0 and the largest the last code; the others round half up. Codes come
/// from scale and minimum as floats, before they are stored as F16. Where a reciprocal or a difference overflows, codes
/// are 0. A weight that is not finite gives the scale and the minimum NaN and codes 0.
template <int Bits>
[[nodiscard]] AffineBlock affine_block(const float* values) noexcept {
  constexpr int last_code = (1 << Bits) - 1;
  AffineBlock block;
  if (!is_finite(first_largest(values, 32))) {
    block.scale = std::numeric_limits<float>::quiet_NaN();
    block.minimum = block.scale;
    return block;
  }
  float maximum = values[0];
  block.minimum = values[0];
  for (Index i = 1; i < 32; ++i) {
    if (less(values[i], block.minimum)) block.minimum = values[i];
    if (less(maximum, values[i])) maximum = values[i];
  }
  block.scale = quotient(difference(maximum, block.minimum), static_cast<float>(last_code));
  const float inverse = reciprocal_or_zero(block.scale);
  for (std::size_t i = 0; i < 32; ++i) {
    const int code = truncated(sum(product(difference(values[i], block.minimum), inverse), 0.5F));
    block.codes[i] = static_cast<std::uint8_t>(code < last_code ? code : last_code);
  }
  return block;
}

}  // namespace lora::formats::detail
