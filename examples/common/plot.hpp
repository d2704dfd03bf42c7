// SPDX-License-Identifier: MIT
// Figures drawn by gnuplot, as SVG text.
#pragma once

#include <cstddef>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "common/child_process.hpp"

namespace examples {

/// Colours that stay apart for colour-blind readers, dark enough for lines on white.
/// Source: Okabe and Ito, "Color Universal Design" (2008), the yellow left out.
inline constexpr std::string_view blue = "#0072B2";
inline constexpr std::string_view orange = "#E69F00";
inline constexpr std::string_view green = "#009E73";
inline constexpr std::string_view vermilion = "#D55E00";
inline constexpr std::string_view purple = "#CC79A7";
inline constexpr std::string_view sky = "#56B4E9";
inline constexpr std::string_view grey = "#6B7280";

/// A figure, or why there is none.
struct Figure {
  std::string svg;
  std::string problem;  ///< empty when the figure was drawn
};

/// `text` as a double-quoted string of gnuplot, shown as it is (figures have no markup).
[[nodiscard]] inline std::string gnuplot_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '\n') {
      out.append("\\n");
      continue;
    }
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out + "\"";
}

/// A number as gnuplot reads it back exactly.
[[nodiscard]] inline std::string number_text(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

/// Rows of numbers under a name, "$loss" say, that the script's plot command refers to.
class DataBlock {
 public:
  explicit DataBlock(std::string_view name) : text_(std::string(name) + " << END\n") {}

  DataBlock& row(std::initializer_list<double> values) {
    for (const double value : values) text_.append(number_text(value)).push_back(' ');
    text_.push_back('\n');
    return *this;
  }
  DataBlock& row(std::string_view label, std::initializer_list<double> values) {
    text_.append(gnuplot_string(label)).push_back(' ');
    return row(values);
  }

  [[nodiscard]] std::string text() const { return text_ + "END\n"; }

 private:
  std::string text_;
};

/// Runs gnuplot on `commands`, after settings that all figures share. Sizes in pixels.
/// @throws Interrupted, lora::IoError
[[nodiscard]] inline Figure draw(std::string_view commands, int width = 760, int height = 400) {
  std::string script = "set terminal svg size " + std::to_string(width) + "," + std::to_string(height) +
                       " dynamic noenhanced font 'Helvetica,Arial,sans-serif,14' background '#ffffff'\n"
                       "set border 3 linecolor rgb '#9CA3AF'\n"
                       "set tics nomirror textcolor rgb '#374151'\n"
                       "set xlabel textcolor rgb '#374151'\n"
                       "set ylabel textcolor rgb '#374151'\n"
                       "set grid y linecolor rgb '#E5E7EB' linetype 1 linewidth 1\n"
                       "set key textcolor rgb '#1F2937'\n";
  script.append(commands).append("\n");
  FilterResult result = run_filter("gnuplot", script);
  if (!result.started) return {{}, "gnuplot is not installed (on Debian: apt-get install gnuplot-nox)"};
  const auto begin = result.output.find("<svg");
  if (!result.succeeded || begin == std::string::npos) return {{}, "gnuplot failed: " + result.error};
  return {result.output.substr(begin), {}};
}

}  // namespace examples
