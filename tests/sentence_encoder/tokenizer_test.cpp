// SPDX-License-Identifier: MIT
// The unigram tokenizer on small vocabularies, the oddities it shares with the package it follows, and broken files.
#include "sentence_encoder/tokenizer.hpp"

#include <cstdlib>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <string>
#include <utility>
#include <vector>

#include "examples/temporary_folder.hpp"

namespace examples::sentence_encoder::tokenizer_test {
namespace {

using examples::testing::TemporaryFolder;

// rapidcheck would seed itself from the clock. RC_PARAMS in the environment still chooses another seed.
[[maybe_unused]] const int seeded = ::setenv("RC_PARAMS", "seed=20210617", 0);

// Six reserved pieces, then these from id 6 on.
Tokenizer with_pieces(const std::vector<Piece>& pieces) {
  std::vector<Piece> all{{U"\ufffd", 0}, {U"<s>", 0}, {U"</s>", 0}, {U"x1", 0}, {U"x2", 0}, {U"x3", 0}};
  all.insert(all.end(), pieces.begin(), pieces.end());
  return Tokenizer(std::move(all));
}

const std::vector<Piece> letters{{U"\u2581", -2}, {U"a", -3}, {U"b", -3}, {U"c", -3}};

std::vector<Piece> letters_and(const std::vector<Piece>& more) {
  std::vector<Piece> all = letters;
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(Tokenizer, GivesNothingForAnEmptyText) { EXPECT_EQ(with_pieces(letters).encode(""), TokenIds{}); }

TEST(Tokenizer, PutsASpaceInFrontAndTakesTheMostLikelySplit) {
  EXPECT_EQ(with_pieces(letters).encode("ab"), (TokenIds{6, 7, 8}));
  EXPECT_EQ(with_pieces(letters_and({{U"ab", -5}})).encode("ab"), (TokenIds{6, 10}));
  EXPECT_EQ(with_pieces(letters_and({{U"ab", -7}})).encode("ab"), (TokenIds{6, 7, 8}));
  EXPECT_EQ(with_pieces(letters_and({{U"\u2581a", -4}, {U"bc", -1}})).encode("abc"), (TokenIds{10, 11}));
}

TEST(Tokenizer, KeepsEverySpace) {
  EXPECT_EQ(with_pieces(letters).encode(" a  b "), (TokenIds{6, 6, 7, 6, 6, 8, 6}));
  EXPECT_EQ(with_pieces(letters).encode("a\u00a0b"), with_pieces(letters).encode("a b"));
}

TEST(Tokenizer, MakesARunOfUnknownCharactersOne) {
  EXPECT_EQ(with_pieces(letters).encode("xyz"), (TokenIds{6, 0}));
  EXPECT_EQ(with_pieces(letters).encode("axybz"), (TokenIds{6, 7, 0, 8, 0}));
  EXPECT_EQ(with_pieces(letters).encode("a\t\n\U0001f600\U0001f600"
                                        "b"),
            (TokenIds{6, 7, 0, 8}));
  EXPECT_EQ(with_pieces(letters).encode("a\xFF\xFE"
                                        "b"),
            (TokenIds{6, 7, 0, 8}));
}

TEST(Tokenizer, NeverGivesReservedPieces) {
  EXPECT_EQ(with_pieces(letters).encode("x1"), (TokenIds{6, 0}));
  EXPECT_EQ(with_pieces(letters).encode("\ufffd"), (TokenIds{6, 0}));
}

TEST(Tokenizer, TakesTheLastOfEqualPieces) {
  EXPECT_EQ(with_pieces(letters_and({{U"ab", -1}, {U"ab", -2}})).encode("ab"), (TokenIds{6, 11}));
  EXPECT_EQ(with_pieces(letters_and({{U"ab", -1}, {U"ab", -9}})).encode("ab"), (TokenIds{6, 7, 8}));
}

TEST(Tokenizer, PrefersTheShorterLastPieceOfEqualScores) {
  EXPECT_EQ(with_pieces(letters_and({{U"ab", -6}})).encode("ab"), (TokenIds{6, 7, 8}));
}

// The package's search starts every position at 0 and takes that for reached.
TEST(Tokenizer, CountsAPositionThatNoPieceEndsAtAsReached) {
  const Tokenizer tokenizer = with_pieces({{U"\u2581", -2}, {U"abc", -50}, {U"b", -1}, {U"c", -1}});
  EXPECT_EQ(tokenizer.encode("abc"), (TokenIds{6, 0, 8, 9}));
}

TEST(Tokenizer, ReplacesABestScoreOfZeroByAWorseOne) {
  const Tokenizer tokenizer = with_pieces({{U"\u2581", 0}, {U"\u2581a", 0}, {U"a", -4}});
  EXPECT_EQ(tokenizer.encode("a"), (TokenIds{6, 8}));
}

TEST(Tokenizer, CountsPiecesBeyondTheBasicPlaneAsTwo) {
  const Tokenizer tokenizer = with_pieces(letters_and({{U"\U0001f600", -1}}));
  // Tracing back, the piece's two UTF-16 units take the letter before it along.
  EXPECT_EQ(tokenizer.encode("ab\U0001f600"), (TokenIds{6, 7, 10}));
}

RC_GTEST_PROP(Tokenizer, EndsAndStaysInTheVocabularyForAnyBytes, (const std::string& bytes)) {
  const Tokenizer tokenizer = with_pieces(letters_and({{U"abc", -4}, {U"\u2581b", -3}}));
  const TokenIds ids = tokenizer.encode(bytes);
  RC_ASSERT(ids.empty() == bytes.empty());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    RC_ASSERT(ids[i] >= 0 && ids[i] < tokenizer.vocabulary_size());
    if (i > 0) RC_ASSERT(ids[i] != 0 || ids[i - 1] != 0);
  }
}

TEST(Vocabulary, ReadsTextsAndScores) {
  const TemporaryFolder folder;
  const auto pieces =
      read_vocabulary(folder.write("vocab.json", "[[\"\xEF\xBF\xBD\",0],[\"\u2581the\",-3.5],[\":\",null]]"));
  ASSERT_EQ(pieces.size(), 3U);
  EXPECT_EQ(pieces[1].text, U"\u2581the");
  EXPECT_EQ(pieces[1].score, -3.5);
  EXPECT_EQ(pieces[2].score, 0.0);
}

TEST(Vocabulary, RefusesAFileThatIsNone) {
  const TemporaryFolder folder;
  for (const char* text : {"", "{", "{}", "[1]", "[[]]", "[[\"a\"]]", "[[\"a\", \"b\"]]", "[[1, 2]]", "[[\"\", 1]]",
                           "[[\"a\", 1, 2]]", "[[\"a\", 1]", "[[\"a\xFF\", 1]]"}) {
    const auto path = folder.write("vocab.json", text);
    EXPECT_THROW(static_cast<void>(read_vocabulary(path)), lora::FormatError) << text;
  }
  EXPECT_THROW(static_cast<void>(read_vocabulary(folder / "missing.json")), lora::IoError);
}

TEST(Vocabulary, NamesTheEntryThatIsWrong) {
  const TemporaryFolder folder;
  const auto path = folder.write("vocab.json", "[[\"a\", 1], [\"b\"]]");
  try {
    static_cast<void>(read_vocabulary(path));
    FAIL();
  } catch (const lora::FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("entry 1"), std::string::npos) << error.what();
  }
}

TEST(Vocabulary, RefusesNestedArraysHoweverDeep) {
  const TemporaryFolder folder;
  constexpr std::size_t depth = 200'000;
  const auto path = folder.write("vocab.json", std::string(depth, '[') + std::string(depth, ']'));
  EXPECT_THROW(static_cast<void>(read_vocabulary(path)), lora::FormatError);
}

}  // namespace
}  // namespace examples::sentence_encoder::tokenizer_test
