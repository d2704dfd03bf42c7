// SPDX-License-Identifier: MIT
#include "lora/io/safetensors_json.hpp"

#include <gtest/gtest.h>
#include <string>

namespace lora::safetensors_json_test {
namespace {

TEST(SafetensorsJson, KeepsEntriesInTheOrderOfTheText) {
  const auto json = detail::parse_safetensors_json(
      R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"F4","shape":[],"data_offsets":[0,4]}})",
      "file");
  ASSERT_EQ(json.tensors.size(), 2U);
  EXPECT_EQ(json.tensors[0].name, "b");
  EXPECT_EQ(json.tensors[0].shape, std::vector<std::uint64_t>{1});
  EXPECT_EQ(json.tensors[1].dtype, Dtype::F4);
  EXPECT_TRUE(json.tensors[1].shape.empty());
  EXPECT_EQ(json.tensors[1].end, 4U);
}

TEST(SafetensorsJson, KeepsLargestUnsignedNumbersExactly) {
  const auto json = detail::parse_safetensors_json(
      R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[9007199254740993,18446744073709551614]}})",
      "file");
  EXPECT_EQ(json.tensors.at(0).shape.at(0), 18446744073709551615U);
  EXPECT_EQ(json.tensors.at(0).begin, 9007199254740993U);
  EXPECT_EQ(json.tensors.at(0).end, 18446744073709551614U);
}

TEST(SafetensorsJson, SaysWhereAndWhatWasExpected) {
  const auto message = [](std::string_view text) -> std::string {
    try {
      static_cast<void>(detail::parse_safetensors_json(text, "file"));
    } catch (const SafetensorsError& error) {
      return error.what();
    }
    return "";
  };
  const std::string kind = "safetensors InvalidHeaderDeserialization: file: ";
  EXPECT_EQ(message("[]"), kind + "header: expected a JSON object, got an array");
  EXPECT_EQ(message("{]"), kind + "header: expected JSON, got an error at byte 2");
  EXPECT_EQ(message(R"({"__metadata__":{"a":1}})"), kind + "__metadata__: expected string values only, got a number");
  EXPECT_EQ(message(R"({"a":{"dtype":"F33"}})"), kind + "tensor \"a\": expected a dtype the format knows, got \"F33\"");
  EXPECT_EQ(message(R"({"a":{"shape":[-1]}})"),
            kind + "tensor \"a\": expected shape as an array of unsigned 64-bit integers, got a negative number");
  EXPECT_EQ(message(R"({"a":{"dtype":"F32"}})"),
            kind + "tensor \"a\": expected dtype, shape and data_offsets, got no shape");
}

}  // namespace
}  // namespace lora::safetensors_json_test
