// SPDX-License-Identifier: MIT
// Shape checks that are always on.
#pragma once

#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// "4 x 12"; a negative extent prints as "N", meaning any.
[[nodiscard]] inline std::string shape_text(Index rows, Index cols) {
  const auto extent = [](Index n) { return n < 0 ? std::string("N") : std::to_string(n); };
  return extent(rows) + " x " + extent(cols);
}

/// @throws ShapeError unless `array` is rows x cols; a negative extent accepts any.
template <class Array>
void check_shape(std::string_view operation, std::string_view argument, const Array& array, Index rows, Index cols) {
  const auto extents = [&]() -> std::pair<Index, Index> {
    if constexpr (requires { array.rows(); }) {
      return {array.rows(), array.cols()};
    } else {
      return {array.rows, array.cols};
    }
  }();
  if ((rows >= 0 && extents.first != rows) || (cols >= 0 && extents.second != cols)) {
    throw ShapeError(operation, argument, shape_text(rows, cols), shape_text(extents.first, extents.second));
  }
}

}  // namespace lora
