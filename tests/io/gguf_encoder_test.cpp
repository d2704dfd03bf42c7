// SPDX-License-Identifier: MIT
// The encoder against files written out byte by byte.
#include "lora/io/gguf_encoder.hpp"

#include <array>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/gguf_bytes.hpp"
#include "lora/io/gguf_parser.hpp"

namespace lora::testing::gguf_encoder_test {
namespace {

TEST(GgufEncoder, LaysAFileOutAsTheFormatSays) {
  detail::GgufEncoder encoder(16);
  encoder.add_metadata("k", GgufValue(std::string("v")));
  encoder.add_metadata("n", GgufValue(std::vector<std::uint16_t>{1, 2}));
  encoder.add_metadata("b", GgufValue(std::vector<bool>{true}));
  const std::array<std::uint64_t, 2> extents{2, 1};
  std::byte* data = encoder.add_tensor("t", extents, GgufType::F16, 4);
  data[3] = std::byte{9};
  data = encoder.add_tensor("u", std::span(extents).first(1), GgufType::BF16, 4);
  data[0] = std::byte{8};

  GgufBytes expected = GgufBytes::header(2, 3);
  expected.text("k").u32(8).text("v").text("n").u32(9).u32(2).u64(2).u8(1).u8(0).u8(2).u8(0);
  expected.text("b").u32(9).u32(7).u64(1).u8(1);
  expected.tensor("t", {2, 1}, 1, 0).tensor("u", {2}, 30, 16).pad(16);
  expected.u8(0).u8(0).u8(0).u8(9).pad(16).u8(8).pad(16);
  EXPECT_EQ(std::move(encoder).finish(), expected.bytes());
}

TEST(GgufEncoder, WhatItWritesIsParsed) {
  detail::GgufEncoder encoder(32);
  const GgufMetadata metadata{{"a", std::uint8_t{1}},
                              {"b", std::int8_t{-1}},
                              {"c", std::uint16_t{2}},
                              {"d", std::int16_t{-2}},
                              {"e", std::uint32_t{3}},
                              {"f", std::int32_t{-3}},
                              {"g", 1.5F},
                              {"h", false},
                              {"i", std::string("text")},
                              {"j", std::uint64_t{4}},
                              {"k", std::int64_t{-4}},
                              {"l", 2.5},
                              {"m", std::vector<double>{1}},
                              {"n", std::vector<std::string>{"x", "y"}},
                              {"o", std::vector<bool>{}}};
  for (const auto& [key, value] : metadata) encoder.add_metadata(key, value);
  const auto bytes = std::move(encoder).finish();
  EXPECT_EQ(parse_gguf(bytes).metadata, metadata);
}

}  // namespace
}  // namespace lora::testing::gguf_encoder_test
