// SPDX-License-Identifier: MIT
// What a number format of frozen weights is: a block of consecutive weights of one row in a fixed number of bytes.
//
// The decoders and encoders are plain loops, the definition that faster kernels are tested against. Their results do
// not depend on the compiler's flags: see rounding.hpp. They do depend on the thread's floating-point environment. In
// programs that flush denormal numbers (below 2^-126), weights and results of that size become zero, and so do scales
// of NF4 and FP4. DefaultFloatingPoint (core/floating_point.hpp) prevents it.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"

namespace lora::formats {

/// A format that can be read: `block_size` weights of one row in `block_bytes` bytes, little-endian, at any alignment.
/// decode(block, values) reads block_bytes bytes and writes block_size floats. It accepts any bytes, and does not throw
/// or allocate.
template <class Format>
concept NumberFormat = requires(const std::uint8_t* block, float* values) {
  { Format::name } -> std::convertible_to<std::string_view>;
  { Format::block_size } -> std::convertible_to<Index>;
  { Format::block_bytes } -> std::convertible_to<Index>;
  requires noexcept(Format::decode(block, values));
};

/// A format with a plain rule for writing. encode(values, block) reads block_size floats and writes block_bytes bytes.
/// It does not throw or allocate. A block with an infinity or a NaN becomes one whose weights all decode to NaN, except
/// in F16 and BF16, which have infinities and NaNs of their own.
template <class Format>
concept EncodableFormat = NumberFormat<Format> && requires(const float* values, std::uint8_t* block) {
  requires noexcept(Format::encode(values, block));
};

/// Bytes of a row of `cols` weights. Pre: cols is a multiple of Format::block_size.
template <NumberFormat Format>
[[nodiscard]] constexpr Index row_bytes(Index cols) noexcept {
  return cols / Format::block_size * Format::block_bytes;
}

/// Decodes the row_bytes(cols) bytes of a row into `cols` floats. Pre: cols is a multiple of Format::block_size.
template <NumberFormat Format>
void decode_row(const std::uint8_t* bytes, Index cols, float* values) noexcept {
  for (Index col = 0; col < cols; col += Format::block_size) {
    Format::decode(bytes + row_bytes<Format>(col), values + col);
  }
}

/// Encodes a row of `cols` floats into row_bytes(cols) bytes. Pre: cols is a multiple of Format::block_size.
template <EncodableFormat Format>
void encode_row(const float* values, Index cols, std::uint8_t* bytes) noexcept {
  for (Index col = 0; col < cols; col += Format::block_size) {
    Format::encode(values + col, bytes + row_bytes<Format>(col));
  }
}

}  // namespace lora::formats
