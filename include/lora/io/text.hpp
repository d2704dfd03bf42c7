// SPDX-License-Identifier: MIT
// Text from files: checks for UTF-8, quoting in messages, and the names closest to a missing one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/types.hpp"

namespace lora {

namespace detail {

/// Length of the well-formed UTF-8 sequence at the start of `text`; 0 if there is none.
/// Source: Unicode 15, table 3-7 (no overlong forms, no surrogates, nothing beyond U+10FFFF).
[[nodiscard]] inline std::size_t utf8_sequence_length(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto within = [](unsigned value, unsigned low, unsigned high) { return low <= value && value <= high; };
  const unsigned lead = byte(0);
  if (text.empty() || within(lead, 0x80, 0xC1) || lead > 0xF4) return 0;
  if (lead < 0x80) return 1;
  const unsigned second_low = lead == 0xE0 ? 0xA0U : lead == 0xF0 ? 0x90U : 0x80U;
  const unsigned second_high = lead == 0xED ? 0x9FU : lead == 0xF4 ? 0x8FU : 0xBFU;
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (!within(byte(1), second_low, second_high)) return 0;
  for (std::size_t i = 2; i < length; ++i) {
    if (!within(byte(i), 0x80, 0xBF)) return 0;
  }
  return length;
}

}  // namespace detail

/// Bytes of the longest prefix that is well-formed UTF-8; text.size() when all of it is. Does not throw or allocate.
[[nodiscard]] inline std::size_t utf8_prefix(std::string_view text) noexcept {
  std::size_t valid = 0;
  while (valid < text.size()) {
    const std::size_t length = detail::utf8_sequence_length(text.substr(valid));
    if (length == 0) break;
    valid += length;
  }
  return valid;
}

/// `text` in double quotes for a message: control characters, quotes, backslashes and bytes that are not UTF-8 are
/// escaped; text longer than `limit` bytes is cut and its full length given.
[[nodiscard]] inline std::string in_quotes(std::string_view text, std::size_t limit = 160) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out = "\"";
  std::size_t i = 0;
  while (i < text.size() && i < limit) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const std::size_t length = detail::utf8_sequence_length(text.substr(i, 4));
    if (length == 0 || byte < 0x20 || byte == 0x7F) {
      out.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 0xF]);
    } else {
      if (byte == '"' || byte == '\\') out.push_back('\\');
      out.append(text.substr(i, length));
    }
    i += std::max<std::size_t>(length, 1);
  }
  out.push_back('"');
  if (i < text.size()) out.append("... (").append(std::to_string(text.size())).append(" bytes)");
  return out;
}

/// "[2, 3]"
[[nodiscard]] inline std::string shape_text(std::span<const Index> shape) {
  std::string text = "[";
  for (const Index extent : shape) text.append(text.size() > 1 ? ", " : "").append(std::to_string(extent));
  return text + "]";
}

/// Up to `count` of the names most similar to `wanted`, best first, by the length of the common prefix plus that of the
/// common suffix. Linear in the total length of the names, so that a hostile file cannot make an error message slow.
[[nodiscard]] inline std::vector<std::string_view> nearest_names(std::string_view wanted,
                                                                 const std::vector<std::string_view>& names,
                                                                 std::size_t count) {
  const auto resemblance = [&](std::string_view name) {
    const auto shorter = static_cast<std::ptrdiff_t>(std::min(wanted.size(), name.size()));
    const auto beginning = std::mismatch(name.begin(), name.begin() + shorter, wanted.begin()).first - name.begin();
    const auto end = std::mismatch(name.rbegin(), name.rbegin() + (shorter - beginning), wanted.rbegin()).first;
    return beginning + (end - name.rbegin());
  };
  std::vector<std::pair<std::ptrdiff_t, std::string_view>> ranked;
  ranked.reserve(names.size());
  for (const std::string_view name : names) ranked.emplace_back(-resemblance(name), name);
  const std::size_t kept = std::min(count, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(kept), ranked.end());
  std::vector<std::string_view> nearest;
  for (std::size_t i = 0; i < kept; ++i) nearest.push_back(ranked[i].second);
  return nearest;
}

}  // namespace lora
