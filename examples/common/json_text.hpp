// SPDX-License-Identifier: MIT
// JSON from elsewhere.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

namespace examples {

/// Whether lists and objects are nested more than `most` deep; the text need not be JSON. Linear in its length.
[[nodiscard]] inline bool is_nested_deeper(std::string_view json, std::size_t most) {
  std::size_t depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > most) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

/// What a text says; a discarded value if it is not JSON, or nested more than `deepest` deep: copying and writing
/// nested values takes as much stack as they are deep. Not with a callback of the parser's, which looks at all earlier
/// values of a list after each of its lists and objects.
[[nodiscard]] inline nlohmann::json parse_json(std::string_view text, std::size_t deepest = 64) {
  if (is_nested_deeper(text, deepest)) return nlohmann::json(nlohmann::json::value_t::discarded);
  return nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

}  // namespace examples
