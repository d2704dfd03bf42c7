// SPDX-License-Identifier: MIT
// What every decoder promises for any bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <random>
#include <string_view>
#include <vector>

#include "format/format_cases.hpp"
#include "lora/core/finite.hpp"

namespace lora::testing::decoders_test {
namespace {

template <class Format>
Bytes random_block(std::mt19937& random) {
  Bytes block(static_cast<std::size_t>(Format::block_bytes));
  for (auto& byte : block) byte = static_cast<std::uint8_t>(random());
  return block;
}

// Where the format has an F16, BF16 or float: the byte with the upper bits of its exponent.
template <class Format>
std::vector<std::size_t> exponent_bytes() {
  using namespace formats;  // NOLINT(google-build-using-namespace): the names of the formats alone
  const std::string_view name = Format::name;
  if (has_absmax<Format>) return {3};
  if (name == Q4_1::name || name == Q5_1::name || name == Q4_K::name || name == Q5_K::name) return {1, 3};
  if (name == Q2_K::name) return {81, 83};
  if (name == Q3_K::name) return {109};
  if (name == Q6_K::name) return {209};
  return {1};
}

template <class Format>
void make_scales_finite(Bytes& block) {
  if constexpr (std::same_as<Format, formats::MXFP4>) {
    block[0] = std::min<std::uint8_t>(block[0], 252);
  } else {
    for (const std::size_t byte : exponent_bytes<Format>()) block[byte] &= 0xBF;
  }
}

template <class Format>
class Decoders : public ::testing::Test {};
TYPED_TEST_SUITE(Decoders, NumberFormats, FormatName);

TYPED_TEST(Decoders, MeetTheConcept) {
  static_assert(formats::NumberFormat<TypeParam>);
  EXPECT_EQ(formats::row_bytes<TypeParam>(0), 0);
  EXPECT_EQ(formats::row_bytes<TypeParam>(3 * TypeParam::block_size), 3 * TypeParam::block_bytes);
}

TYPED_TEST(Decoders, GiveFiniteValuesFromFiniteScales) {
  std::mt19937 random(7);
  for (int i = 0; i < 500; ++i) {
    Bytes block = random_block<TypeParam>(random);
    make_scales_finite<TypeParam>(block);
    for (const float value : decoded<TypeParam>(block)) ASSERT_TRUE(is_finite(value)) << "block " << i;
  }
}

TYPED_TEST(Decoders, AcceptAnyBytes) {
  std::mt19937 random(8);
  for (int i = 0; i < 500; ++i) (void)decoded<TypeParam>(random_block<TypeParam>(random));
  for (int byte = 0; byte < 256; ++byte) {
    (void)decoded<TypeParam>(Bytes(static_cast<std::size_t>(TypeParam::block_bytes), static_cast<std::uint8_t>(byte)));
  }
}

TYPED_TEST(Decoders, GiveZerosFromZeroBytes) {
  for (const float value : decoded<TypeParam>(Bytes(static_cast<std::size_t>(TypeParam::block_bytes)))) {
    ASSERT_EQ(value, 0.0F);
  }
}

// Reads no byte and writes no value beyond the block, at any alignment. The sanitizer sees reads beyond it.
TYPED_TEST(Decoders, StayInTheirBlockAtAnyAlignment) {
  constexpr auto block_size = static_cast<std::size_t>(TypeParam::block_size);
  constexpr float untouched = -12345.5F;
  std::mt19937 random(9);
  Bytes block = random_block<TypeParam>(random);
  make_scales_finite<TypeParam>(block);
  const Floats expected = decoded<TypeParam>(block);
  for (std::size_t shift = 0; shift < 8; ++shift) {
    Bytes shifted(shift + block.size());
    std::copy(block.begin(), block.end(), shifted.begin() + static_cast<std::ptrdiff_t>(shift));
    Floats values(block_size + 2, untouched);
    TypeParam::decode(shifted.data() + shift, values.data() + 1);
    ASSERT_TRUE(same_bits_as(expected, values.data() + 1)) << shift;
    ASSERT_EQ(values.front(), untouched);
    ASSERT_EQ(values.back(), untouched);
  }
}

// A scale that is NaN must show in every weight, also behind a code of zero. MXFP4 has no NaN, as ggml reads it.
TYPED_TEST(Decoders, ShowANanScaleInEveryWeight) {
  if (TypeParam::name == formats::MXFP4::name) return;
  std::mt19937 random(10);
  Bytes block = random_block<TypeParam>(random);
  for (const std::size_t byte : exponent_bytes<TypeParam>()) {
    block[byte] = 0x7F;
    for (std::size_t low = has_absmax<TypeParam> ? byte - 3 : byte - 1; low < byte; ++low) block[low] = 0xFF;
  }
  for (const float value : decoded<TypeParam>(block)) ASSERT_TRUE(is_nan(static_cast<double>(value)));
}

// MXFP4 where ggml and the standard differ, and at both ends of its scale.
TEST(MXFP4Decoder, FollowsGgmlAtTheEnds) {
  Bytes block(17);
  block[1] = 0x71;  // 0.5 and, 16 weights later, 6
  const auto values_at = [&](std::uint8_t e) {
    block[0] = e;
    return decoded<formats::MXFP4>(block);
  };
  EXPECT_EQ(values_at(127)[0], 0.5F);
  EXPECT_EQ(values_at(127)[16], 6.0F);
  EXPECT_EQ(values_at(0)[0], 0x1p-128F);
  EXPECT_EQ(values_at(1)[16], 6 * 0x1p-126F);
  EXPECT_EQ(values_at(2)[0], 0x1p-126F);
  EXPECT_EQ(values_at(252)[16], 6 * 0x1p125F);
  EXPECT_FALSE(is_finite(values_at(253)[16]));
  EXPECT_EQ(values_at(255)[0], 0x1p127F);
  block[1] = 0x08;
  EXPECT_FALSE(std::signbit(values_at(127)[0])) << "code 8 is +0";
}

TEST(RowHelpers, GoBlockByBlock) {
  std::mt19937 random(11);
  Floats values(96);
  for (float& value : values) value = static_cast<float>(random()) * 0x1p-32F;
  Bytes row(static_cast<std::size_t>(formats::row_bytes<formats::Q5_1>(96)));
  formats::encode_row<formats::Q5_1>(values.data(), 96, row.data());
  Floats back(96);
  formats::decode_row<formats::Q5_1>(row.data(), 96, back.data());
  for (std::size_t block = 0; block < 3; ++block) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(32 * block);
    const Bytes alone = encoded<formats::Q5_1>(Floats(first, first + 32));
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), row.begin() + static_cast<std::ptrdiff_t>(24 * block)));
    const Floats values_alone = decoded<formats::Q5_1>(alone);
    ASSERT_TRUE(
        std::equal(values_alone.begin(), values_alone.end(), back.begin() + static_cast<std::ptrdiff_t>(32 * block)));
  }
}

}  // namespace
}  // namespace lora::testing::decoders_test
