// SPDX-License-Identifier: MIT
// F16 as a number format.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/bytes.hpp"

namespace lora::formats {

/// One IEEE 754 binary16 number in 2 bytes. Narrowing rounds to nearest, ties to even; beyond the range it gives an
/// infinity, and a NaN stays a (quiet) NaN.
struct F16 {
  static constexpr std::string_view name = "F16";
  static constexpr Index block_size = 1;
  static constexpr Index block_bytes = 2;

  static void decode(const std::uint8_t* block, float* values) noexcept { values[0] = detail::f16_at(block); }
  static void encode(const float* values, std::uint8_t* block) noexcept { detail::put_f16(values[0], block); }
};

}  // namespace lora::formats
