// SPDX-License-Identifier: MIT
// Weights of fewer bits to measure with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "cases/layer.hpp"
#include "lora/weight/quantized.hpp"

namespace lora::bench {

/// d x d normal numbers, encoded; for a format without an encoder, bytes of which every one is a fair scale and codes.
template <class Format>
[[nodiscard]] std::vector<std::uint8_t> blocks_of(Index d, std::uint32_t seed) {
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(d * formats::row_bytes<Format>(d)));
  if constexpr (formats::EncodableFormat<Format>) {
    const auto values = normal_matrix(d, d, seed);
    QuantizedWeight<Format>::quantize(view_of(values)).write_blocks(blocks);
  } else {
    // The kernels have no branch on a value, so all normal numbers take the same time. Zeros would be denormal in
    // MXFP4; with these bytes scales of 16 bits are from 1/8 to 2.
    std::mt19937 random(seed);
    for (auto& byte : blocks) byte = static_cast<std::uint8_t>(0x30 + (random() >> 28));
  }
  return blocks;
}

}  // namespace lora::bench
