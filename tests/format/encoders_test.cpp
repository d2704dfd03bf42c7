// SPDX-License-Identifier: MIT
// What every encoder promises: how near the decoded weights are, and what decoding and encoding again changes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <random>

#include "format/format_cases.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/half.hpp"

namespace lora::testing::encoders_test {
namespace {

using formats::BF16;
using formats::F16;
using formats::FP4;
using formats::NF4;
using formats::Q4_0;
using formats::Q4_1;
using formats::Q5_0;
using formats::Q5_1;
using formats::Q8_0;

template <class Format>
inline constexpr bool is_affine = std::same_as<Format, Q4_1> || std::same_as<Format, Q5_1>;

// Half a step of F16 relative to the number, and the half of its smallest step.
constexpr double f16_epsilon = 0x1p-11;
constexpr double f16_least = 0x1p-25;

// |w - decoded| at most, for the weights of a block. With steps of d it is half a step, or a whole one where the range
// is cut; d times the largest code, as F16 rounds d; and a few roundings of floats.
template <class Format>
double allowed_error(const Floats& block) {
  const double magnitude = largest_magnitude(block);
  const double range = range_of(block);
  const double minimum = magnitude * f16_epsilon + f16_least;
  const auto with_step = [&](double step, double largest_code) {
    return step + largest_code * (2 * step * f16_epsilon + f16_least) + magnitude * 0x1p-22;
  };
  if (std::same_as<Format, F16>) return minimum;
  if (std::same_as<Format, BF16>) return magnitude * 0x1p-8;
  if (std::same_as<Format, Q8_0>) return with_step(magnitude / 127 / 2, 127);
  if (std::same_as<Format, Q4_0>) return with_step(magnitude / 8, 8);
  if (std::same_as<Format, Q5_0>) return with_step(magnitude / 16, 16);
  if (std::same_as<Format, Q4_1>) return with_step(range / 15 / 2, 15) + minimum;
  if (std::same_as<Format, Q5_1>) return with_step(range / 31 / 2, 31) + minimum;
  // NF4 and FP4: half of the widest gap in the table.
  const double gap = is_nf4<Format> ? 1 - 0.6961928009986877 : 1.0 / 3;
  return magnitude * (gap / 2 + 0x1p-22);
}

// Whether encoding the decoded block must give the same bytes. Three things stand in the way: a scale that underflows
// in F16 (or is below the least divisor of NF4 and FP4), a minimum so large that floats near it hold the scale too
// coarsely, and a minimum of -0, which decodes to +0.
template <class Format>
bool comes_back(const Floats& block, const Bytes& bytes) {
  const float magnitude = largest_magnitude(block);
  if (Format::block_size == 1) return true;
  if (has_absmax<Format>) return magnitude == 0 || magnitude >= 1e-38F;
  const float scale = float_from_f16(static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8));
  const bool constant = range_of(block) == 0;
  if (!is_affine<Format>) return scale != 0 || magnitude == 0;
  const bool minimum_is_minus_zero = bytes[2] == 0 && bytes[3] == 0x80;
  return !minimum_is_minus_zero && (constant || (scale != 0 && magnitude < 2048 * range_of(block)));
}

// Code 8 of FP4 is -0, and every zero is encoded as code 0.
template <class Format>
Bytes without_negative_zeros(Bytes bytes) {
  if (!is_fp4<Format>) return bytes;
  for (std::size_t i = 4; i < bytes.size(); ++i) {
    if (bytes[i] >> 4 == 8) bytes[i] &= 0x0F;
    if ((bytes[i] & 0x0F) == 8) bytes[i] &= 0xF0;
  }
  return bytes;
}

template <class Format>
Bytes encoded_again(const Bytes& bytes) {
  return encoded<Format>(decoded<Format>(bytes));
}

template <class Format>
class Encoders : public ::testing::Test {
 public:
  static constexpr auto block_size = static_cast<std::size_t>(Format::block_size);
};
TYPED_TEST_SUITE(Encoders, EncodableFormats, FormatName);

TYPED_TEST(Encoders, MeetTheConcept) { static_assert(formats::EncodableFormat<TypeParam>); }

TYPED_TEST(Encoders, KeepEveryWeightNear) {
  for (const Floats& block : blocks_of_weights<TypeParam>()) {
    const Floats back = decoded<TypeParam>(encoded<TypeParam>(block));
    const double allowed = allowed_error<TypeParam>(block);
    for (std::size_t i = 0; i < block.size(); ++i) {
      ASSERT_LE(std::abs(static_cast<double>(back[i]) - static_cast<double>(block[i])), allowed)
          << block[i] << " in a block up to " << largest_magnitude(block);
    }
  }
}

TYPED_TEST(Encoders, GiveTheSameBytesForDecodedWeights) {
  std::size_t compared = 0;
  const auto blocks = blocks_of_weights<TypeParam>();
  for (const Floats& block : blocks) {
    const Bytes bytes = encoded<TypeParam>(block);
    if (!comes_back<TypeParam>(block, bytes)) continue;
    ASSERT_EQ(encoded_again<TypeParam>(bytes), without_negative_zeros<TypeParam>(bytes));
    ++compared;
  }
  EXPECT_GT(compared, blocks.size() * 3 / 4);
}

TYPED_TEST(Encoders, KeepZerosOfEitherSign) {
  Floats block(TestFixture::block_size, 0.0F);
  for (int pattern = 0; pattern < 3; ++pattern) {
    for (std::size_t i = 0; i < block.size(); ++i) {
      block[i] = pattern == 1 || (pattern == 2 && i % 3 == 0) ? -0.0F : 0.0F;
    }
    const Bytes bytes = encoded<TypeParam>(block);
    for (const float value : decoded<TypeParam>(bytes)) ASSERT_EQ(value, 0.0F);
    if (!comes_back<TypeParam>(block, bytes)) continue;
    ASSERT_EQ(encoded_again<TypeParam>(bytes), bytes);
  }
}

// The scales underflow, their reciprocals overflow, and the weights become zeros or stay near.
TYPED_TEST(Encoders, AcceptSubnormalWeights) {
  for (const float size : {0x1p-149F, 3 * 0x1p-149F, 8 * 0x1p-149F, 127 * 0x1p-149F, 1e-40F, 0x1p-126F, 1e-30F}) {
    Floats block(TestFixture::block_size);
    for (std::size_t i = 0; i < block.size(); ++i) block[i] = i % 3 == 0 ? size : i % 3 == 1 ? -size : 0.0F;
    for (const float value : decoded<TypeParam>(encoded<TypeParam>(block))) {
      ASSERT_TRUE(is_finite(value));
      ASSERT_LE(std::abs(value), size) << size;
    }
  }
}

TYPED_TEST(Encoders, TakeScaleFromASingleOutlier) {
  for (const float outlier : {40000.0F, -40000.0F}) {
    for (const std::size_t place : {std::size_t{0}, TestFixture::block_size - 1}) {
      Floats block(TestFixture::block_size, 1e-4F);
      block[place] = outlier;
      const Floats back = decoded<TypeParam>(encoded<TypeParam>(block));
      ASSERT_LE(std::abs(back[place] - outlier), 40000.0F * 0x1p-7F);
    }
  }
}

TYPED_TEST(Encoders, MakeABlockWithANonFiniteWeightNan) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t place : {std::size_t{0}, TestFixture::block_size / 2, TestFixture::block_size - 1}) {
      Floats block(TestFixture::block_size, 0.5F);
      block[place] = bad;
      const Floats back = decoded<TypeParam>(encoded<TypeParam>(block));
      for (const float value : back) {
        if (TypeParam::block_size > 1) {
          ASSERT_TRUE(is_nan(static_cast<double>(value)));
        } else if (is_nan(static_cast<double>(bad))) {
          ASSERT_TRUE(is_nan(static_cast<double>(value)));
        } else {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(value), std::bit_cast<std::uint32_t>(bad));
        }
      }
    }
  }
}

