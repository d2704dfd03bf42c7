// SPDX-License-Identifier: MIT
// What the tool prints: text from files is made harmless for a terminal first.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/io/text.hpp"

namespace lora::tools {

namespace detail {

/// Whether a UTF-8 sequence is a control character, or one that reverses the direction of the text after it.
[[nodiscard]] inline bool controls_terminal(std::string_view sequence) {
  const auto lead = static_cast<unsigned char>(sequence[0]);
  if (sequence.size() == 1) return lead < 0x20 || lead == 0x7F;
  const auto second = static_cast<unsigned char>(sequence[1]);
  if (sequence.size() == 2) return (lead == 0xC2 && second < 0xA0) || sequence == "\u061C";
  if (sequence.size() != 3 || lead != 0xE2) return false;
  const auto third = static_cast<unsigned char>(sequence[2]);
  const bool marks = second == 0x80 && (third == 0x8E || third == 0x8F || (third >= 0xA8 && third <= 0xAE));
  const bool isolates = second == 0x81 && third >= 0xA6 && third <= 0xA9;
  return marks || isolates;
}

}  // namespace detail

/// `text` with bytes that are not UTF-8, control characters and marks of direction as \x1b; newlines stay if `lines`.
[[nodiscard]] inline std::string printable(std::string_view text, bool lines = false) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t length = 1;
    while (length <= 4 && utf8_prefix(text.substr(i, length)) != length) ++length;
    const bool valid = length <= 4 && i + length <= text.size();
    const std::string_view sequence = text.substr(i, valid ? length : 1);
    i += sequence.size();
    if (valid && (!detail::controls_terminal(sequence) || (lines && sequence == "\n"))) {
      out.append(sequence);
      continue;
    }
    for (const char c : sequence) {
      const auto byte = static_cast<unsigned char>(c);
      out.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 0xF]);
    }
  }
  return out;
}

/// One line on standard output.
inline void say(std::string_view line) { std::printf("%s\n", printable(line).c_str()); }

/// A JSON report on standard output.
template <class Json>
void say_json(const Json& report) {
  std::printf("%s\n", report.dump(2, ' ', true, Json::error_handler_t::replace).c_str());
}

/// One line on standard error.
inline void warn(std::string_view line) { std::fprintf(stderr, "warning: %s\n", printable(line).c_str()); }

/// @throws IoError unless all that was printed has reached standard output
inline void finish_printing() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw IoError("print", "standard output", "to write to it", "an error: what was to be printed is not complete");
}

}  // namespace lora::tools
