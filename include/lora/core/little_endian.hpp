// SPDX-License-Identifier: MIT
// Numbers as files and blocks hold them: little-endian, at any alignment.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <type_traits>

namespace lora {

/// Whether stored numbers can be used in place.
inline constexpr bool is_little_endian = std::endian::native == std::endian::little;

/// The `size` bytes of a number, in the other order on a big-endian machine.
inline void copy_little_endian(const void* from, void* to, std::size_t size) noexcept {
  if constexpr (is_little_endian) {
    std::memcpy(to, from, size);
  } else {
    for (std::size_t i = 0; i < size; ++i) {
      static_cast<unsigned char*>(to)[i] = static_cast<const unsigned char*>(from)[size - 1 - i];
    }
  }
}

/// The number at `bytes`.
template <class Number>
[[nodiscard]] Number load_little_endian(const void* bytes) noexcept {
  static_assert(std::is_arithmetic_v<Number>);
  Number number;
  copy_little_endian(bytes, &number, sizeof(Number));
  return number;
}

/// Writes a number to `bytes`.
template <class Number>
void store_little_endian(Number number, void* bytes) noexcept {
  static_assert(std::is_arithmetic_v<Number>);
  copy_little_endian(&number, bytes, sizeof(Number));
}

}  // namespace lora
