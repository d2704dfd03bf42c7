// SPDX-License-Identifier: MIT
// Names in error messages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"

namespace lora::detail {

/// In double quotes for a message: control characters as \xNN, and cut after 160 bytes.
[[nodiscard]] inline std::string quoted_name(std::string_view name) {
  constexpr std::size_t limit = 160;
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text(1, '"');
  for (const char c : name.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      const char escaped[] = {'\\', 'x', digits[byte >> 4], digits[byte & 0xF]};
      text.append(escaped, sizeof(escaped));
    } else {
      text.push_back(c);
    }
  }
  return joined({text, name.size() > limit ? "...\"" : "\""});
}

/// `"a", "b", "c"`, the first `limit` of them.
template <class Names>
[[nodiscard]] std::string quoted_names(const Names& names, std::size_t limit = 20) {
  std::string text;
  std::size_t count = 0;
  for (const auto& name : names) {
    if (count++ < limit) text = joined({text, text.empty() ? "" : ", ", quoted_name(name)});
  }
  return count > limit ? joined({text, ", ... (", std::to_string(count), ")"}) : text;
}

}  // namespace lora::detail
