// SPDX-License-Identifier: MIT
// Dropout bits: drawing them, and reading them.
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "lora/core/philox.hpp"
#include "lora/kernels/dropout_mask.hpp"
#include "lora/kernels/keep_bits.hpp"
#include "support/kernel_oracle.hpp"

namespace lora {
namespace {

using testing::supported_isas;

// Three rows of ten elements. Element (i, j) is kept where bit j of row i is set, lowest bit first.
constexpr std::array<std::uint8_t, 6> example_bytes = {0b00000001, 0b10, 0b10000000, 0b01, 0b11111111, 0b11};
constexpr DropoutMask<float> example{example_bytes.data(), 2, 1.25F};

TEST(DropoutMask, ReadsBitsFromTheLowestOn) {
  for (Index j = 0; j < 10; ++j) {
    EXPECT_EQ(example.keeps(0, j), j == 0 || j == 9) << j;
    EXPECT_EQ(example.keeps(1, j), j == 7 || j == 8) << j;
    EXPECT_TRUE(example.keeps(2, j)) << j;
  }
}

TEST(DropoutMask, RowsStartOnWholeBytes) {
  for (Index i = 0; i < 3; ++i) EXPECT_EQ(example.row(i), example_bytes.data() + 2 * i);
}

TEST(DropoutMask, FromRowIsTheRestOfTheSameMask) {
  for (Index first = 0; first < 3; ++first) {
    const auto rest = example.from_row(first);
    EXPECT_TRUE(rest.active());
    EXPECT_EQ(rest.scale, 1.25F);
    for (Index i = first; i < 3; ++i)
      for (Index j = 0; j < 10; ++j) EXPECT_EQ(rest.keeps(i - first, j), example.keeps(i, j));
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

TEST(KeepBits, EveryInstructionSetGivesTheWordsOfTheStreamAgainstTheThreshold) {
  for (const Isa isa : supported_isas()) {
    const auto kernel = kernels::keep_bits_kernel(isa);
    for (const std::uint32_t threshold : {0U, 1U, 0x19999999U, 0x80000000U, 0xFFFFFFFFU}) {
      for (const std::uint64_t first_block : {0ULL, 3ULL, (7ULL << 30U) + 5, (1ULL << 62U) + 1}) {
        for (const Index bytes : {0, 1, 7, 8, 9, 16, 63}) {
          const kernels::KeepBits keep{0x123456789ABCDEFULL, (5ULL << 32U) + 9, first_block, threshold};
          std::vector<std::uint8_t> bits(static_cast<std::size_t>(bytes));
          kernel(keep, bytes, bits.data());
          const RandomStream stream(keep.seed, keep.stream);
          for (std::size_t word = 0; word < 8 * bits.size(); ++word) {
            const bool kept = stream.block(first_block + word / 4)[word % 4] >= threshold;
            ASSERT_EQ((bits[word / 8] >> (word % 8)) & 1U, kept ? 1U : 0U) << isa_name(isa) << ", word " << word;
          }
        }
      }
    }
  }
}

TEST(KeepBits, KeepsTheExpectedShare) {
  constexpr double probability = 0.1;
  for (const Isa isa : supported_isas()) {
    std::vector<std::uint8_t> bits(1 << 15);
    kernels::keep_bits_kernel(isa)({1, 2, 0, static_cast<std::uint32_t>(probability * 0x1p32)},
                                   static_cast<Index>(bits.size()), bits.data());
    int kept = 0;
    for (const std::uint8_t byte : bits) kept += std::popcount(byte);
    const double n = 8.0 * static_cast<double>(bits.size());
    EXPECT_NEAR(kept / n, 1 - probability, 5 * std::sqrt(probability * (1 - probability) / n));
  }
}

}  // namespace
}  // namespace lora
