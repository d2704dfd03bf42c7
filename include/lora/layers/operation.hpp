// SPDX-License-Identifier: MIT
// The name of a layer's call in error messages, assembled only when an error is thrown.
#pragma once

#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// "LoraLinear::forward" in two parts.
struct Operation {
  std::string_view layer;
  std::string_view call;

  [[nodiscard]] LORA_COLD std::string text() const { return detail::joined({layer, "::", call}); }
};

namespace detail {

[[noreturn]] LORA_COLD inline void throw_shape(const Operation& operation, std::string_view argument, Index rows,
                                               Index cols, Index got_rows, Index got_cols) {
  throw ShapeError(operation.text(), argument, shape_text(rows, cols), shape_text(got_rows, got_cols));
}
[[noreturn]] LORA_COLD inline void throw_overlap(const Operation& operation, std::string_view argument,
                                                 std::string_view other) {
  throw ShapeError(operation.text(), argument, joined({"memory apart from ", other}), "overlapping memory");
}

}  // namespace detail

/// @throws ShapeError unless got_rows x got_cols is rows x cols; negative rows accept any number.
inline void require_shape(const Operation& operation, std::string_view argument, Index rows, Index cols, Index got_rows,
                          Index got_cols) {
  if ((rows >= 0 && rows != got_rows) || cols != got_cols) {
    detail::throw_shape(operation, argument, rows, cols, got_rows, got_cols);
  }
}

/// @throws ShapeError when the two share memory
template <class A, class B>
void require_apart(const Operation& operation, std::string_view argument, const MatrixView<A>& view,
                   std::string_view other_argument, const MatrixView<B>& other) {
  if (overlap(view, other)) detail::throw_overlap(operation, argument, other_argument);
}

}  // namespace lora
