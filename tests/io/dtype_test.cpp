// SPDX-License-Identifier: MIT
#include "lora/io/dtype.hpp"

#include <complex>
#include <cstdint>
#include <gtest/gtest.h>

namespace lora::dtype_test {
namespace {

static_assert(dtype_of<float> == Dtype::F32 && dtype_of<double> == Dtype::F64);
static_assert(dtype_of<std::int8_t> == Dtype::I8 && dtype_of<std::uint8_t> == Dtype::U8);
static_assert(dtype_of<std::int16_t> == Dtype::I16 && dtype_of<std::uint16_t> == Dtype::U16);
static_assert(dtype_of<std::int32_t> == Dtype::I32 && dtype_of<std::uint32_t> == Dtype::U32);
static_assert(dtype_of<std::int64_t> == Dtype::I64 && dtype_of<std::uint64_t> == Dtype::U64);
static_assert(dtype_of<bool> == Dtype::BOOL && dtype_of<std::complex<float>> == Dtype::C64);
static_assert(!StoredScalar<long double> && !StoredScalar<void*>);

TEST(Dtype, TableStandsAtTheEnumeratorsPositions) {
  for (std::size_t i = 0; i < dtype_table.size(); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(dtype_table[i].dtype), i);
    EXPECT_EQ(parse_dtype(dtype_table[i].name), dtype_table[i].dtype);
    EXPECT_EQ(name_of(dtype_table[i].dtype), dtype_table[i].name);
    EXPECT_EQ(bits_of(dtype_table[i].dtype), dtype_table[i].bits);
  }
}

TEST(Dtype, NamesAreMatchedWhole) {
  for (const std::string_view name : {"", "F33", "f32", "F32 ", "F6", "BF1", "F8_E4M3FN"}) {
    EXPECT_FALSE(parse_dtype(name)) << name;
  }
}

TEST(Dtype, BitsAreThoseInTheName) {
  EXPECT_EQ(bits_of(Dtype::BOOL), 8U);
  EXPECT_EQ(bits_of(Dtype::C64), 64U);
  for (const DtypeInfo& info : dtype_table) {
    if (info.dtype == Dtype::BOOL) continue;
    const auto digits = info.name.find_first_of("0123456789");
    EXPECT_EQ(std::to_string(info.bits),
              info.name.substr(digits, info.name.find_first_not_of("0123456789", digits) - digits));
  }
}

TEST(Dtype, ExactlyFourConvertToReal) {
  int count = 0;
  for (const DtypeInfo& info : dtype_table) count += converts_to_real(info.dtype) ? 1 : 0;
  EXPECT_EQ(count, 4);
  EXPECT_TRUE(converts_to_real(Dtype::F64) && converts_to_real(Dtype::F32) && converts_to_real(Dtype::F16) &&
              converts_to_real(Dtype::BF16));
}

}  // namespace
}  // namespace lora::dtype_test
