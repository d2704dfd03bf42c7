// SPDX-License-Identifier: MIT
#include "common/json_text.hpp"

#include <cstddef>
#include <gtest/gtest.h>
#include <string>

namespace examples::json_text_test {
namespace {

std::string nested(std::size_t depth, const std::string& open, const std::string& close) {
  std::string text;
  for (std::size_t i = 0; i < depth; ++i) text += open;
  text += "1";
  for (std::size_t i = 0; i < depth; ++i) text += close;
  return text;
}

TEST(JsonText, IsReadUpTo64Levels) {
  EXPECT_TRUE(parse_json(nested(64, "[", "]")).is_array());
  EXPECT_TRUE(parse_json(nested(65, "[", "]")).is_discarded());
  EXPECT_TRUE(parse_json(nested(64, "{\"a\":", "}")).is_object());
  EXPECT_TRUE(parse_json(nested(65, "{\"a\":", "}")).is_discarded());
  EXPECT_TRUE(parse_json(nested(1'000'000, "[", "]")).is_discarded());
}

TEST(JsonText, DoesNotCountWhatIsClosedOrInAString) {
  std::string list = "[[]";
  for (int i = 0; i < 100; ++i) list += ",[],{}";
  EXPECT_EQ(parse_json(list + "]").size(), 201U);
  EXPECT_EQ(parse_json("\"" + std::string(100, '[') + "\""), std::string(100, '['));
  EXPECT_EQ(parse_json("[\"\\\"" + std::string(100, '{') + "\"]").size(), 1U);
  EXPECT_TRUE(parse_json("[\"\\\\\"," + nested(64, "[", "]") + "]").is_discarded());
}

TEST(JsonText, IsDiscardedIfItIsNoJson) {
  for (const char* text : {"", "[", "]", "]]]", "[1] 2", "\"a", "\"\\", "{1:2}"}) {
    EXPECT_TRUE(parse_json(text).is_discarded()) << text;
  }
}

// With a callback of the parser's this would take minutes.
TEST(JsonText, OfManyObjectsTakesLinearTime) {
  std::string list = "[{}";
  for (int i = 1; i < 500'000; ++i) list += ",{}";
  EXPECT_EQ(parse_json(list + "]").size(), 500'000U);
}

}  // namespace
}  // namespace examples::json_text_test
