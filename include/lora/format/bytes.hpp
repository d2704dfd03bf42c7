// SPDX-License-Identifier: MIT
// Fields of a block: little-endian numbers at any alignment, and codes of a few bits.
#pragma once

#include <cstdint>

#include "lora/core/half.hpp"
#include "lora/core/little_endian.hpp"

namespace lora::formats::detail {

[[nodiscard]] inline std::uint16_t u16_at(const std::uint8_t* bytes) noexcept {
  return static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8);
}

inline void put_u16(std::uint16_t value, std::uint8_t* bytes) noexcept {
  bytes[0] = static_cast<std::uint8_t>(value & 0xFFU);
  bytes[1] = static_cast<std::uint8_t>(value >> 8U);
}

[[nodiscard]] inline float f16_at(const std::uint8_t* bytes) noexcept { return float_from_f16(u16_at(bytes)); }

inline void put_f16(float value, std::uint8_t* bytes) noexcept { put_u16(f16_from(static_cast<double>(value)), bytes); }

[[nodiscard]] inline float f32_at(const std::uint8_t* bytes) noexcept { return load_little_endian<float>(bytes); }

inline void put_f32(float value, std::uint8_t* bytes) noexcept { store_little_endian(value, bytes); }

/// The `count` bits of `byte` from bit `first` on.
[[nodiscard]] constexpr int bits_at(std::uint8_t byte, int first, int count) noexcept {
  return (byte >> first) & ((1 << count) - 1);
}

[[nodiscard]] constexpr int low_nibble(std::uint8_t byte) noexcept { return bits_at(byte, 0, 4); }

[[nodiscard]] constexpr int high_nibble(std::uint8_t byte) noexcept { return bits_at(byte, 4, 4); }

}  // namespace lora::formats::detail
