// SPDX-License-Identifier: MIT
// A report in one HTML file that needs nothing else: style, tables and pictures are inside.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/encoding.hpp"
#include "common/plot.hpp"
#include "lora/io/atomic_file.hpp"

namespace examples {

/// Rows of cells, all text.
struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::size_t> emphasized = {};  ///< rows that stand out
  bool prose = false;  ///< cells are sentences, set left and wrapped; else all columns but the first are set right
};

/// Builds a page from top to bottom. Every text argument is plain text and is escaped.
class Report {
 public:
  Report(std::string_view title, std::string_view subtitle) : title_(escape_html(title)) {
    body_.append("<header><h1>").append(title_).append("</h1>");
    body_.append("<p class=\"subtitle\">").append(escape_html(subtitle)).append("</p></header>\n");
  }

  Report& heading(std::string_view text) { return element("h2", text); }
  Report& paragraph(std::string_view text) { return element("p", text); }
  Report& note(std::string_view text) {
    body_.append("<p class=\"note\">").append(escape_html(text)).append("</p>\n");
    return *this;
  }

  /// Large numbers with a caption each, in one row.
  Report& tiles(const std::vector<std::pair<std::string, std::string>>& numbers) {
    body_.append("<div class=\"tiles\">");
    for (const auto& [number, caption] : numbers) {
      body_.append("<div class=\"tile\"><b>").append(escape_html(number)).append("</b><span>");
      body_.append(escape_html(caption)).append("</span></div>");
    }
    body_.append("</div>\n");
    return *this;
  }

  Report& table(const Table& table) {
    body_.append("<div class=\"scroll\"><table").append(table.prose ? " class=\"prose\"" : "").append("><thead><tr>");
    for (const auto& cell : table.header) body_.append("<th>").append(escape_html(cell)).append("</th>");
    body_.append("</tr></thead><tbody>\n");
    for (std::size_t i = 0; i < table.rows.size(); ++i) {
      const bool stands_out = std::find(table.emphasized.begin(), table.emphasized.end(), i) != table.emphasized.end();
      body_.append(stands_out ? "<tr class=\"emphasized\">" : "<tr>");
      for (const auto& cell : table.rows[i]) body_.append("<td>").append(escape_html(cell)).append("</td>");
      body_.append("</tr>\n");
    }
    body_.append("</tbody></table></div>\n");
    return *this;
  }

  /// The figure, or a note that says why it is missing.
  Report& figure(const Figure& figure, std::string_view caption) {
    if (!figure.problem.empty()) return note(std::string(caption) + " (not drawn: " + figure.problem + ")");
    body_.append("<figure><img src=\"data:image/svg+xml;base64,").append(base64(figure.svg)).append("\" alt=\"");
    body_.append(escape_html(caption)).append("\"><figcaption>").append(escape_html(caption));
    body_.append("</figcaption></figure>\n");
    return *this;
  }

  /// One captioned row of grey pictures, `width` pixels wide each, drawn enlarged.
  Report& pictures(const std::vector<std::span<const std::uint8_t>>& images, std::size_t width,
                   const std::vector<std::string>& captions, std::string_view row_caption) {
    body_.append("<div class=\"strip\"><span class=\"strip-caption\">").append(escape_html(row_caption));
    body_.append("</span>");
    for (std::size_t i = 0; i < images.size(); ++i) {
      const std::string caption = i < captions.size() ? escape_html(captions[i]) : std::string();
      body_.append("<figure><img src=\"data:image/png;base64,").append(base64(grey_png(images[i], width)));
      body_.append("\" alt=\"").append(caption).append("\"><figcaption>").append(caption);
      body_.append("</figcaption></figure>");
    }
    body_.append("</div>\n");
    return *this;
  }

  [[nodiscard]] std::string html() const {
    return "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
           "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>" +
           title_ + "</title><style>" + std::string(style) + "</style></head><body><main>\n" + body_ +
           "</main></body></html>\n";
  }

  /// All of it or nothing. @throws lora::IoError
  void write(const std::filesystem::path& path) const {
    const std::string text = html();
    lora::AtomicFile file(path);
    file.write(std::as_bytes(std::span(text)));
    file.commit();
  }

 private:
  static constexpr std::string_view style = R"css(
:root { color-scheme: light; }
body { margin: 0; background: #F3F4F6; color: #1F2937; font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 940px; margin: 0 auto; background: #fff; padding: 40px 56px 64px; box-sizing: border-box; min-height: 100vh; }
header { border-bottom: 3px solid #0072B2; margin-bottom: 28px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 20px; margin: 40px 0 10px; }
p { margin: 8px 0 14px; }
.subtitle { color: #4B5563; font-size: 17px; margin-bottom: 18px; }
.note { background: #FFFBEB; border-left: 4px solid #E69F00; padding: 10px 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 20px 0; }
.tile { flex: 1 1 150px; background: #F9FAFB; border: 1px solid #E5E7EB; border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 25px; line-height: 1.2; color: #0B4F7A; font-variant-numeric: tabular-nums; }
.tile span { color: #4B5563; font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; margin: 12px 0 18px; }
th { text-align: right; font-weight: 600; color: #374151; border-bottom: 2px solid #9CA3AF; padding: 7px 10px; vertical-align: bottom; }
td { text-align: right; border-bottom: 1px solid #E5E7EB; padding: 7px 10px; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.prose th, table.prose td { text-align: left; white-space: normal; vertical-align: top; }
tr.emphasized td { background: #EFF6FB; font-weight: 600; }
figure { margin: 18px 0; }
figure > img { width: 100%; height: auto; display: block; }
figcaption { color: #4B5563; font-size: 14px; margin-top: 4px; }
.strip { display: flex; align-items: flex-start; gap: 10px; margin: 8px 0; }
.strip-caption { flex: 0 0 110px; align-self: center; color: #374151; font-size: 14px; }
.strip figure { margin: 0; flex: 1 1 0; text-align: center; }
.strip img { image-rendering: pixelated; border: 1px solid #D1D5DB; border-radius: 3px; box-sizing: border-box; }
.strip figcaption { font-size: 12px; min-height: 1em; }
@media (max-width: 700px) { main { padding: 24px 18px; } }
@media print { body { background: #fff; } figure, table { break-inside: avoid; } }
)css";

  Report& element(std::string_view tag, std::string_view text) {
    body_.append("<").append(tag).append(">").append(escape_html(text));
    body_.append("</").append(tag).append(">\n");
    return *this;
  }

  std::string title_;
  std::string body_;
};

}  // namespace examples
