// SPDX-License-Identifier: MIT
#include "lora/io/dtype_conversion.hpp"

#include <array>
#include <gtest/gtest.h>
#include <limits>
#include <type_traits>
#include <vector>

namespace lora::dtype_conversion_test {
namespace {

template <class Scalar>
class DtypeConversion : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(DtypeConversion, Scalars);

// Values that each of the four formats holds exactly.
const std::array<double, 7> common_values{
    0.0, -0.0, 1.0, -2.5, 0.15625, 0x1p-14, -std::numeric_limits<double>::infinity()};

TYPED_TEST(DtypeConversion, RoundTripsAtEveryMisalignment) {
  std::vector<TypeParam> values;
  for (const double value : common_values) values.push_back(static_cast<TypeParam>(value));
  for (const Dtype dtype : {Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16}) {
    for (std::size_t shift = 0; shift < 8; ++shift) {
      std::vector<std::byte> bytes(shift + values.size() * bits_of(dtype) / 8);
      encode<TypeParam>(dtype, values, bytes.data() + shift);
      std::vector<TypeParam> back(values.size());
      decode<TypeParam>(dtype, bytes.data() + shift, back);
      ASSERT_EQ(std::memcmp(back.data(), values.data(), values.size() * sizeof(TypeParam)), 0)
          << name_of(dtype) << " shifted by " << shift;
    }
  }
}

TYPED_TEST(DtypeConversion, BytesAreLittleEndian) {
  const std::array<TypeParam, 1> value{TypeParam{1.5}};
  const auto encoded = [&](Dtype dtype) {
    std::vector<std::byte> bytes(bits_of(dtype) / 8);
    encode<TypeParam>(dtype, value, bytes.data());
    std::vector<int> numbers;
    for (const std::byte byte : bytes) numbers.push_back(std::to_integer<int>(byte));
    return numbers;
  };
  EXPECT_EQ(encoded(Dtype::F16), (std::vector<int>{0x00, 0x3E}));
  EXPECT_EQ(encoded(Dtype::BF16), (std::vector<int>{0xC0, 0x3F}));
  EXPECT_EQ(encoded(Dtype::F32), (std::vector<int>{0, 0, 0xC0, 0x3F}));
  EXPECT_EQ(encoded(Dtype::F64), (std::vector<int>{0, 0, 0, 0, 0, 0, 0xF8, 0x3F}));
}

TEST(DtypeConversionExact, FloatSubnormalsWidenExactly) {
  const std::array<float, 2> values{std::numeric_limits<float>::denorm_min(), -0x1.8p-140F};
  std::array<std::byte, sizeof(values)> bytes{};
  encode<float>(Dtype::F32, values, bytes.data());
  std::array<double, 2> wide{};
  decode<double>(Dtype::F32, bytes.data(), wide);
  EXPECT_EQ(wide[0], 0x1p-149);
  EXPECT_EQ(wide[1], -0x1.8p-140);
}

TEST(DtypeConversionExact, DoubleNarrowsToTheNearestFloat) {
  const std::array<double, 3> values{1.0 + 0x1p-24, 1.0 + 0x1p-24 + 0x1p-50, 1e300};
  std::array<std::byte, sizeof(values)> bytes{};
  encode<double>(Dtype::F64, values, bytes.data());
  std::array<float, 3> narrow{};
  decode<float>(Dtype::F64, bytes.data(), narrow);
  EXPECT_EQ(narrow[0], 1.0F);
  EXPECT_EQ(narrow[1], 1.0F + 0x1p-23F);
  EXPECT_EQ(narrow[2], std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace lora::dtype_conversion_test
