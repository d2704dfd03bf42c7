// SPDX-License-Identifier: MIT
// Blocks of a number format with arbitrary codes and moderate scales.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "lora/core/finite.hpp"
#include "lora/core/types.hpp"
#include "lora/format/number_format.hpp"

namespace lora::testing {

/// Random bytes, drawn again for a block until its values are finite and at most 1e4.
template <class Format>
[[nodiscard]] std::vector<std::uint8_t> random_blocks(Index rows, Index cols, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto block_bytes = static_cast<std::size_t>(Format::block_bytes);
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(rows * formats::row_bytes<Format>(cols)));
  std::vector<float> values(static_cast<std::size_t>(Format::block_size));
  for (std::size_t at = 0; at < blocks.size(); at += block_bytes) {
    bool moderate = false;
    while (!moderate) {
      for (std::size_t i = 0; i < block_bytes; ++i) blocks[at + i] = static_cast<std::uint8_t>(random() & 0xFFU);
      Format::decode(blocks.data() + at, values.data());
      moderate = true;
      for (const float value : values) moderate = moderate && is_finite(value) && value <= 1e4F && value >= -1e4F;
    }
  }
  return blocks;
}

/// The values of `blocks`, by the trait.
template <class Format>
[[nodiscard]] Matrix<float> decoded(const std::vector<std::uint8_t>& blocks, Index rows, Index cols) {
  Matrix<float> values(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    formats::decode_row<Format>(blocks.data() + i * formats::row_bytes<Format>(cols), cols, &values(i, 0));
  }
  return values;
}

}  // namespace lora::testing
