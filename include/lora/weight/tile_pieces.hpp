// SPDX-License-Identifier: MIT
// A weight's tiles cut into pieces whose scratch fits a stack.
#pragma once

#include <algorithm>
#include <type_traits>

#include "lora/weight/weight_ref.hpp"

namespace lora {

/// No piece holds more elements than this.
inline constexpr Index max_piece_size = 4096;

/// Walks over all of a weight, in a fixed order: `while (pieces.next()) use(pieces.piece());`. A piece is itself a
/// tile: several whole lines of a tile, a multiple of eight if there are that many, or part of one line. `Element` is
/// that of the weight's storage(), and const for reading only; a const weight is enough then. No allocation.
template <class Element, class Scalar = std::remove_const_t<Element>>
class TilePieces {
 public:
  /// Pre: `weight` has tiles, and is mergeable unless Element is const.
  explicit TilePieces(const WeightRef<Scalar>& weight) noexcept : weight_(weight), tiles_(weight.tile_count()) {}

  /// Moves to the next piece; the first call moves to the first one. False at the end.
  [[nodiscard]] bool next() {
    line_ += piece_.lines;
    if (line_ >= tile_.lines) {
      line_ = 0;
      position_ += piece_.length;
      if (position_ >= tile_.length) {
        if (t_ == tiles_) return false;
        tile_ = fetch(t_++);
        position_ = 0;
      }
    }
    piece_ = tile_;
    piece_.length = std::min(max_piece_size, tile_.length - position_);
    piece_.first_position += position_;
    Index together = std::max<Index>(max_piece_size / piece_.length, 1);
    if (together > 8) together -= together % 8;
    piece_.data = tile_.data + line_ * tile_.line_stride + position_;
    piece_.lines = std::min(together, tile_.lines - line_);
    piece_.first_line = tile_.first_line + line_;
    return true;
  }

  [[nodiscard]] const WeightTile<Element>& piece() const noexcept { return piece_; }

 private:
  [[nodiscard]] WeightTile<Element> fetch(Index t) const {
    if constexpr (std::is_const_v<Element>) {
      return weight_.template const_tile<std::remove_const_t<Element>>(t);
    } else {
      return weight_.template tile<Element>(t);
    }
  }

  WeightRef<Scalar> weight_;
  Index tiles_;
  Index t_ = 0;
  WeightTile<Element> tile_;
  WeightTile<Element> piece_;
  Index line_ = 0;
  Index position_ = 0;
};

}  // namespace lora