// Scales overflow, or the difference of the ends does: defined, and not silently finite. Only NF4 and FP4 have the
// range of a float.
TYPED_TEST(Encoders, ShowWeightsBeyondTheRange) {
  Floats block(TestFixture::block_size, 0x1.fffffep127F);
  if (TestFixture::block_size > 1) block[1] = -0x1.fffffep127F;
  EXPECT_EQ(is_finite(decoded<TypeParam>(encoded<TypeParam>(block))[0]), has_absmax<TypeParam>);
}

TYPED_TEST(Encoders, StayInTheirBlockAtAnyAlignment) {
  constexpr std::uint8_t untouched = 0xA5;
  std::mt19937 random(12);
  const Floats block = normal_block<TypeParam>(random, 0.0F, 1.0F);
  const Bytes expected = encoded<TypeParam>(block);
  for (std::size_t shift = 1; shift <= 8; ++shift) {
    Bytes bytes(shift + expected.size() + 1, untouched);
    TypeParam::encode(block.data(), bytes.data() + shift);
    ASSERT_TRUE(std::equal(expected.begin(), expected.end(), bytes.begin() + static_cast<std::ptrdiff_t>(shift)));
    ASSERT_EQ(bytes[shift - 1], untouched);
    ASSERT_EQ(bytes.back(), untouched);
  }
}

