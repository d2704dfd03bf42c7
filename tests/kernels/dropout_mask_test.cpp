#include "lora/kernels/dropout_mask.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>

namespace {

using lora::DropoutMask;
using lora::Index;

// Three rows of ten elements. Element (i, j) is kept where bit j of row i is set, lowest bit first.
constexpr std::array<std::uint8_t, 6> bytes = {0b00000001, 0b10, 0b10000000, 0b01, 0b11111111, 0b11};
constexpr DropoutMask<float> mask{bytes.data(), 2, 1.25F};

TEST(DropoutMask, ReadsBitsFromTheLowestOn) {
  for (Index j = 0; j < 10; ++j) {
    EXPECT_EQ(mask.keeps(0, j), j == 0 || j == 9) << j;
    EXPECT_EQ(mask.keeps(1, j), j == 7 || j == 8) << j;
    EXPECT_TRUE(mask.keeps(2, j)) << j;
  }
}

TEST(DropoutMask, RowsStartOnWholeBytes) {
  for (Index i = 0; i < 3; ++i) EXPECT_EQ(mask.row(i), bytes.data() + 2 * i);
}

TEST(DropoutMask, FromRowIsTheRestOfTheSameMask) {
  for (Index first = 0; first < 3; ++first) {
    const auto rest = mask.from_row(first);
    EXPECT_TRUE(rest.active());
    EXPECT_EQ(rest.scale, 1.25F);
    for (Index i = first; i < 3; ++i)
      for (Index j = 0; j < 10; ++j) EXPECT_EQ(rest.keeps(i - first, j), mask.keeps(i, j));
  }
}

TEST(DropoutMask, WithoutBitsEverythingIsKeptUnscaled) {
  const DropoutMask<double> none;
  EXPECT_FALSE(none.active());
  EXPECT_EQ(none.scale, 1.0);
  EXPECT_TRUE(none.keeps(1000, 1000));
  EXPECT_FALSE(none.from_row(5).active());
  EXPECT_EQ(none.from_row(5).scale, 1.0);
}

}  // namespace
