// SPDX-License-Identifier: MIT
// Encodings that put text and pictures inside one HTML file.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"

namespace examples {

/// Text for an HTML element or a quoted attribute.
[[nodiscard]] inline std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out.append("&amp;");
        break;
      case '<':
        out.append("&lt;");
        break;
      case '>':
        out.append("&gt;");
        break;
      case '"':
        out.append("&quot;");
        break;
      case '\'':
        out.append("&#39;");
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

/// Source: RFC 4648, section 4.
[[nodiscard]] inline std::string base64(std::string_view bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t present = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8U | (j < present ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (std::size_t j = 0; j < 4; ++j) {
      out.push_back(j <= present ? digits[group >> (18U - 6U * j) & 63U] : '=');
    }
  }
  return out;
}

namespace detail {

inline void append_big_endian(std::string& out, std::uint32_t value) {
  for (unsigned shift = 32; shift > 0; shift -= 8) out.push_back(static_cast<char>(value >> (shift - 8) & 0xFFU));
}

inline void append_png_chunk(std::string& png, std::string_view type, std::string_view data) {
  const std::string body = std::string(type) + std::string(data);
  append_big_endian(png, static_cast<std::uint32_t>(data.size()));
  png.append(body);
  append_big_endian(png, static_cast<std::uint32_t>(
                             crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()))));
}

/// @throws lora::Error
[[nodiscard]] inline std::string zlib_compressed(const std::string& data) {
  uLongf size = compressBound(static_cast<uLong>(data.size()));
  std::string out(size, '\0');
  const int code = compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(data.data()),
                             static_cast<uLong>(data.size()), Z_BEST_COMPRESSION);
  if (code != Z_OK) throw lora::Error("grey_png", "zlib", "success", "code " + std::to_string(code));
  out.resize(size);
  return out;
}

}  // namespace detail

/// A PNG file of 8-bit grey pixels, `width` to a row. Source: W3C, Portable Network Graphics, sections 5, 9 and 11.
[[nodiscard]] inline std::string grey_png(std::span<const std::uint8_t> pixels, std::size_t width) {
  const std::size_t height = width == 0 ? 0 : pixels.size() / width;
  if (height == 0 || height * width != pixels.size()) {
    throw lora::ShapeError("grey_png", "pixels", "whole rows of " + std::to_string(width),
                           std::to_string(pixels.size()));
  }
  std::string header;
  detail::append_big_endian(header, static_cast<std::uint32_t>(width));
  detail::append_big_endian(header, static_cast<std::uint32_t>(height));
  header.append({'\x08', '\x00', '\x00', '\x00', '\x00'});  // 8 bits, grey, deflate, adaptive filters, not interlaced
  std::string lines;
  for (std::size_t i = 0; i < height; ++i) {
    lines.push_back('\0');  // filter: none
    const auto row = pixels.subspan(i * width, width);
    lines.append(row.begin(), row.end());
  }
  std::string png = "\x89PNG\r\n\x1a\n";
  detail::append_png_chunk(png, "IHDR", header);
  detail::append_png_chunk(png, "IDAT", detail::zlib_compressed(lines));
  detail::append_png_chunk(png, "IEND", "");
  return png;
}

}  // namespace examples
