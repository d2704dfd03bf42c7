// SPDX-License-Identifier: MIT
// MXFP4, as GGUF files hold it.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 32 weights, 17 bytes: [e: E8M0][q: 16 bytes of two E2M1 numbers]. value = 2^(e - 128) * table[q], with twice the
/// number's value in the table. Byte j has weight j in its low nibble and weight j + 16 in its high one.
///
/// Two values differ between ggml, which is followed here, and the standard: code 8 is +0 and not -0, and e = 255 is
/// 2^127 and not NaN. From e = 253 on the largest codes exceed a float and give infinities.
/// Source: ggml's block_mxfp4; OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 and 5.4.1.
struct MXFP4 {
  static constexpr std::string_view name = "MXFP4";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 17;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const double scale = half_scale(block[0]);
    for (Index i = 0; i < block_size; ++i) {
      const auto q = static_cast<std::size_t>(detail::nibble_of_32(block + 1, i));
      values[i] = detail::rounded(static_cast<float>(scale * doubled_values[q]));
    }
  }

 private:
  static constexpr std::array<std::int8_t, 16> doubled_values = {0, 1,  2,  3,  4,  6,  8,  12,
                                                                 0, -1, -2, -3, -4, -6, -8, -12};

  /// 2^(e - 128), assembled from bits. As floats the two smallest would be denormal numbers, which programs may flush.
  [[nodiscard]] static double half_scale(std::uint8_t e) noexcept {
    constexpr std::uint64_t rebias = 1023 - 128;
    return std::bit_cast<double>((e + rebias) << 52U);
  }
};

}  // namespace lora::formats
