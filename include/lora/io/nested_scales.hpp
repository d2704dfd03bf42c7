// SPDX-License-Identifier: MIT
// The scales of bitsandbytes' 4-bit weights in 8 bits: double quantisation, or "compress_statistics".
//
//   offset = mean of the scales
//   absmax = largest |scale - offset| of each block of scales
//   code   = position in the map of the number nearest to (scale - offset) / absmax
//   scale ~= map[code] * absmax + offset
//
// Source: bitsandbytes, functional.quantize_4bit with compress_statistics, and create_dynamic_map.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lora/format/rounding.hpp"

namespace lora::detail {

/// The scales that share a scale of their own, in bitsandbytes.
inline constexpr std::size_t nested_block_size = 256;

/// What the 256 codes stand for, ascending: 0, 1, and for each i < 7 the means of 2^i equal parts of [0.1, 1], times
/// 10^(i - 6), with both signs.
[[nodiscard]] inline std::array<float, 256> nested_quant_map() {
  std::array<float, 256> map{};
  std::size_t size = 0;
  map[size++] = 0;
  map[size++] = 1;
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << i;
    const auto boundary = [parts](int j) { return static_cast<float>(0.1 + 0.9 * j / parts); };
    const auto power = static_cast<float>(std::pow(10.0, i - 6));
    for (int j = 0; j < parts; ++j) {
      const float mean = formats::detail::sum(boundary(j), boundary(j + 1)) / 2;
      const float value = formats::detail::product(power, mean);
      map[size++] = value;
      map[size++] = -value;
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

struct NestedScales {
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;  ///< of blocks of nested_block_size
  float offset = 0;
};

/// The position of the nearest number of an ascending map; of two as near, the smaller.
[[nodiscard]] inline std::uint8_t nearest_code(std::span<const float, 256> map, float value) noexcept {
  const auto above = std::lower_bound(map.begin(), map.end(), value);
  if (above == map.begin()) return 0;
  if (above == map.end()) return 255;
  const auto position = above - map.begin();
  const bool lower = value - *(above - 1) <= *above - value;
  return static_cast<std::uint8_t>(lower ? position - 1 : position);
}

/// Pre: finite scales. @throws std::bad_alloc
[[nodiscard]] inline NestedScales nest_scales(std::span<const float> scales) {
  const auto map = nested_quant_map();
  double sum = 0;
  for (const float scale : scales) sum += static_cast<double>(scale);
  NestedScales nested;
  nested.offset = scales.empty() ? 0.0F : static_cast<float>(sum / static_cast<double>(scales.size()));
  nested.codes.reserve(scales.size());
  for (std::size_t begin = 0; begin < scales.size(); begin += nested_block_size) {
    const auto block = scales.subspan(begin, std::min(nested_block_size, scales.size() - begin));
    float largest = 0;
    for (const float scale : block) largest = std::max(largest, std::abs(scale - nested.offset));
    nested.absmax.push_back(largest);
    for (const float scale : block) {
      const float share = largest > 0 ? (scale - nested.offset) / largest : 0.0F;
      nested.codes.push_back(nearest_code(map, share));
    }
  }
  return nested;
}

}  // namespace lora::detail
