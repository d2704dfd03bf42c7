// Python's own answers are the oracle: golden/regular_expressions.json, which the script beside it writes.
#include "lora/model/regular_expression.hpp"

#include <chrono>
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

bool full_match(const Expression& expression, std::string_view text) {
  return expression.matches(
      text, [](std::size_t place) { return place == 0; }, [&](std::size_t place) { return place == text.size(); });
}

bool full_match(std::string_view pattern, std::string_view text) {
  return full_match(Expression("test", "pattern", pattern), text);
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
  ASSERT_GT(table().at("matches").size(), 1000U);
  for (const auto& [pattern, answers] : table().at("matches").items()) {
    const Expression expression("test", "pattern", pattern);
    std::string ours;
    for (const std::string& text : texts) ours.push_back(full_match(expression, text) ? '1' : '0');
    EXPECT_EQ(ours, answers.get<std::string>()) << pattern;
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

TEST(RegularExpression, SizesAreBounded) {
  EXPECT_NE(refusal(std::string(Expression::max_pattern + 1, 'a')).find("at most 4096 bytes"), std::string::npos);
  for (const char* pattern :
       {"a{20001}", "a{0,99999999999999999999}", "a{99999999999,}", "((a{99}){99}){99}", "((a|b){0,200}){0,200}",
        "((((((((a{9}){9}){9}){9}){9}){9}){9}){9}){9}", "(((()()()a){99}){99}){99}", "((?=a{999})a){99}b{20000}"}) {
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

// Each takes some milliseconds; the bound leaves room for sanitizers on a busy machine.
TEST(RegularExpression, HostilePatternsTakeLinearTime) {
  const std::string text(1024, 'a');
  for (const char* pattern : {"(a*)*b", "(a|aa)+b", "(a|a)*b", "(.*)*(.*)*(.*)*b", "(a?){500}a{500}b", "(((a*)*)*)*b",
                              "(?:(?=(a*)*b)a|a)*b", "(?!(?!(?!(a*)*b)))(a*)*b", "((a{0,9}){0,9}){0,9}b"}) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(full_match(pattern, text)) << pattern;
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1)) << pattern;
  }
}

}  // namespace
}  // namespace lora
