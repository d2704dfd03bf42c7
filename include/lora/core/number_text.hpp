// SPDX-License-Identifier: MIT
// Numbers in error messages.
#pragma once

#include <cstdio>
#include <string>

namespace lora::detail {

/// Nine significant digits, so that a value just outside a range does not print as the limit.
[[nodiscard]] inline std::string number_text(double number) {
  char text[32];  // "%.9g" of a double takes at most 16 characters
  std::snprintf(text, sizeof(text), "%.9g", number);
  return text;
}

}  // namespace lora::detail
