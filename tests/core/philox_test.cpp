// SPDX-License-Identifier: MIT
#include "lora/core/philox.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <set>

namespace {

using Block = std::array<std::uint32_t, 4>;
using Key = std::array<std::uint32_t, 2>;

// Random123's kat_vectors, lines "philox4x32 10".
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(lora::philox4x32(Block{0, 0, 0, 0}, Key{0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(lora::philox4x32(Block{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, Key{0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(lora::philox4x32(Block{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, Key{0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, IsUsableAtCompileTime) { static_assert(lora::philox4x32(Block{0, 0, 0, 0}, Key{0, 0})[0] == 0x6627e8d5); }

TEST(RandomStream, PutsBlockInTheLowWordsAndStreamInTheHighWords) {
  const lora::RandomStream stream(0x299f31d0a4093822, 0x0370734413198a2e);
  EXPECT_EQ(stream.block(0x85a308d3243f6a88), (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, SeedsStreamsAndBlocksAreAllDistinct) {
  std::set<Block> seen;
  for (const std::uint64_t seed : {0ULL, 1ULL, 1ULL << 32U})
    for (const std::uint64_t stream : {0ULL, 1ULL, 1ULL << 63U})
      for (const std::uint64_t block : {0ULL, 1ULL, 1ULL << 40U})
        seen.insert(lora::RandomStream(seed, stream).block(block));
  EXPECT_EQ(seen.size(), 27U);
}

}  // namespace
