// SPDX-License-Identifier: MIT
// Tables and numbers for people, as plain text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "common/report.hpp"

namespace examples {

/// value with `digits` decimals.
[[nodiscard]] inline std::string fixed_text(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

/// "86.31 %" for 0.8631.
[[nodiscard]] inline std::string percent_text(double share) { return fixed_text(share * 100, 2) + " %"; }

/// "1,234,567"
[[nodiscard]] inline std::string grouped_text(long long value) {
  const std::string digits = std::to_string(value);
  const std::size_t sign = value < 0 ? 1 : 0;
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > sign && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

/// The table with aligned columns and a rule below the header.
[[nodiscard]] inline std::string plain_text(const Table& table) {
  std::vector<std::size_t> widths;
  for (const auto& cell : table.header) widths.push_back(cell.size());
  for (const auto& row : table.rows) {
    for (std::size_t j = 0; j < row.size() && j < widths.size(); ++j) widths[j] = std::max(widths[j], row[j].size());
  }
  std::string text;
  const auto add_row = [&](const std::vector<std::string>& row) {
    for (std::size_t j = 0; j < row.size(); ++j) {
      const std::string padding(widths.at(j) - row[j].size(), ' ');
      text.append(j == 0 ? "" : "  ").append(j == 0 ? row[j] + padding : padding + row[j]);
    }
    text.push_back('\n');
  };
  add_row(table.header);
  for (std::size_t j = 0; j < widths.size(); ++j) text.append(j == 0 ? "" : "  ").append(widths[j], '-');
  text.push_back('\n');
  for (const auto& row : table.rows) add_row(row);
  return text;
}

}  // namespace examples
