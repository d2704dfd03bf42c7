// SPDX-License-Identifier: MIT
#include "lora/core/half.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>

namespace lora::half_test {
namespace {

// The two formats, so that each law is written once. `from` narrows, `to` widens.
struct F16 {
  static constexpr int mantissa_bits = 10;
  static constexpr int bias = 15;
  static std::uint16_t from(double value) { return f16_from(value); }
  static float to(std::uint16_t bits) { return float_from_f16(bits); }
};

struct BF16 {
  static constexpr int mantissa_bits = 7;
  static constexpr int bias = 127;
  static std::uint16_t from(double value) { return bf16_from(value); }
  static float to(std::uint16_t bits) { return float_from_bf16(bits); }
};

template <class Format>
class Half : public ::testing::Test {
 public:
  static constexpr std::uint32_t infinity = 0x7FFFU >> Format::mantissa_bits << Format::mantissa_bits;

  // The value by the definition of the format, for finite numbers.
  static double defined_value(std::uint32_t bits) {
    const std::uint32_t mantissa = bits & ((1U << Format::mantissa_bits) - 1);
    const auto exponent = static_cast<int>((bits & 0x7FFFU) >> Format::mantissa_bits);
    const double significand = exponent == 0 ? mantissa : static_cast<double>(mantissa) + (1U << Format::mantissa_bits);
    const double value = std::ldexp(significand, std::max(exponent, 1) - Format::bias - Format::mantissa_bits);
    return (bits & 0x8000U) != 0 ? -value : value;
  }
};

using Formats = ::testing::Types<F16, BF16>;
TYPED_TEST_SUITE(Half, Formats);

TYPED_TEST(Half, EveryFiniteNumberWidensExactlyAndComesBack) {
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    if ((bits & 0x7FFFU) >= TestFixture::infinity) continue;
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = TypeParam::to(half);
    ASSERT_EQ(static_cast<double>(value), TestFixture::defined_value(bits)) << bits;
    ASSERT_EQ(std::signbit(value), (bits & 0x8000U) != 0) << bits;
    ASSERT_EQ(TypeParam::from(static_cast<double>(value)), half) << bits;
  }
}

// Every boundary between two neighbours: a rounding that is right there, and monotonic, is right everywhere.
TYPED_TEST(Half, RoundsToNearestEvenBetweenAllNeighbours) {
  for (std::uint32_t low = 0; low + 1 < TestFixture::infinity; ++low) {
    const double a = TestFixture::defined_value(low);
    const double b = TestFixture::defined_value(low + 1);
    const double middle = a + (b - a) / 2;
    ASSERT_EQ(TypeParam::from(middle), low % 2 == 0 ? low : low + 1) << low;
    ASSERT_EQ(TypeParam::from(std::nextafter(middle, a)), low) << low;
    ASSERT_EQ(TypeParam::from(std::nextafter(middle, b)), low + 1) << low;
    ASSERT_EQ(TypeParam::from(-middle), 0x8000U | (low % 2 == 0 ? low : low + 1)) << low;
  }
}

TYPED_TEST(Half, OverflowsToInfinityFromHalfAStepBeyondTheLargest) {
  const double largest = TestFixture::defined_value(TestFixture::infinity - 1);
  const double step = largest - TestFixture::defined_value(TestFixture::infinity - 2);
  EXPECT_EQ(TypeParam::from(largest + step / 2), TestFixture::infinity);
  EXPECT_EQ(TypeParam::from(std::nextafter(largest + step / 2, 0.0)), TestFixture::infinity - 1);
  EXPECT_EQ(TypeParam::from(std::numeric_limits<double>::max()), TestFixture::infinity);
  EXPECT_EQ(TypeParam::from(-std::numeric_limits<double>::infinity()), 0x8000U | TestFixture::infinity);
  EXPECT_EQ(TypeParam::to(TestFixture::infinity), std::numeric_limits<float>::infinity());
}

TYPED_TEST(Half, UnderflowsToZeroWithItsSign) {
  EXPECT_EQ(TypeParam::from(std::numeric_limits<double>::denorm_min()), 0);
  EXPECT_EQ(TypeParam::from(-std::numeric_limits<double>::min()), 0x8000);
  EXPECT_EQ(TypeParam::from(-0.0), 0x8000);
}

TYPED_TEST(Half, EveryNanStaysANanWithItsPayload) {
  const auto quiet_bit = 1U << (TypeParam::mantissa_bits - 1);
  for (std::uint32_t bits = TestFixture::infinity + 1; bits <= 0x7FFF; ++bits) {
    const float value = TypeParam::to(static_cast<std::uint16_t>(bits));
    ASSERT_TRUE(std::isnan(value)) << bits;
    ASSERT_EQ(TypeParam::from(static_cast<double>(value)), bits | quiet_bit) << bits;
    const auto negative = TypeParam::to(static_cast<std::uint16_t>(bits | 0x8000U));
    ASSERT_EQ(TypeParam::from(static_cast<double>(negative)), bits | quiet_bit | 0x8000U) << bits;
  }
  // A payload in the low bits alone must not turn into infinity.
  const auto low_payload = std::bit_cast<double>(std::uint64_t{0x7FF0000000000001});
  EXPECT_EQ(TypeParam::from(low_payload), TestFixture::infinity | quiet_bit);
}

// 1 + 2^-11 + 2^-40 lies above the middle between 1 and its F16 neighbour; rounding to float first would land on it.
TEST(F16Conversion, RoundsADoubleOnce) { EXPECT_EQ(f16_from(1.0 + 0x1p-11 + 0x1p-40), 0x3C01); }

TEST(Bf16Conversion, RoundsADoubleOnce) { EXPECT_EQ(bf16_from(1.0 + 0x1p-8 + 0x1p-40), 0x3F81); }

}  // namespace
}  // namespace lora::half_test
