// SPDX-License-Identifier: MIT
// IQ4_NL of GGUF files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

namespace detail {

/// What the 16 codes of IQ4_NL and IQ4_XS stand for, in units of the scale.
inline constexpr std::array<std::int8_t, 16> iq4_values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                           1,    13,   25,  38,  53,  69,  89,  113};

[[nodiscard]] inline float iq4_value(int code) noexcept {
  return static_cast<float>(iq4_values[static_cast<std::size_t>(code)]);
}

}  // namespace detail

/// 32 weights, 18 bytes: [d: F16][q: 16 bytes of two]. value = d * table[q].
/// Byte j has weight j in its low nibble and weight j + 16 in its high one. Source: ggml's block_iq4_nl.
struct IQ4_NL {
  static constexpr std::string_view name = "IQ4_NL";
  static constexpr Index block_size = 32;
  static constexpr Index block_bytes = 18;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    for (Index i = 0; i < block_size; ++i) {
      values[i] = detail::product(d, detail::iq4_value(detail::nibble_of_32(block + 2, i)));
    }
  }
};

}  // namespace lora::formats
