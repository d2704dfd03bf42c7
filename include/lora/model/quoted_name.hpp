// Names in error messages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lora::detail {

/// In double quotes for a message: control characters as \xNN, and cut after 160 bytes.
[[nodiscard]] inline std::string quoted_name(std::string_view name) {
  constexpr std::size_t limit = 160;
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text = "\"";
  for (const char c : name.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      text.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 0xF]);
    } else {
      text.push_back(c);
    }
  }
  return text.append(name.size() > limit ? "...\"" : "\"");
}

/// `"a", "b", "c"`, the first `limit` of them.
template <class Names>
[[nodiscard]] std::string quoted_names(const Names& names, std::size_t limit = 20) {
  std::string text;
  std::size_t count = 0;
  for (const auto& name : names) {
    if (count++ < limit) text.append(text.empty() ? "" : ", ").append(quoted_name(name));
  }
  if (count > limit) text.append(", ... (").append(std::to_string(count)).append(")");
  return text;
}

}  // namespace lora::detail
