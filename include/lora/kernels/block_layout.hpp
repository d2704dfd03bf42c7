// SPDX-License-Identifier: MIT
// How the blocks of a number format are laid out for the kernels: byte planes, so that one vector load takes the same
// bytes of neighbouring outputs.
//
// A panel holds panel_width<float> outputs (the last may be narrower). For each block of inputs it has a chunk: the
// blocks of all its outputs, cut into units of 4 bytes, and one of `odd` bytes if the block is no multiple of 4. Unit u
// of output j stands at plane u, place j, as a number of the machine. A chunk has as many bytes as its blocks; the
// outputs that pad the last panel to width_unit are blocks of zero bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lora/core/little_endian.hpp"
#include "lora/core/types.hpp"
#include "lora/kernels/kernel_calls.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

/// Whether the unit of fewer than 4 bytes ends the block (it is a scale that follows the codes), or begins it.
template <class Format>
[[nodiscard]] constexpr bool odd_unit_last() noexcept {
  if constexpr (requires { Format::scale_is_last; }) return Format::scale_is_last;
  return false;
}

/// The places of a chunk's units. Offsets are for the first output of a panel of `width` outputs.
template <class Format>
struct BlockPlanes {
  static constexpr Index odd = Format::block_bytes % 4;
  static constexpr Index words = Format::block_bytes / 4;
  static constexpr Index first_word = odd_unit_last<Format>() ? 0 : odd;  ///< bytes of the block before its words

  [[nodiscard]] static constexpr Index word(Index u, Index width) noexcept { return (first_word + 4 * u) * width; }
  [[nodiscard]] static constexpr Index odd_unit(Index width) noexcept {
    return odd_unit_last<Format>() ? 4 * words * width : 0;
  }
};

/// The chunks of a weight of outputs x inputs, panel after panel, and in a panel block after block.
template <class Format>
struct BlockLayout {
  PanelLayout<float> panels;

  [[nodiscard]] Index blocks() const noexcept { return panels.inputs / Format::block_size; }
  [[nodiscard]] Index row_bytes() const noexcept { return blocks() * Format::block_bytes; }
  [[nodiscard]] Index chunk_bytes(Index b) const noexcept { return Format::block_bytes * panels.width(b); }
  [[nodiscard]] Index offset(Index b) const noexcept { return panels.first_output(b) * row_bytes(); }
  [[nodiscard]] Index bytes() const noexcept { return round_up(panels.outputs, width_unit<float>) * row_bytes(); }
};

/// Lays out one block of `outputs` rows, which are `row_stride` bytes apart, as a chunk of `width` outputs.
template <class Format>
void pack_chunk(const std::uint8_t* rows, Index row_stride, Index outputs, Index width, std::uint8_t* chunk) noexcept {
  using Planes = BlockPlanes<Format>;
  constexpr Index odd_at = odd_unit_last<Format>() ? 4 * Planes::words : 0;
  constexpr auto odd = static_cast<std::size_t>(Planes::odd);
  for (Index j = 0; j < outputs; ++j) {
    const std::uint8_t* const block = rows + j * row_stride;
    copy_little_endian(block + odd_at, chunk + Planes::odd_unit(width) + j * Planes::odd, odd);
    for (Index u = 0; u < Planes::words; ++u) {
      copy_little_endian(block + Planes::first_word + 4 * u, chunk + Planes::word(u, width) + 4 * j, 4);
    }
  }
  if (outputs == width) return;
  const auto missing = static_cast<std::size_t>(width - outputs);
  std::memset(chunk + Planes::odd_unit(width) + outputs * Planes::odd, 0, missing * odd);
  for (Index u = 0; u < Planes::words; ++u) {
    std::memset(chunk + Planes::word(u, width) + 4 * outputs, 0, 4 * missing);
  }
}

/// The inverse: writes the blocks of the first `outputs` outputs of a chunk.
template <class Format>
void unpack_chunk(const std::uint8_t* chunk, Index width, Index outputs, std::uint8_t* rows,
                  Index row_stride) noexcept {
  using Planes = BlockPlanes<Format>;
  constexpr Index odd_at = odd_unit_last<Format>() ? 4 * Planes::words : 0;
  for (Index j = 0; j < outputs; ++j) {
    std::uint8_t* const block = rows + j * row_stride;
    copy_little_endian(chunk + Planes::odd_unit(width) + j * Planes::odd, block + odd_at,
                       static_cast<std::size_t>(Planes::odd));
    for (Index u = 0; u < Planes::words; ++u) {
      copy_little_endian(chunk + Planes::word(u, width) + 4 * j, block + Planes::first_word + 4 * u, 4);
    }
  }
}

}  // namespace lora::kernels
