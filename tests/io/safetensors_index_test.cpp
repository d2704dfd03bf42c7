// SPDX-License-Identifier: MIT
#include "lora/io/safetensors_index.hpp"

#include <gtest/gtest.h>
#include <string>

namespace lora::safetensors_index_test {
namespace {

TEST(SafetensorsIndex, TellsWhichFileHoldsWhichTensor) {
  const SafetensorsWeightMap map = parse_safetensors_weight_map(
      R"({"weight_map":{"b":"2.safetensors","a":"1.safetensors","c":"1.safetensors"},"more":{"d":"3.safetensors"}})",
      "index");
  EXPECT_EQ(map, (SafetensorsWeightMap{{"a", "1.safetensors"}, {"b", "2.safetensors"}, {"c", "1.safetensors"}}));
}

TEST(SafetensorsIndex, HasTheLastFileOfATensorThatIsNamedTwice) {
  EXPECT_EQ(parse_safetensors_weight_map(R"({"weight_map":{"a":"1","a":"2"}})", "index"),
            (SafetensorsWeightMap{{"a", "2"}}));
}

TEST(SafetensorsIndex, IsRefusedInBothFormsAlike) {
  for (const std::string text : {"{}", R"({"weight_map":{}})", R"({"weight_map":{"a":"../b"}})", "[", "{\"a\":NaN}"}) {
    EXPECT_THROW(static_cast<void>(parse_safetensors_index(text, "index")), FormatError) << text;
    EXPECT_THROW(static_cast<void>(parse_safetensors_weight_map(text, "index")), FormatError) << text;
  }
}

}  // namespace
}  // namespace lora::safetensors_index_test
