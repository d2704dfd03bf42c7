// SPDX-License-Identifier: MIT
// The number formats that the tests of this folder run over, and blocks of weights to encode.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <random>
#include <string>
#include <vector>

#include "lora/format/formats.hpp"

namespace lora::testing {

using NumberFormats = ::testing::Types<formats::F16, formats::BF16, formats::Q8_0, formats::Q4_0, formats::Q4_1,
                                       formats::Q5_0, formats::Q5_1, formats::Q2_K, formats::Q3_K, formats::Q4_K,
                                       formats::Q5_K, formats::Q6_K, formats::IQ4_NL, formats::IQ4_XS, formats::MXFP4,
                                       formats::NF4<>, formats::NF4<128>, formats::FP4<>, formats::FP4<128>>;

using EncodableFormats = ::testing::Types<formats::F16, formats::BF16, formats::Q8_0, formats::Q4_0, formats::Q4_1,
                                          formats::Q5_0, formats::Q5_1, formats::NF4<>, formats::NF4<128>,
                                          formats::NF4<4096>, formats::FP4<>, formats::FP4<128>, formats::FP4<32>>;

/// Whether the format is NF4 or FP4, with any block size.
template <class Format>
inline constexpr bool is_nf4 = std::same_as<Format, formats::NF4<Format::block_size>>;
template <class Format>
  requires(Format::block_size < 32)
inline constexpr bool is_nf4<Format> = false;
template <class Format>
inline constexpr bool is_fp4 = std::same_as<Format, formats::FP4<Format::block_size>>;
template <class Format>
  requires(Format::block_size < 32)
inline constexpr bool is_fp4<Format> = false;
template <class Format>
inline constexpr bool has_absmax = is_nf4<Format> || is_fp4<Format>;

/// "Q4_0", "NF4_128": the name that GoogleTest shows.
struct FormatName {
  template <class Format>
  static std::string GetName(int) {
    const std::string name(Format::name);
    return has_absmax<Format> ? name + "_" + std::to_string(Format::block_size) : name;
  }
};

using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

template <class Format>
[[nodiscard]] Floats decoded(const Bytes& block) {
  Floats values(static_cast<std::size_t>(Format::block_size));
  Format::decode(block.data(), values.data());
  return values;
}

template <class Format>
[[nodiscard]] Bytes encoded(const Floats& values) {
  Bytes block(static_cast<std::size_t>(Format::block_bytes));
  Format::encode(values.data(), block.data());
  return block;
}

/// Whether the floats from `values` on are `expected`, bit for bit: signed zeros and NaNs count.
[[nodiscard]] inline bool same_bits_as(const Floats& expected, const float* values) {
  return std::equal(expected.begin(), expected.end(), values, [](float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
  });
}

[[nodiscard]] inline float largest_magnitude(const Floats& values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

[[nodiscard]] inline float range_of(const Floats& values) {
  return *std::max_element(values.begin(), values.end()) - *std::min_element(values.begin(), values.end());
}

/// A block of normally distributed weights.
template <class Format>
[[nodiscard]] Floats normal_block(std::mt19937& random, float mean, float deviation) {
  std::normal_distribution<float> normal(mean, deviation);
  Floats values(static_cast<std::size_t>(Format::block_size));
  for (float& value : values) value = normal(random);
  return values;
}

/// Blocks of weights that every format can hold: small and large, shifted, of one sign, constant, mostly zero, with one
/// outlier.
template <class Format>
[[nodiscard]] std::vector<Floats> blocks_of_weights() {
  std::mt19937 random(20230523);
  std::vector<Floats> blocks;
  for (int exponent = -20; exponent <= 12; ++exponent) {
    const float deviation = std::ldexp(1.0F, exponent);
    for (int i = 0; i < 8; ++i) blocks.push_back(normal_block<Format>(random, 0.0F, deviation));
    blocks.push_back(normal_block<Format>(random, 3 * deviation, deviation));
    for (float& value : blocks.emplace_back(blocks.back())) value = -std::abs(value);
  }
  for (const float outlier : {50000.0F, -50000.0F, 1.0F}) {
    blocks.push_back(normal_block<Format>(random, 0.0F, 0.02F));
    blocks.back()[blocks.back().size() / 2] = outlier;
  }
  blocks.emplace_back(static_cast<std::size_t>(Format::block_size), 0.375F);
  blocks.emplace_back(static_cast<std::size_t>(Format::block_size), -1000.0F);
  blocks.emplace_back(static_cast<std::size_t>(Format::block_size), 0.0F).back() = 1.5F;
  return blocks;
}

}  // namespace lora::testing
