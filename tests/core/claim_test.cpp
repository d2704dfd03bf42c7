// SPDX-License-Identifier: MIT
#include "lora/core/claim.hpp"

#include <gtest/gtest.h>
#include <memory>
#include <utility>

namespace lora::testing::claim_test {
namespace {

using Token = std::shared_ptr<const void>;

TEST(Claim, LastsAsLongAsItsOwner) {
  Token first = std::make_shared<int>();
  const Token second = std::make_shared<int>();
  Claim claim;
  EXPECT_TRUE(claim.free_for(first) && claim.free_for(second));
  claim.take(first);
  EXPECT_TRUE(claim.free_for(first));
  EXPECT_FALSE(claim.free_for(second));
  EXPECT_TRUE(claim.held_by(first));
  EXPECT_FALSE(claim.held_by(second) || claim.held_by(nullptr));
  first.reset();
  EXPECT_TRUE(claim.free_for(second));
  EXPECT_FALSE(claim.held_by(nullptr));
}

TEST(Claim, StaysAtItsPlace) {
  const Token owner = std::make_shared<int>();
  const Token other = std::make_shared<int>();
  Claim claimed;
  claimed.take(owner);
  const Claim copy = claimed;
  EXPECT_TRUE(copy.free_for(other));
  Claim free;
  std::swap(claimed, free);
  EXPECT_FALSE(claimed.free_for(other));
  EXPECT_TRUE(free.free_for(other));
  claimed = Claim();
  EXPECT_FALSE(claimed.free_for(other));
}

}  // namespace
}  // namespace lora::testing::claim_test
