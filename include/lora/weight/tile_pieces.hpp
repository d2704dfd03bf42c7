// A weight's tiles cut into pieces whose scratch fits a stack.
#pragma once

#include <algorithm>
#include <utility>

#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// No piece holds more scalars than this.
inline constexpr Index max_piece_size = 4096;

/// Calls body(piece) for all of the weight, in a fixed order, until it answers false. A piece is a tile of its own:
/// some whole lines of a tile, by eights where they are that many, or a part of one. No allocation.
template <class Weight, class Body>
void for_each_piece(Weight& weight, const Body& body) {
  for (Index t = 0; t < weight.tile_count(); ++t) {
    const auto tile = weight.tile(t);
    for (Index p = 0; p < tile.length; p += max_piece_size) {
      auto piece = tile;
      piece.length = std::min(max_piece_size, tile.length - p);
      piece.first_position += p;
      Index together = std::max<Index>(max_piece_size / piece.length, 1);
      if (together > 8) together -= together % 8;
      for (Index l = 0; l < tile.lines; l += together) {
        piece.data = tile.data + l * tile.line_stride + p;
        piece.lines = std::min(together, tile.lines - l);
        piece.first_line = tile.first_line + l;
        if (!body(std::as_const(piece))) return;
      }
    }
  }
}

}  // namespace lora
