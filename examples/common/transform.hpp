// SPDX-License-Identifier: MIT
// Changes of a dataset's world: the same labels, other pictures.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/dataset.hpp"

namespace examples {

/// Every image turned by 90 degrees clockwise: out(i, j) = in(height - 1 - j, i). Four times are the identity.
[[nodiscard]] inline ImageSet rotate_quarter_turn(const ImageSet& set) {
  ImageSet turned{set.width, set.height, std::vector<std::uint8_t>(set.pixels.size()), set.labels};
  auto* out = turned.pixels.data();
  for (Index n = 0; n < set.count(); ++n) {
    const auto image = set.image(n);
    for (Index i = 0; i < turned.height; ++i) {
      for (Index j = 0; j < turned.width; ++j) {
        *out++ = image[static_cast<std::size_t>((set.height - 1 - j) * set.width + i)];
      }
    }
  }
  return turned;
}

/// Black for white: p becomes 255 - p. Twice is the identity.
[[nodiscard]] inline ImageSet invert(ImageSet set) {
  std::transform(set.pixels.begin(), set.pixels.end(), set.pixels.begin(),
                 [](std::uint8_t pixel) { return static_cast<std::uint8_t>(255 - pixel); });
  return set;
}

}  // namespace examples
