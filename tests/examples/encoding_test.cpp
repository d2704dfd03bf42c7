// SPDX-License-Identifier: MIT
// What goes into a page comes out of it again.
#include "common/encoding.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace encoding_test {
namespace {

using examples::base64;
using examples::escape_html;
using examples::grey_png;

TEST(EscapeHtml, ReplacesWhatHtmlReads) {
  EXPECT_EQ(escape_html("<a href=\"x\">'&'</a>"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
  EXPECT_EQ(escape_html("&amp;"), "&amp;amp;");
}

TEST(EscapeHtml, LeavesOtherTextAlone) { EXPECT_EQ(escape_html("r = 8, ‖ΔW‖ 50 %"), "r = 8, ‖ΔW‖ 50 %"); }

// RFC 4648, section 10.
TEST(Base64, GivesTheVectorsOfTheStandard) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foob"), "Zm9vYg==");
  EXPECT_EQ(base64("fooba"), "Zm9vYmE=");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
}

TEST(Base64, TakesBytesOfAnyValue) { EXPECT_EQ(base64("\xFF\xFE\xFD"), "//79"); }

std::uint32_t big_endian(const std::string& bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8U | static_cast<unsigned char>(bytes.at(at + i));
  return value;
}

struct Chunk {
  std::string type;
  std::string data;
};

/// The chunks of a PNG whose checksums are right.
std::vector<Chunk> chunks_of(const std::string& png) {
  std::vector<Chunk> chunks;
  for (std::size_t at = 8; at < png.size();) {
    const std::size_t size = big_endian(png, at);
    const std::string body = png.substr(at + 4, 4 + size);
    EXPECT_EQ(big_endian(png, at + 8 + size),
              crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size())));
    chunks.push_back({body.substr(0, 4), body.substr(4)});
    at += 12 + size;
  }
  return chunks;
}

TEST(GreyPng, HoldsThePixelsRowByRow) {
  const std::string png = grey_png(std::vector<std::uint8_t>{1, 2, 3, 250, 251, 252}, 3);
  EXPECT_EQ(png.substr(0, 8), "\x89PNG\r\n\x1a\n");
  const auto chunks = chunks_of(png);
  ASSERT_EQ(chunks.size(), 3U);
  EXPECT_EQ(chunks[0].type, "IHDR");
  EXPECT_EQ(big_endian(chunks[0].data, 0), 3U);
  EXPECT_EQ(big_endian(chunks[0].data, 4), 2U);
  EXPECT_EQ(chunks[1].type, "IDAT");
  std::string lines(8, '\0');
  uLongf size = lines.size();
  ASSERT_EQ(
      uncompress(reinterpret_cast<Bytef*>(lines.data()), &size, reinterpret_cast<const Bytef*>(chunks[1].data.data()),
                 static_cast<uLong>(chunks[1].data.size())),
      Z_OK);
  EXPECT_EQ(lines, std::string("\0\x01\x02\x03\0\xFA\xFB\xFC", 8));
  EXPECT_EQ(chunks[2].type, "IEND");
}

TEST(GreyPng, RefusesAnythingButWholeRows) {
  EXPECT_THROW(static_cast<void>(grey_png(std::vector<std::uint8_t>(5), 3)), lora::ShapeError);
  EXPECT_THROW(static_cast<void>(grey_png(std::vector<std::uint8_t>(), 3)), lora::ShapeError);
  EXPECT_THROW(static_cast<void>(grey_png(std::vector<std::uint8_t>(5), 0)), lora::ShapeError);
}

}  // namespace
}  // namespace encoding_test
