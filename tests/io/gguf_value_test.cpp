// SPDX-License-Identifier: MIT
// The numbers by which GGUF calls the types of metadata.
#include "lora/io/gguf_value.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace lora::gguf_value_test {
namespace {

template <class T>
std::uint32_t number_of() {
  return detail::gguf_type_of(GgufValue(T{}).index());
}

// docs/gguf.md of ggml-org/ggml, gguf_metadata_value_type.
TEST(GgufValue, TypesHaveTheFormatsNumbers) {
  EXPECT_EQ(number_of<std::uint8_t>(), 0U);
  EXPECT_EQ(number_of<std::int8_t>(), 1U);
  EXPECT_EQ(number_of<std::uint16_t>(), 2U);
  EXPECT_EQ(number_of<std::int16_t>(), 3U);
  EXPECT_EQ(number_of<std::uint32_t>(), 4U);
  EXPECT_EQ(number_of<std::int32_t>(), 5U);
  EXPECT_EQ(number_of<float>(), 6U);
  EXPECT_EQ(number_of<bool>(), 7U);
  EXPECT_EQ(number_of<std::string>(), 8U);
  EXPECT_EQ(number_of<std::uint64_t>(), 10U);
  EXPECT_EQ(number_of<std::int64_t>(), 11U);
  EXPECT_EQ(number_of<double>(), 12U);
}

TEST(GgufValue, ArraysHaveTheNumbersOfTheirElements) {
  EXPECT_EQ(number_of<std::vector<std::uint8_t>>(), 0U);
  EXPECT_EQ(number_of<std::vector<bool>>(), 7U);
  EXPECT_EQ(number_of<std::vector<std::string>>(), 8U);
  EXPECT_EQ(number_of<std::vector<std::uint64_t>>(), 10U);
  EXPECT_EQ(number_of<std::vector<double>>(), 12U);
}

TEST(GgufValue, PaddingReachesTheNextMultiple) {
  EXPECT_EQ(detail::gguf_padded(0, 32), 0U);
  EXPECT_EQ(detail::gguf_padded(1, 32), 32U);
  EXPECT_EQ(detail::gguf_padded(32, 32), 32U);
  EXPECT_EQ(detail::gguf_padded(5, 1), 5U);
}

}  // namespace
}  // namespace lora::gguf_value_test
