// SPDX-License-Identifier: MIT
#include "lora/io/text.hpp"

#include <gtest/gtest.h>
#include <string>
#include <string_view>
#include <vector>

namespace lora::text_test {
namespace {

using namespace std::string_view_literals;

// Encodes any number below 2^21 by the bit layout of UTF-8, whether or not it may be encoded.
std::string encoded(unsigned long point, int length) {
  if (length == 1) return {static_cast<char>(point)};
  std::string bytes;
  for (int i = 0; i < length - 1; ++i, point >>= 6)
    bytes.insert(bytes.begin(), static_cast<char>(0x80 | (point & 0x3F)));
  bytes.insert(bytes.begin(), static_cast<char>((0xF00UL >> length & 0xFF) | point));
  return bytes;
}

TEST(Utf8, AcceptsExactlyTheShortestFormOfEveryScalarValue) {
  const auto shortest = [](unsigned long point) {
    return point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  };
  for (const int length : {1, 2, 3, 4}) {
    const unsigned long end = length == 1 ? 0x80 : length == 2 ? 0x800 : length == 3 ? 0x10000 : 0x200000;
    for (unsigned long point = 0; point < end; ++point) {
      const bool scalar_value = point <= 0x10FFFF && (point < 0xD800 || point > 0xDFFF);
      const std::string bytes = encoded(point, length);
      ASSERT_EQ(utf8_prefix(bytes) == bytes.size(), scalar_value && shortest(point) == length)
          << point << " " << length;
    }
  }
}

TEST(Utf8, NamesTheFirstByteThatIsWrong) {
  EXPECT_EQ(utf8_prefix(""), 0U);
  EXPECT_EQ(utf8_prefix("a\0b"sv), 3U);
  EXPECT_EQ(utf8_prefix("ab\x80"), 2U);
  EXPECT_EQ(utf8_prefix("\xC3\xA9\xFF"), 2U);
  EXPECT_EQ(utf8_prefix("a\xE2\x82"), 1U);
  EXPECT_EQ(utf8_prefix("a\xF0\x9F\x98 "), 1U);
  EXPECT_EQ(utf8_prefix("\xF8\x88\x80\x80\x80"), 0U);
}

TEST(InQuotes, EscapesWhatATerminalShouldNotSee) {
  EXPECT_EQ(in_quotes("a.b"), "\"a.b\"");
  EXPECT_EQ(in_quotes("\x1B[2J\n\0\x7F"sv), R"("\x1b[2J\x0a\x00\x7f")");
  EXPECT_EQ(in_quotes("\"\\"), R"("\"\\")");
  EXPECT_EQ(in_quotes("\xC3\xA9\xFF"), "\"\xC3\xA9\\xff\"");
}

TEST(InQuotes, CutsLongTextBetweenCharacters) {
  EXPECT_EQ(in_quotes("abcdef", 6), "\"abcdef\"");
  EXPECT_EQ(in_quotes("abcdef", 3), "\"abc\"... (6 bytes)");
  EXPECT_EQ(in_quotes("\xC3\xA9\xC3\xA9", 1), "\"\xC3\xA9\"... (4 bytes)");
}

TEST(ShapeText, ListsTheExtents) {
  EXPECT_EQ(shape_text(std::vector<Index>{}), "[]");
  EXPECT_EQ(shape_text(std::vector<Index>{2, 0, 3}), "[2, 0, 3]");
}

TEST(NearestNames, RanksByCommonBeginningAndEnd) {
  const std::vector<std::string_view> names{"x", "model.q_proj.lora_B.weight", "model.k_proj.bias",
                                            "model.q_proj.lora_A.default.weight"};
  const auto nearest = nearest_names("model.q_proj.lora_A.weight", names, 2);
  ASSERT_EQ(nearest.size(), 2U);
  EXPECT_EQ(nearest[0], "model.q_proj.lora_A.default.weight");
  EXPECT_EQ(nearest[1], "model.q_proj.lora_B.weight");
}

TEST(NearestNames, TakesAnyLengths) {
  EXPECT_TRUE(nearest_names("a", {}, 3).empty());
  EXPECT_EQ(nearest_names("", {"a", ""}, 5).size(), 2U);
  // A beginning that is also the end counts once.
  EXPECT_EQ(nearest_names("aaaa", {"aa", "aaa"}, 1).front(), "aaa");
}

}  // namespace
}  // namespace lora::text_test
