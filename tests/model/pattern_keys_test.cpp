// SPDX-License-Identifier: MIT
// Keys prepared for many names find what each key finds by itself.
#include "lora/model/pattern_keys.hpp"

#include <cstddef>
#include <gtest/gtest.h>
#include <optional>
#include <rapidcheck/gtest.h>
#include <string>
#include <vector>

namespace lora::testing::pattern_keys_test {
namespace {

using Keys = detail::BasicPatternKeys<char>;

std::optional<std::size_t> find(const std::vector<std::string>& keys, const std::string& name) {
  return Keys("test", "rank_pattern", keys).find(name);
}

// One key after the other, then by the module's own name.
std::optional<std::size_t> naive(const std::vector<std::string>& keys, const std::string& name) {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (detail::NamePattern("test", "rank_pattern", keys[i], detail::PatternPlace::name_end).matches(name)) return i;
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == name) return i;
  }
  return std::nullopt;
}

TEST(PatternKeys, TheFirstThatMatchesIsFound) {
  EXPECT_EQ(find({"v", "0.q", "q"}, "layers.0.q"), 1U);
  EXPECT_EQ(find({"v", "q", "0.q"}, "layers.0.q"), 1U);
  EXPECT_EQ(find({"q", "q"}, "q"), 0U);
  EXPECT_EQ(find({"v", ".*q", "q"}, "layers.0.q"), 1U);
  EXPECT_EQ(find({"v", "q", ".*q"}, "layers.0.q"), 1U);
  EXPECT_EQ(find({"v"}, "layers.0.q"), std::nullopt);
  EXPECT_EQ(find({"a+b"}, "a+b"), 0U);
  EXPECT_EQ(find({}, "q"), std::nullopt);
}

RC_GTEST_PROP(PatternKeys, FindWhatOneKeyAfterTheOtherFinds, ()) {
  const auto texts = [](std::vector<std::string> parts) {
    return rc::gen::map(rc::gen::resize(6, rc::gen::container<std::vector<std::string>>(rc::gen::elementOf(parts))),
                        [](const std::vector<std::string>& drawn) {
                          std::string text;
                          for (const std::string& part : drawn) text += part;
                          return text;
                        });
  };
  const auto key = texts({"a", "1", ".", ".", "\u00e9", "\xa9", "\n", "a+", "[1.]"});
  const auto keys = *rc::gen::resize(12, rc::gen::container<std::vector<std::string>>(key));
  const auto name = *texts({"a", "1", ".", "\u00e9", "\xa9", "\n", "a+"});
  RC_ASSERT(find(keys, name) == naive(keys, name));
}

}  // namespace
}  // namespace lora::testing::pattern_keys_test
