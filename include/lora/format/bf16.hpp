// SPDX-License-Identifier: MIT
// BF16 as a number format.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/half.hpp"
#include "lora/core/types.hpp"
#include "lora/format/bytes.hpp"

namespace lora::formats {

/// One bfloat16 number, the upper half of a float, in 2 bytes. Narrowing rounds to nearest, ties to even; beyond the
/// range it gives an infinity, and a NaN stays a (quiet) NaN.
struct BF16 {
  static constexpr std::string_view name = "BF16";
  static constexpr Index block_size = 1;
  static constexpr Index block_bytes = 2;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    values[0] = float_from_bf16(detail::u16_at(block));
  }
  static void encode(const float* values, std::uint8_t* block) noexcept {
    detail::put_u16(bf16_from(static_cast<double>(values[0])), block);
  }
};

}  // namespace lora::formats