// Where bytes do not come back, as comes_back says. Each is a property of the reference's rule.
TEST(EncodingAgain, ClearsTheCodesOfAScaleThatUnderflows) {
  Floats block(32, 0.0F);
  block[0] = 1e-8F;
  const Bytes bytes = encoded<Q8_0>(block);
  EXPECT_EQ(bytes[0] | bytes[1] << 8, 0);
  EXPECT_EQ(bytes[2], 127);
  EXPECT_EQ(encoded_again<Q8_0>(bytes)[2], 0);
}

TEST(EncodingAgain, LosesTheSignOfAMinimumOfZero) {
  const Bytes bytes = encoded<Q4_1>(Floats(32, -0.0F));
  EXPECT_EQ(bytes[3], 0x80);
  EXPECT_EQ(encoded_again<Q4_1>(bytes)[3], 0x00);
}

TEST(EncodingAgain, TurnsTheNegativeZeroOfFp4IntoZero) {
  Floats block(64, 1e-6F);
  block[0] = 1.0F;
  const Bytes bytes = encoded<FP4<>>(block);
  EXPECT_EQ(bytes[5], 0x88);
  EXPECT_EQ(encoded_again<FP4<>>(bytes)[5], 0x00);
}

TEST(EncodingAgain, ShrinksWeightsBelowTheLeastDivisor) {
  const Bytes bytes = encoded<NF4<>>(Floats(64, 3e-39F));
  EXPECT_LT(decoded<NF4<>>(bytes)[0], 2e-39F);
  EXPECT_NE(encoded_again<NF4<>>(bytes), bytes);
}

// The largest weight sets the sign of the scale, and of several the first.
TEST(Q4_0Encoder, TakesTheFirstOfTheLargest) {
  Floats block(32, 0.0F);
  block[3] = 1.0F;
  block[5] = -1.0F;
  EXPECT_EQ(decoded<Q4_0>(encoded<Q4_0>(block))[3], 1.0F);
  EXPECT_EQ(decoded<Q4_0>(encoded<Q4_0>(block))[5], -0.875F);
  std::swap(block[3], block[5]);
  EXPECT_EQ(decoded<Q4_0>(encoded<Q4_0>(block))[3], -1.0F);
  EXPECT_EQ(decoded<Q4_0>(encoded<Q4_0>(block))[5], 0.875F);
}

TEST(Q8_0Encoder, RoundsHalvesAwayFromZero) {
  Floats block(32, 0.0F);
  block[0] = 127.0F;
  block[1] = 2.5F;
  block[2] = -2.5F;
  block[3] = 2.4999998F;
  const Bytes bytes = encoded<Q8_0>(block);
  EXPECT_EQ(static_cast<std::int8_t>(bytes[3]), 3);
  EXPECT_EQ(static_cast<std::int8_t>(bytes[4]), -3);
  EXPECT_EQ(static_cast<std::int8_t>(bytes[5]), 2);
}

// Every boundary between two codes. A midpoint belongs to the value below it. In FP4 one of them is 0, between its
// zeros.
template <class Format>
void expect_codes_by_midpoints(const formats::detail::Codebook& book) {
  for (std::size_t place = 0; place < 15; ++place) {
    const float midpoint = book.midpoint(place);
    Floats block(static_cast<std::size_t>(Format::block_size), 1.0F);
    block[0] = midpoint;
    block[1] = std::nextafter(midpoint, 1.0F);
    const int expected = book.ascending[place] << 4 | book.ascending[place + 1];
    ASSERT_EQ(encoded<Format>(block)[4], expected) << "after place " << place;
  }
}

TEST(NF4Encoder, RoundsMidpointsDown) { expect_codes_by_midpoints<NF4<>>(formats::detail::nf4_codebook); }

TEST(FP4Encoder, RoundsMidpointsDown) { expect_codes_by_midpoints<FP4<>>(formats::detail::fp4_codebook); }

}  // namespace
}  // namespace lora::testing::encoders_test
