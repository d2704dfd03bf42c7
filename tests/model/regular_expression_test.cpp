// SPDX-License-Identifier: MIT
// Python's own answers are the oracle: golden/regular_expressions.json, which the script beside it writes.
#include "lora/model/regular_expression.hpp"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lora {
namespace {

using Expression = detail::RegularExpression<char>;

const nlohmann::json& table() {
  static const nlohmann::json parsed = [] {
    std::ifstream file(std::filesystem::path(LORA_GOLDEN_DIR) / "regular_expressions.json");
    return nlohmann::json::parse(file);
  }();
  return parsed;
}

bool full_match(const Expression& expression, std::string_view text, std::uint64_t& steps) {
  return expression.matches(
      text, [](std::size_t place) { return place == 0; }, [&](std::size_t place) { return place == text.size(); },
      steps);
}

bool full_match(const Expression& expression, std::string_view text) {
  std::uint64_t steps = 0;
  return full_match(expression, text, steps);
}

bool full_match(std::string_view pattern, std::string_view text) {
  return full_match(Expression("test", "pattern", pattern), text);
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

std::string refusal(std::string_view pattern) {
  try {
    Expression("operation", "option", pattern);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(RegularExpression, MatchesWhatPythonMatches) {
  const auto texts = table().at("texts").get<std::vector<std::string>>();
  ASSERT_GT(table().at("matches").size(), 2500U);
  for (const auto& [pattern, answers] : table().at("matches").items()) {
    const Expression expression("test", "pattern", pattern);
    std::string python = answers.get<std::string>();
    std::string ours;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (expression.needs_ascii() && !is_ascii(texts[i])) python[i] = '-';
      ours.push_back(python[i] == '-' ? '-' : full_match(expression, texts[i]) ? '1' : '0');
    }
    EXPECT_EQ(ours, python) << pattern;
  }
}

TEST(RegularExpression, RefusesWhatPythonRefuses) {
  for (const std::string pattern : table().at("errors")) EXPECT_NE(refusal(pattern), "accepted") << pattern;
}

TEST(RegularExpression, RefusesByNameWhatItDoesNotSupport) {
  for (const std::string pattern : table().at("refused")) {
    const std::string text = refusal(pattern);
    EXPECT_TRUE(text.find("not supported") != std::string::npos || text.find("no meaning here") != std::string::npos)
        << pattern << ": " << text;
  }
  EXPECT_EQ(refusal("(a)\\1"),
            "operation: option: expected a regular expression of Python's that this library knows, got \"(a)\\1\" with "
            "a back-reference, which is not supported");
}

TEST(RegularExpression, ACharacterBeyondAsciiIsRepeatedWhole) {
  EXPECT_TRUE(full_match("\u00e9{2}", "\u00e9\u00e9"));
  EXPECT_TRUE(full_match("\\\u00e9?a", "\u00e9a"));
  EXPECT_FALSE(full_match("\u00e9*", "\u00e9\xa9"));
}

TEST(RegularExpression, ADotIsOneCharacterBeyondAsciiToo) {
  EXPECT_TRUE(full_match(".", "\u00e9"));
  EXPECT_TRUE(full_match("[^a].", "\U0001f600\u6f22"));
  EXPECT_FALSE(full_match("..", "\u00e9"));
  for (const char* pattern : {"\\w", "[\\d]", "\\S", "a\\b", "(?!\\B)a"}) {
    EXPECT_TRUE(Expression("test", "pattern", pattern).needs_ascii()) << pattern;
  }
  EXPECT_FALSE(Expression("test", "pattern", "^[a-z].*$").needs_ascii());
}

TEST(RegularExpression, SizesAreBounded) {
  EXPECT_NE(refusal(std::string(Expression::max_pattern + 1, 'a')).find("at most 4096 bytes"), std::string::npos);
  for (const char* pattern : {"a{20001}", "a{0,99999999999999999999}", "a{99999999999,}", "((a{99}){99}){99}",
                              "((a|b){0,200}){0,200}", "((((((((a{9}){9}){9}){9}){9}){9}){9}){9}){9}",
                              "(((()()()a){99}){99}){99}", "((?=a{999})a){99}b{20000}", "a{,5619}b{,5619}"}) {
    EXPECT_NE(refusal(pattern).find("20000 states"), std::string::npos) << pattern;
  }
  EXPECT_EQ(refusal("(((((((((){999}){999}){999}){999}){999}){999}){999}){999}){999}"), "accepted");
  EXPECT_EQ(refusal("(?:(?:(?:(?=a){999}){999}){999}){999}"), "accepted");
}

TEST(RegularExpression, NestingIsBoundedByTheLengthAlone) {
  const auto nested = [](const std::string& open, const std::string& close) {
    const std::size_t depth = (Expression::max_pattern - 1) / (open.size() + close.size());
    std::string pattern;
    for (std::size_t i = 0; i < depth; ++i) pattern += open;
    pattern += "a";
    for (std::size_t i = 0; i < depth; ++i) pattern += close;
    return pattern;
  };
  EXPECT_TRUE(full_match(nested("(", ")"), "a"));
  EXPECT_TRUE(full_match(nested("(a?", ")"), "aaa"));
  EXPECT_TRUE(full_match(nested("(", ")*"), "aaa"));
  EXPECT_TRUE(full_match(nested("(b|", ")"), "a"));
  EXPECT_TRUE(full_match(nested("(?=", ")") + "a", "a"));
}

TEST(RegularExpression, HostilePatternsTakeLinearTime) {
  for (const char* pattern : {"(a*)*b", "(a|aa)+b", "(a|a)*b", "(.*)*(.*)*(.*)*b", "(a?){500}a{500}b", "(((a*)*)*)*b",
                              "(?:(?=(a*)*b)a|a)*b", "(?!(?!(?!(a*)*b)))(a*)*b", "((a{0,9}){0,9}){0,9}b"}) {
    const Expression expression("test", "pattern", pattern);
    for (const std::size_t length : {64U, 1024U}) {
      std::uint64_t steps = 0;
      EXPECT_FALSE(full_match(expression, std::string(length, 'a'), steps)) << pattern;
      EXPECT_LE(steps, (length + 2) * 3 * expression.states()) << pattern;
    }
  }
}

}  // namespace
}  // namespace lora
