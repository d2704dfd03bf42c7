// SPDX-License-Identifier: MIT
// Laws of the division of a batch.
#include "lora/mpi/shard.hpp"

#include <gtest/gtest.h>

namespace lora::testing::shard_test {
namespace {

using mpi::Shard;
using mpi::shard;

TEST(Shard, ShardsAreTheBatchInOrder) {
  for (Index total = 0; total < 40; ++total) {
    for (int size = 1; size < 10; ++size) {
      Index next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Shard part = shard(total, rank, size);
        EXPECT_EQ(part.begin, next);
        next = part.end();
      }
      EXPECT_EQ(next, total);
    }
  }
}

TEST(Shard, CountsDifferByOneAtMostAndNeverGrow) {
  for (Index total = 0; total < 40; ++total) {
    for (int size = 1; size < 10; ++size) {
      for (int rank = 1; rank < size; ++rank)
        EXPECT_LE(shard(total, rank, size).count, shard(total, rank - 1, size).count);
      EXPECT_LE(shard(total, 0, size).count - shard(total, size - 1, size).count, 1);
    }
  }
}

TEST(Shard, Examples) {
  EXPECT_EQ(shard(10, 0, 4), (Shard{0, 3}));
  EXPECT_EQ(shard(10, 1, 4), (Shard{3, 3}));
  EXPECT_EQ(shard(10, 2, 4), (Shard{6, 2}));
  EXPECT_EQ(shard(10, 3, 4), (Shard{8, 2}));
  EXPECT_EQ(shard(2, 3, 4), (Shard{2, 0}));
}

TEST(Shard, OfNumbersBeyondAnInt) {
  const Index total = Index{1} << 40;
  EXPECT_EQ(shard(total, 63, 64), (Shard{63 * (total / 64), total / 64}));
}

TEST(Shard, RefusesWhatIsNoRank) {
  EXPECT_THROW(static_cast<void>(shard(10, -1, 4)), ConfigError);
  EXPECT_THROW(static_cast<void>(shard(10, 4, 4)), ConfigError);
  EXPECT_THROW(static_cast<void>(shard(10, 0, 0)), ConfigError);
  EXPECT_THROW(static_cast<void>(shard(-1, 0, 4)), ConfigError);
}

}  // namespace
}  // namespace lora::testing::shard_test
