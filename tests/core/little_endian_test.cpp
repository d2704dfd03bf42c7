// SPDX-License-Identifier: MIT
#include "lora/core/little_endian.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>

namespace lora::little_endian_test {
namespace {

using Bytes = std::array<unsigned char, 9>;

TEST(LittleEndian, TheLowestByteComesFirstAtAnyAlignment) {
  const Bytes bytes{0xFF, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08};
  EXPECT_EQ(load_little_endian<std::uint8_t>(bytes.data() + 1), 0x01U);
  EXPECT_EQ(load_little_endian<std::uint16_t>(bytes.data() + 1), 0x0201U);
  EXPECT_EQ(load_little_endian<std::uint32_t>(bytes.data() + 1), 0x04030201U);
  EXPECT_EQ(load_little_endian<std::uint64_t>(bytes.data() + 1), 0x0807060504030201U);
}

TEST(LittleEndian, FloatsAreTheirBits) {
  const std::array<unsigned char, 4> one_and_a_half{0x00, 0x00, 0xC0, 0x3F};
  EXPECT_EQ(load_little_endian<float>(one_and_a_half.data()), 1.5F);
  std::array<unsigned char, 8> stored{};
  store_little_endian(-2.0, stored.data());
  EXPECT_EQ(stored, (std::array<unsigned char, 8>{0, 0, 0, 0, 0, 0, 0, 0xC0}));
}

TEST(LittleEndian, StoringIsTheInverse) {
  Bytes bytes{};
  store_little_endian(std::uint32_t{0xA1B2C3D4U}, bytes.data() + 3);
  EXPECT_EQ(load_little_endian<std::uint32_t>(bytes.data() + 3), 0xA1B2C3D4U);
  EXPECT_EQ(bytes, (Bytes{0, 0, 0, 0xD4, 0xC3, 0xB2, 0xA1, 0, 0}));
}

}  // namespace
}  // namespace lora::little_endian_test
