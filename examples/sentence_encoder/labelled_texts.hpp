// SPDX-License-Identifier: MIT
// Labelled texts from a tab-separated file, and a split of them that is the same on every machine.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"
#include "sentence_encoder/fnv1a.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// A text, the index of its label in the table's classes, and what decides its part of the split.
struct LabelledText {
  std::string text;
  std::uint8_t label = 0;
  std::string group;  ///< rows of one group are never parted; the text itself where the file names none
};

struct LabelledTexts {
  std::vector<std::string> classes;  ///< ascending, each with at least one row
  std::vector<LabelledText> rows;    ///< in the file's order
  std::uint64_t hash = 0;            ///< of the file's bytes (FNV-1a, 64 bits)
};

namespace detail {

/// Spreads a hash over all bits. Source: Steele, Lea, Flood, SplitMix64, OOPSLA 2014.
[[nodiscard]] constexpr std::uint64_t mixed(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// One line of the table, without its end.
struct TableLine {
  std::string_view text;
  std::string place;  // "FILE:LINE"

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const {
    throw lora::FormatError("read_labelled_texts", place, expected, got);
  }

  /// Label, text and group; the group may be missing.
  [[nodiscard]] std::array<std::string_view, 3> fields() const {
    const std::size_t valid = lora::utf8_prefix(text);
    if (valid != text.size()) refuse("UTF-8", "an invalid sequence at byte " + std::to_string(valid + 1));
    if (text.find('\0') != std::string_view::npos) refuse("text", "a zero byte");
    constexpr std::string_view wanted = "label, tab, text, and at most a tab and a group after them";
    const std::size_t first = text.find('\t');
    if (first == std::string_view::npos) refuse(wanted, lora::in_quotes(text, 60) + " without a tab");
    const std::size_t second = text.find('\t', first + 1);
    std::array<std::string_view, 3> parts = {text.substr(0, first), text.substr(first + 1, second - first - 1), {}};
    if (second != std::string_view::npos) parts[2] = text.substr(second + 1);
    if (parts[2].find('\t') != std::string_view::npos) refuse(wanted, "more tabs");
    if (parts[0].empty()) refuse("a label before the tab", "none");
    if (parts[1].find_first_not_of(' ') == std::string_view::npos) refuse("a text after the tab", "none");
    return parts;
  }
};

/// Calls take(line) for every line that is not blank; the last may lack its end, and lines may end in CR LF.
template <class Take>
void for_each_line(std::string_view text, const std::string& file, const Take& take) {
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  if (text.starts_with(byte_order_mark)) text.remove_prefix(byte_order_mark.size());
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) take(TableLine{line, file + ":" + std::to_string(number)});
  }
}

}  // namespace detail

/// Labels are one byte, as the loss takes them.
inline constexpr std::size_t largest_class_count = 256;

/// The rows of a table of `file`'s bytes: label, tab, text, and optionally a tab and a group.
/// @throws lora::FormatError naming FILE:LINE; also for no rows, one class alone, or more than 256 classes
[[nodiscard]] inline LabelledTexts parse_labelled_texts(std::string_view bytes, const std::string& file) {
  LabelledTexts table;
  table.hash = fnv1a(bytes);
  std::map<std::string, std::uint8_t, std::less<>> labels;
  std::vector<std::string_view> label_names;
  detail::for_each_line(bytes, file, [&](const detail::TableLine& line) {
    const auto [label, text, group] = line.fields();
    if (labels.try_emplace(std::string(label), std::uint8_t{0}).second && labels.size() > largest_class_count) {
      line.refuse("at most " + std::to_string(largest_class_count) + " different labels", "one more");
    }
    label_names.push_back(label);
    table.rows.push_back({std::string(text), 0, std::string(group.empty() ? text : group)});
  });
  if (labels.size() < 2) {
    throw lora::FormatError("read_labelled_texts", file, "rows of at least 2 different labels",
                            std::to_string(table.rows.size()) + " rows of " + std::to_string(labels.size()));
  }
  for (auto& [name, index] : labels) {
    index = static_cast<std::uint8_t>(table.classes.size());
    table.classes.push_back(name);
  }
  for (std::size_t i = 0; i < table.rows.size(); ++i) table.rows[i].label = labels.find(label_names[i])->second;
  return table;
}

/// @throws as parse_labelled_texts; lora::IoError
[[nodiscard]] inline LabelledTexts read_labelled_texts(const std::filesystem::path& path) {
  const lora::MappedFile file(path);
  const auto bytes = file.bytes();
  return parse_labelled_texts({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

enum class Part : std::uint8_t { train, validation, test };

/// Seven tenths of all groups train, one validates, two test: a function of the group's name alone.
[[nodiscard]] constexpr Part part_of(std::string_view group) noexcept {
  const std::uint64_t tenth = detail::mixed(fnv1a(group)) % 10;
  return tenth < 7 ? Part::train : tenth == 7 ? Part::validation : Part::test;
}

/// Indices of rows.
struct Split {
  std::vector<Index> train;
  std::vector<Index> validation;
  std::vector<Index> test;
};

/// @throws lora::FormatError when a part has no rows
[[nodiscard]] inline Split split(const LabelledTexts& table) {
  Split parts;
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    const Part part = part_of(table.rows[i].group);
    auto& indices = part == Part::train ? parts.train : part == Part::validation ? parts.validation : parts.test;
    indices.push_back(static_cast<Index>(i));
  }
  if (parts.train.empty() || parts.validation.empty() || parts.test.empty()) {
    throw lora::FormatError("split", "table", "rows for training, validation and test (about 7 : 1 : 2)",
                            std::to_string(parts.train.size()) + ", " + std::to_string(parts.validation.size()) +
                                " and " + std::to_string(parts.test.size()));
  }
  return parts;
}

/// At most `count` of these rows, chosen by a hash of their texts, in the order they have; all when `count` is 0.
[[nodiscard]] inline std::vector<Index> sample(const LabelledTexts& table, std::vector<Index> rows, Index count) {
  if (count <= 0 || count >= static_cast<Index>(rows.size())) return rows;
  const auto key = [&](Index row) {
    return std::pair(detail::mixed(~fnv1a(table.rows[static_cast<std::size_t>(row)].text)), row);
  };
  std::nth_element(rows.begin(), rows.begin() + count, rows.end(), [&](Index a, Index b) { return key(a) < key(b); });
  rows.resize(static_cast<std::size_t>(count));
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace examples::sentence_encoder
