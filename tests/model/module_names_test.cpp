// SPDX-License-Identifier: MIT
// Names against lists, expressions and layer indices; the oracle for their meaning is PEFT's own code, whose answers
// are in golden/module_matching.json (see model_config_test.cpp).
#include "lora/model/module_names.hpp"

#include <algorithm>
#include <cstdint>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <string>
#include <vector>

#include "support/tells_apart.hpp"

namespace lora::testing::module_names_test {
namespace {

using detail::LayerFilter;
using detail::NamePattern;
using detail::PatternPlace;
using detail::SelectorMatcher;

// What a pattern matches at a place.
auto matcher(PatternPlace place, const std::string& pattern) {
  return [compiled = NamePattern("test", "option", pattern, place)](std::string_view name) {
    return compiled.matches(name);
  };
}
auto whole(const std::string& pattern) { return matcher(PatternPlace::whole_name, pattern); }
auto end(const std::string& pattern) { return matcher(PatternPlace::name_end, pattern); }
auto part(const std::string& pattern) { return matcher(PatternPlace::name_part, pattern); }

std::string error_of(const std::string& pattern) {
  try {
    NamePattern("operation", "target_modules", pattern, PatternPlace::whole_name);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModuleSelector, AListOfNamesIsWhatBracesMake) {
  const ModuleSelector selector{"q_proj", "v_proj"};
  EXPECT_EQ(selector.kind(), ModuleSelector::Kind::names);
  EXPECT_EQ(selector.names(), (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(selector, ModuleSelector::listed({"q_proj", "v_proj"}));
  EXPECT_NE(selector, ModuleSelector::listed({"q_proj"}));
  EXPECT_NE(ModuleSelector::matching("q_proj"), ModuleSelector::listed({"q_proj"}));
}

TEST(ModuleSelector, IsEmptyWhenNoNameCanMatch) {
  EXPECT_TRUE(ModuleSelector().empty());
  EXPECT_TRUE(ModuleSelector::listed({}).empty());
  EXPECT_TRUE(ModuleSelector::matching("").empty());
  EXPECT_FALSE(ModuleSelector::all_linear().empty());
  EXPECT_FALSE(ModuleSelector{"q"}.empty());
}

TEST(SelectorMatcher, AListedNameMeansItselfAndWhatEndsInItBehindADot) {
  const auto meant_by = [](const char* listed) {
    return [matcher = SelectorMatcher("test", "target_modules", {listed})](const auto& module) {
      return matcher.matches(module, true);
    };
  };
  tells_apart(meant_by("q_proj"), {"q_proj", "layers.0.q_proj"}, {"xq_proj", "q_proj.x"});
  tells_apart(meant_by("0.q_proj"), {"layers.0.q_proj"}, {"layers.10.q_proj"});
  tells_apart(meant_by("proj"), {}, {"layers.0.q_proj"});
  tells_apart(meant_by("layers.0"), {}, {"layers.0.q_proj"});
}

// PEFT's rule: the name itself, or a name that ends in a dot and it.
bool means_module(const std::string& listed, const std::string& module) {
  return module == listed || module.ends_with("." + listed);
}

rc::Gen<std::string> short_text(const std::string& characters) {
  return rc::gen::resize(8, rc::gen::container<std::string>(rc::gen::elementOf(characters)));
}
rc::Gen<std::vector<std::string>> short_texts(const std::string& characters) {
  return rc::gen::resize(12, rc::gen::container<std::vector<std::string>>(short_text(characters)));
}

RC_GTEST_PROP(SelectorMatcher, AgreesWithEachListedNameAlone, ()) {
  const auto listed = *short_texts("ab.");
  const SelectorMatcher matcher("test", "target_modules", ModuleSelector::listed(listed));
  const auto name = *short_text("ab.");
  const auto means = [&](const std::string& target) { return means_module(target, name); };
  RC_ASSERT(matcher.matches(name, true) == std::any_of(listed.begin(), listed.end(), means));
  RC_ASSERT(matcher.has(name, {}) == (std::find(listed.begin(), listed.end(), name) != listed.end()));
}

TEST(SelectorMatcher, AllLinearAsksTheCaller) {
  const SelectorMatcher matcher("test", "target_modules", ModuleSelector::all_linear());
  EXPECT_TRUE(matcher.matches("anything", true));
  EXPECT_FALSE(matcher.matches("anything", false));
}

TEST(NamePattern, TheWholeNameMustMatch) {
  tells_apart(whole("model\\.layers\\.[01]\\.(q_proj|mlp\\.down)"), {"model.layers.1.mlp.down"},
              {"model.layers.2.mlp.down"});
  tells_apart(whole("q|v"), {"q", "v"}, {"q.v"});
  tells_apart(whole(".*layers\\.(?!0\\.).*"), {"model.layers.1.q"}, {"model.layers.0.q"});
}

TEST(NamePattern, ADotWithoutOtherSpecialCharactersIsAnyCharacter) {
  for (const char* pattern : {"a.c", "(?:a.c)"}) {
    tells_apart(whole(pattern), {"a.c", "abc"}, {"a\nc", "ac"});
    tells_apart(end(pattern), {"x.abc"}, {"xabc"});
  }
}

TEST(NamePattern, ADotIsACharacterOfAnyLength) {
  for (const std::string pattern : {"a.c", "(?:a.c)"}) {
    EXPECT_TRUE(whole(pattern)("a\u00e9c")) << pattern;
    EXPECT_TRUE(end(pattern)("x.a\u6f22c")) << pattern;
    EXPECT_TRUE(part(pattern)("x.a\U0001f600c.y")) << pattern;
    EXPECT_FALSE(whole(pattern)("a\u00e9\u00e9c")) << pattern;
  }
}

// Python's \\w has letters of every alphabet.
TEST(NamePattern, CategoriesAreRefusedForNamesBeyondAscii) {
  EXPECT_TRUE(whole("\\w+")("abc"));
  EXPECT_THROW(static_cast<void>(whole("\\w+")("\u00e9")), ConfigError);
  EXPECT_THROW(static_cast<void>(end("\\bx")("\u00e9.x")), ConfigError);
  EXPECT_TRUE(whole("[^a]+x?")("\u00e9"));
}

TEST(NamePattern, AnEndBeginsAtTheStartOrBehindADot) {
  tells_apart(end("q_proj"), {"q_proj", "layers.0.q_proj"}, {"xq_proj", "q_proj.x"});
  tells_apart(end("^layers.0.q_proj"), {"layers.0.q_proj"}, {"model.layers.0.q_proj"});
  tells_apart(end("q|v"), {"a.v"}, {"av"});
}

// PEFT's prefix (.*\\.)? does not match a line feed, whether the key is an expression or plain text.
TEST(NamePattern, NoLineFeedStandsBeforeOrAfterAPart) {
  for (const char* pattern : {"q", "(?:q)"}) {
    tells_apart(end(pattern), {"a.q"}, {"a\nb.q", "\n.q", "a\n.q"});
    tells_apart(part(pattern), {"a.q.b"}, {"a\nb.q", "q.a\nb", "a.q.\n"});
  }
}

TEST(NamePattern, APartIsARunOfWholeSegments) {
  for (const char* pattern : {"head", "(?:head)"}) {
    tells_apart(part(pattern), {"head", "model.head", "model.head.dense"}, {"model.lm_head", "heads"});
  }
}

TEST(NamePattern, WhatIsNoExpressionIsNamedInTheError) {
  for (const std::string pattern : {"(", "[a", "a)", "*a", "(?P<layer>x", "(?<=x)y", "(a)\\1", "x\\", "a)|(b"}) {
    const std::string text = error_of(pattern);
    EXPECT_NE(text.find("operation: target_modules: expected a regular expression"), std::string::npos) << text;
    EXPECT_NE(text.find("\"" + pattern + "\""), std::string::npos) << text;
  }
}

TEST(NamePattern, AbsurdLengthsAreRefused) {
  EXPECT_NE(error_of(std::string(NamePattern::max_pattern + 1, '*')).find("4097 bytes"), std::string::npos);
  EXPECT_NE(error_of("((a{99}){99}){99}").find("20000"), std::string::npos);
  EXPECT_NE(error_of("a{0,99999999999999999999999}").find("20000"), std::string::npos);
  EXPECT_EQ(error_of("(?:layers|blocks)\\.\\d{1,2}\\..*"), "no error");
  EXPECT_EQ(error_of(std::string(5000, 'x')), "no error") << "plain text is compared, not compiled";
  const std::string long_name(NamePattern::max_name + 1, 'x');
  EXPECT_THROW(static_cast<void>(whole("x*")(long_name)), ConfigError);
  EXPECT_FALSE(whole("x")(long_name));
}

TEST(NamePattern, NestingUpToTheLimitCompilesAndMatches) {
  const std::size_t depth = NamePattern::max_pattern / 2 - 1;
  const std::string nested = std::string(depth, '(') + "a" + std::string(depth, ')');
  EXPECT_TRUE(whole(nested)("a"));
  const std::string empties = "(((){9}){9}){9}a";
  EXPECT_TRUE(whole(empties)("a"));
  std::string alternatives = "a";
  while (alternatives.size() + 2 < NamePattern::max_pattern) alternatives += "|a";
  EXPECT_TRUE(whole(alternatives)("a"));
}

// Each spends less than MatchBudget has; with backtracking these take longer than anyone waits.
TEST(NamePattern, NoExpressionTakesExponentialTime) {
  const std::string name(NamePattern::max_name, 'a');
  EXPECT_FALSE(whole("(a*)*b")(name));
  EXPECT_FALSE(whole("(a|aa)+b")(name));
  EXPECT_FALSE(whole("(?:a|a|a|a)*(?:a|a)*(?:a|a)*b")(name));
  EXPECT_FALSE(whole("((a?){99}){20}b")(name));
  EXPECT_FALSE(whole("(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)b")(name));
  EXPECT_FALSE(whole("(?:(?=(a*)*b)a|a)*b")(name));
  EXPECT_FALSE(end("(a|b|.)*(?!a*$)")(name.substr(8) + ".a.a.a.a"));
}

TEST(MatchBudget, CheapPatternsAreAskedForEverAndDearOnesAreNot) {
  const std::string name(100, 'a');
  const detail::MatchBudget cheap;
  for (std::uint64_t spent = 0; spent < std::uint64_t{1} << 30; spent += 6400) {
    cheap.grant(name);
    cheap.spend(6400);
  }
  const detail::MatchBudget dear;
  std::uint64_t spent = 0;
  EXPECT_THROW(
      for (;; spent += 1000000) {
        dear.grant(name);
        dear.spend(1000000);
      },
      ConfigError);
  EXPECT_LT(spent, std::uint64_t{1} << 28);
}

std::string copies(std::size_t count, const std::string& text) {
  std::string all;
  for (std::size_t i = 0; i < count; ++i) all += text;
  return all;
}

// Text was charged by the name: a configuration of a few thousand bytes took minutes.
TEST(MatchBudget, TextPaysForTheBytesItCompares) {
  const auto almost_spent = [] {
    detail::MatchBudget budget;
    budget.spend((std::uint64_t{1} << 27) - 50000);
    return budget;
  };
  const NamePattern dots("test", "modules_to_save", copies(1001, "."), PatternPlace::name_part);
  EXPECT_THROW(static_cast<void>(dots.matches(copies(500, "a."), almost_spent())), ConfigError);
  const LayerFilter filter("test", {1}, {"b" + copies(200, ".")});
  EXPECT_THROW(static_cast<void>(filter.passes(copies(100, "1.") + "q", almost_spent())), ConfigError);
  const std::string name = copies(2000, "a.") + "a";
  const SelectorMatcher listed("test", "target_modules", {name + "b"});
  EXPECT_THROW(static_cast<void>(listed.matches(name, true, almost_spent())), ConfigError);
}

// The names that a filter lets pass.
auto passing(const std::vector<Index>& layers, const std::vector<std::string>& patterns) {
  return [filter = LayerFilter("test", layers, patterns)](const std::string& name) { return filter.passes(name); };
}

TEST(LayerFilter, WithoutLayersEverythingPasses) {
  tells_apart(passing({}, {}), {"q_proj", "model.layers.7.q_proj"}, {});
}

TEST(LayerFilter, TheFirstNumberBehindTwoSegmentsAndBeforeOneIsTheLayer) {
  tells_apart(passing({1}, {}), {"model.layers.1.q_proj", "model.layers.1.experts.0.w"},
              {"model.layers.0.experts.1.w", "layers.1.q_proj", "model.layers.1", "model.layers.x.q_proj", "q_proj"});
}

TEST(LayerFilter, APatternStandsBeforeTheNumberAndNotFirst) {
  tells_apart(passing({1}, {"h", "block"}), {"transformer.h.1.attn", "encoder.block.1.layer.0.q"},
              {"encoder.block.0.layer.1.q", "h.1.attn", "model.layers.1.attn"});
}

TEST(LayerFilter, NumbersBeyondIndexAreNoLayer) {
  tells_apart(passing({0}, {}), {}, {"model.layers.99999999999999999999.q"});
}

TEST(QuotedNames, AreCutAndEscaped) {
  EXPECT_EQ(detail::quoted_name("a\nb"), "\"a\\x0ab\"");
  EXPECT_EQ(detail::quoted_name(std::string(200, 'a')), "\"" + std::string(160, 'a') + "...\"");
  EXPECT_EQ(detail::quoted_names(std::vector<std::string>{"a", "b", "c"}, 2), "\"a\", \"b\", ... (3)");
}

}  // namespace
}  // namespace lora::testing::module_names_test
