// SPDX-License-Identifier: MIT
// NFKC: the examples of Unicode Standard Annex 15 and their kind, and what happens to bytes that are no UTF-8.
#include "sentence_encoder/normalization.hpp"

#include <gtest/gtest.h>
#include <string>

namespace examples::sentence_encoder::normalization_test {
namespace {

using namespace std::string_literals;

TEST(Normalization, LeavesAsciiAlone) {
  EXPECT_EQ(nfkc("plain text, 123\t\n"), U"plain text, 123\t\n");
  EXPECT_EQ(nfkc(""), U"");
}

TEST(Normalization, ComposesLettersAndMarks) {
  EXPECT_EQ(nfkc("e\u0301"), U"\u00e9");
  EXPECT_EQ(nfkc("A\u030a \u212b"), U"\u00c5 \u00c5");
  EXPECT_EQ(nfkc("q\u0307\u0323"), U"q\u0323\u0307");
  EXPECT_EQ(nfkc("\u1100\u1161\u11a8"), U"\uac01");
}

TEST(Normalization, ReplacesCompatibilityCharacters) {
  EXPECT_EQ(nfkc("\ufb01ne"), U"fine");
  EXPECT_EQ(nfkc("x\u00b2"), U"x2");
  EXPECT_EQ(nfkc("\uff21\uff22\uff23"), U"ABC");
  EXPECT_EQ(nfkc("a\u00a0b\u3000c\u2003d"), U"a b c d");
  EXPECT_EQ(nfkc("\u00bd"), U"1\u20442");
  EXPECT_EQ(nfkc("\U0001d400"), U"A");
  EXPECT_EQ(nfkc("\ufdfa"),
            U"\u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644\u064a\u0647 \u0648\u0633\u0644\u0645");
}

TEST(Normalization, KeepsEmojiAndControlCharacters) {
  EXPECT_EQ(nfkc("\U0001f600\u200d\ufe0f"), U"\U0001f600\u200d\ufe0f");
  EXPECT_EQ(nfkc("a\0b"s), U"a\0b"s);
  EXPECT_EQ(nfkc("\u00ad\ufeff"), U"\u00ad\ufeff");
}

TEST(Normalization, ReplacesBytesThatAreNoUtf8) {
  EXPECT_EQ(well_formed("a\xFF\xFE z"), "a\xEF\xBF\xBD\xEF\xBF\xBD z");
  EXPECT_EQ(nfkc("\xC3"), U"\ufffd");
  EXPECT_EQ(nfkc("\xC0\x80"), U"\ufffd\ufffd");                        // overlong
  EXPECT_EQ(nfkc("\xED\xA0\x80"), U"\ufffd\ufffd\ufffd");              // a surrogate
  EXPECT_EQ(nfkc("\xF4\x90\x80\x80z"), U"\ufffd\ufffd\ufffd\ufffdz");  // beyond U+10FFFF
  EXPECT_EQ(nfkc("\u4e2d\xE4\xB8"), U"\u4e2d\ufffd\ufffd");            // cut off
}

TEST(Normalization, DecodesWellFormedTextAlone) {
  EXPECT_EQ(code_points("\u2581a\U0001f600"), U"\u2581a\U0001f600");
  EXPECT_THROW(static_cast<void>(code_points("a\xFF")), lora::FormatError);
}

}  // namespace
}  // namespace examples::sentence_encoder::normalization_test
