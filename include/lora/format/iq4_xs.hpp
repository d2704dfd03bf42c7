// SPDX-License-Identifier: MIT
// IQ4_XS of GGUF files.
#pragma once

#include <cstdint>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/block32.hpp"
#include "lora/format/bytes.hpp"
#include "lora/format/iq4_nl.hpp"
#include "lora/format/rounding.hpp"

namespace lora::formats {

/// 256 weights, 136 bytes: [d: F16][upper 2 bits of s: 2 bytes][low 4 bits of s: 4 bytes][q: 128 bytes of two].
/// value = (d * (s - 32)) * table[q], with s of 32 weights and the table of IQ4_NL. The 16 bytes of 32 weights have the
/// first 16 in their low nibbles. Source: ggml's block_iq4_xs.
struct IQ4_XS {
  static constexpr std::string_view name = "IQ4_XS";
  static constexpr Index block_size = 256;
  static constexpr Index block_bytes = 136;

  static void decode(const std::uint8_t* block, float* values) noexcept {
    const float d = detail::f16_at(block);
    for (Index i = 0; i < block_size; ++i) {
      const Index group = i / 32;
      const float scale = detail::product(d, static_cast<float>(scale_of(block + 2, group) - 32));
      const int q = detail::nibble_of_32(block + 8 + 16 * group, i % 32);
      values[i] = detail::product(scale, detail::iq4_value(q));
    }
  }

 private:
  /// The 6 bits of group 0 to 7, both fields from the lowest bits up.
  [[nodiscard]] static int scale_of(const std::uint8_t* bytes, Index group) noexcept {
    const int upper = detail::bits_at(bytes[group / 4], static_cast<int>(group % 4 * 2), 2);
    const int lower = detail::bits_at(bytes[2 + group / 2], static_cast<int>(group % 2 * 4), 4);
    return lower | upper << 4;
  }
};

}  // namespace lora::formats
