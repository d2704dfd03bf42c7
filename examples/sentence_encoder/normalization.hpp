// SPDX-License-Identifier: MIT
// Unicode normalisation (NFKC) of UTF-8 text into code points.
#pragma once

#include <utf8proc.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/io/text.hpp"

namespace examples::sentence_encoder {

/// `text` with every byte that is not part of well-formed UTF-8 replaced by U+FFFD. Decoders that follow the WHATWG's
/// encoding standard put one U+FFFD for several such bytes in places; the tokenizer takes any number of them as one
/// unknown piece.
[[nodiscard]] inline std::string well_formed(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const std::size_t valid = lora::utf8_prefix(text);
    result.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    result.append("\xEF\xBF\xBD");
    text.remove_prefix(1);
  }
  return result;
}

/// The code points of `text` in Normalization Form KC: compatibility decomposition, then canonical composition.
/// Source: Unicode Standard Annex 15; computed by utf8proc. Letters newer than its Unicode data stay as they are: with
/// 2.8 (Unicode 15) those are U+A7F1 and U+1CCD6 to U+1CCF9, all others are as in Node 20 (Unicode 17).
/// @throws lora::FormatError when utf8proc refuses a text, as for one beyond its limit of length
[[nodiscard]] inline std::u32string nfkc(std::string_view text) {
  constexpr auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPAT | UTF8PROC_COMPOSE);
  const std::string input = well_formed(text);
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(input.data());
  const auto length = static_cast<utf8proc_ssize_t>(input.size());
  const auto check = [](utf8proc_ssize_t result) {
    if (result < 0) throw lora::FormatError("nfkc", "text", "text that can be normalised", utf8proc_errmsg(result));
    return result;
  };
  std::u32string points(static_cast<std::size_t>(check(utf8proc_decompose(bytes, length, nullptr, 0, options))), U'\0');
  static_assert(sizeof(char32_t) == sizeof(utf8proc_int32_t));
  // utf8proc counts code points as signed numbers of the same size.
  auto* buffer = reinterpret_cast<utf8proc_int32_t*>(points.data());
  check(utf8proc_decompose(bytes, length, buffer, static_cast<utf8proc_ssize_t>(points.size()), options));
  const auto composed = check(utf8proc_normalize_utf32(buffer, static_cast<utf8proc_ssize_t>(points.size()), options));
  points.resize(static_cast<std::size_t>(composed));
  return points;
}

/// The code points of well-formed UTF-8 as they are.
/// @throws lora::FormatError for anything else
[[nodiscard]] inline std::u32string code_points(std::string_view text) {
  std::u32string points;
  while (!text.empty()) {
    utf8proc_int32_t point = -1;
    const auto used = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                       static_cast<utf8proc_ssize_t>(text.size()), &point);
    if (used <= 0) throw lora::FormatError("code_points", "text", "well-formed UTF-8", lora::in_quotes(text));
    points.push_back(static_cast<char32_t>(point));
    text.remove_prefix(static_cast<std::size_t>(used));
  }
  return points;
}

}  // namespace examples::sentence_encoder
