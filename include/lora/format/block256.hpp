// SPDX-License-Identifier: MIT
// What ggml's K formats, with blocks of 256 weights, share: where the codes and the small scales stand.
#pragma once

#include <cstdint>

#include "lora/core/types.hpp"
#include "lora/format/bytes.hpp"

namespace lora::formats::detail {

/// The 2-bit field of weight i of 256 in Q2_K, Q3_K and (its upper bits) Q6_K: each half of the block has 32 bytes, and
/// each byte has weights 32 apart, from the lowest bits up.
[[nodiscard]] inline int crumb_of_256(const std::uint8_t* bytes, Index i) noexcept {
  const Index half = i / 128;
  const Index quarter = i % 128 / 32;
  return bits_at(bytes[32 * half + i % 32], static_cast<int>(2 * quarter), 2);
}

/// The 4-bit code of weight i of 256 in Q4_K and (its lower bits) Q5_K: 32 bytes have 32 weights in their low nibbles
/// and the next 32 in their high ones.
[[nodiscard]] inline int nibble_of_256(const std::uint8_t* bytes, Index i) noexcept {
  const std::uint8_t byte = bytes[i / 64 * 32 + i % 32];
  return i % 64 < 32 ? low_nibble(byte) : high_nibble(byte);
}

/// Scale and minimum of 32 weights, 6 bits each, as Q4_K and Q5_K store them.
struct ScaleAndMinimum {
  int scale;
  int minimum;
};

/// Those of group 0 to 7 in the 12 bytes. Groups 0 to 3 have the low 6 bits of a byte each. The others have a byte of
/// two nibbles, and their upper bits are the upper bits of the bytes of groups 0 to 3.
[[nodiscard]] inline ScaleAndMinimum scale_and_minimum(const std::uint8_t* bytes, Index group) noexcept {
  if (group < 4) return {bits_at(bytes[group], 0, 6), bits_at(bytes[group + 4], 0, 6)};
  const std::uint8_t low = bytes[group + 4];
  const int upper_of_scale = bits_at(bytes[group - 4], 6, 2);
  const int upper_of_minimum = bits_at(bytes[group], 6, 2);
  return {low_nibble(low) | upper_of_scale << 4, high_nibble(low) | upper_of_minimum << 4};
}

}  // namespace lora::formats::detail
