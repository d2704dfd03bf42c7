// SPDX-License-Identifier: MIT
// Text in columns.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "print.hpp"

namespace lora::tools {

/// Rows of cells, printed with every column as wide as its widest cell; columns whose cells start with a digit or sign
/// are aligned to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}

  void add(std::vector<std::string> row) {
    for (auto& cell : row) cell = printable(cell);
    rows_.push_back(std::move(row));
  }

  void print() const {
    std::vector<std::size_t> widths(rows_.front().size());
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::string padding(widths[i] - row[i].size(), ' ');
        line += right_aligned(i) ? padding + row[i] : row[i] + padding;
        line += "  ";
      }
      line.erase(line.find_last_not_of(' ') + 1);
      say(line);
    }
  }

 private:
  [[nodiscard]] bool right_aligned(std::size_t column) const {
    if (rows_.size() < 2) return false;
    const std::string& cell = rows_[1][column];
    return !cell.empty() && (std::isdigit(static_cast<unsigned char>(cell[0])) != 0 || cell[0] == '-');
  }

  std::vector<std::vector<std::string>> rows_;
};

/// "3.14e-05", "12.5".
[[nodiscard]] inline std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

/// "1.2 MB".
[[nodiscard]] inline std::string size_text(std::uintmax_t bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit < 4; ++unit) value /= 1000;
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

}  // namespace lora::tools
