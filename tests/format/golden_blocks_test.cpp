// SPDX-License-Identifier: MIT
// Every format against blocks that ggml and bitsandbytes' rule wrote, bit for bit.
#include <algorithm>
#include <cctype>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "format/format_cases.hpp"
#include "support/absmax_blocks.hpp"
#include "support/bits.hpp"
#include "support/golden.hpp"

namespace lora::testing::golden_blocks_test {
namespace {

template <class Format>
std::string file_name(const std::string& suffix = "") {
  std::string name(Format::name);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  if (has_absmax<Format>) name += "_b" + std::to_string(Format::block_size);
  return "quantized/" + name + suffix + "_6x512";
}

template <class Format>
Golden golden_of(const std::string& suffix = "") {
  return Golden::load(golden_path(file_name<Format>(suffix)));
}

// The scale of every block in a file of bitsandbytes.
std::vector<float> absmax_of(const Golden& golden, const std::string& state) {
  if (!golden.contains("weight.nested_absmax")) {
    const auto absmax = golden.matrix<float>("weight.absmax");
    return {absmax.data(), absmax.data() + absmax.size()};
  }
  const auto text = golden.bytes("weight.quant_state." + state);
  const auto offset = nlohmann::json::parse(text.begin(), text.end()).at("nested_offset").get<float>();
  return nested_absmax(golden.bytes("weight.absmax"), golden.matrix<float>("weight.nested_quant_map").data(),
                       golden.matrix<float>("weight.nested_absmax").data(), offset);
}

template <class Format>
Bytes packed_bytes(const Golden& golden) {
  if constexpr (has_absmax<Format>) {
    const std::string state = is_nf4<Format> ? "bitsandbytes__nf4" : "bitsandbytes__fp4";
    return absmax_blocks<Format>(golden.bytes("weight.bitsandbytes"), absmax_of(golden, state));
  } else {
    return golden.bytes("packed");
  }
}

template <class Format>
void expect_decoded(const Golden& golden) {
  const auto expected = golden.matrix<float>("decoded");
  const Bytes packed = packed_bytes<Format>(golden);
  const Index stride = formats::row_bytes<Format>(expected.cols());
  ASSERT_EQ(static_cast<Index>(packed.size()), stride * expected.rows());
  Matrix<float> values(expected.rows(), expected.cols());
  for (Index row = 0; row < values.rows(); ++row) {
    formats::decode_row<Format>(packed.data() + row * stride, values.cols(), values.row(row).data());
  }
  EXPECT_TRUE(same_bits(values, expected));
}

template <class Format>
class GoldenBlocks : public ::testing::Test {};
TYPED_TEST_SUITE(GoldenBlocks, NumberFormats, FormatName);

TYPED_TEST(GoldenBlocks, DecodeBitForBit) { expect_decoded<TypeParam>(golden_of<TypeParam>()); }

TEST(NestedGoldenBlocks, DecodeBitForBit) {
  expect_decoded<formats::NF4<64>>(golden_of<formats::NF4<64>>("_nested"));
  expect_decoded<formats::NF4<128>>(golden_of<formats::NF4<128>>("_nested"));
}

template <class Format>
class GoldenWeights : public ::testing::Test {};
using Encoded =
    ::testing::Types<formats::F16, formats::BF16, formats::Q8_0, formats::Q4_0, formats::Q4_1, formats::Q5_0,
                     formats::Q5_1, formats::NF4<>, formats::NF4<128>, formats::FP4<>, formats::FP4<128>>;
TYPED_TEST_SUITE(GoldenWeights, Encoded, FormatName);

TYPED_TEST(GoldenWeights, EncodeToTheSameBytes) {
  const Golden golden = golden_of<TypeParam>();
  const auto weight = golden.matrix<float>("weight");
  const Bytes expected = packed_bytes<TypeParam>(golden);
  const Index stride = formats::row_bytes<TypeParam>(weight.cols());
  Bytes bytes(expected.size());
  for (Index row = 0; row < weight.rows(); ++row) {
    formats::encode_row<TypeParam>(weight.row(row).data(), weight.cols(), bytes.data() + row * stride);
  }
  EXPECT_EQ(bytes, expected);
}

}  // namespace
}  // namespace lora::testing::golden_blocks_test
