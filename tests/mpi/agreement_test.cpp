// SPDX-License-Identifier: MIT
// Agreement is silent; disagreement is one error, the same on every rank.
#include "lora/mpi/agreement.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "mpi/ranks.hpp"

namespace lora::testing::agreement_test {
namespace {

using mpi::require_agreement;

/// What the disagreement says, here; empty when there is none.
std::string disagreement(const std::string& name, const std::string& value) {
  try {
    require_agreement(world(), name, value);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return {};
}

std::string at_last_rank(const std::string& value, const std::string& otherwise) {
  return world().rank() == world().size() - 1 ? value : otherwise;
}

bool alone() { return world().size() == 1; }
/// One rank has nobody to disagree with.
std::string unless_alone(const std::string& text) { return alone() ? "" : text; }
std::string last() { return std::to_string(world().size() - 1); }

TEST(Agreement, OfEqualValues) {
  for (const std::string& value :
       {std::string(), std::string("42"), std::string(100000, 'x'), std::string("a\0b", 3)}) {
    EXPECT_EQ(disagreement("value", value), "");
  }
}

TEST(Agreement, ADifferenceNamesBothValuesOnEveryRank) {
  const std::string text = disagreement("seed", at_last_rank("43", "42"));
  EXPECT_EQ(text,
            unless_alone("lora::mpi::require_agreement: seed: expected '42' as on rank 0, got '43' on rank " + last()));
}

TEST(Agreement, ValuesOfOtherLengthDiffer) {
  const std::string text = disagreement("config", at_last_rank("", "{}"));
  EXPECT_EQ(text,
            unless_alone("lora::mpi::require_agreement: config: expected '{}' as on rank 0, got '' on rank " + last()));
  const std::string longer = disagreement("config", at_last_rank("{}x", "{}"));
  EXPECT_EQ(
      longer,
      unless_alone("lora::mpi::require_agreement: config: expected '{}' as on rank 0, got '{}x' on rank " + last()));
}

TEST(Agreement, OfLongValuesThePartWhereTheyPartIsShown) {
  const std::string before(1000, 'a');
  const std::string after(1000, 'b');
  const std::string text = disagreement("config", at_last_rank(before + "8" + after, before + "4" + after));
  const std::string a(40, 'a');
  const std::string b(39, 'b');
  EXPECT_EQ(text, unless_alone("lora::mpi::require_agreement: config: expected '..." + a + "4" + b +
                               "...' as on rank 0, got '..." + a + "8" + b + "...' on rank " + last()));
}

TEST(Agreement, OfSeveralTheFirstDifferenceCounts) {
  try {
    require_agreement(world(), {{"seed", "1"}, {"rank", at_last_rank("8", "4")}, {"alpha", at_last_rank("2", "1")}});
    EXPECT_TRUE(alone());
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(": rank: expected '4'"), std::string::npos) << error.what();
  }
}

TEST(Agreement, ListsOfOtherNamesDiffer) {
  std::vector<mpi::Agreed> list = {{"seed", "1"}};
  if (world().rank() == world().size() - 1) list.push_back({"alpha", "1"});
  if (alone()) {
    EXPECT_NO_THROW(require_agreement(world(), list));
  } else {
    EXPECT_THROW(require_agreement(world(), list), ConfigError);
  }
}

// Joined with commas both lists had the names "a, b", so ranks went on to values that the others never sent.
TEST(Agreement, ListsWhoseNamesReadTheSameWhenJoinedDiffer) {
  std::vector<mpi::Agreed> list = {{"a, b", "x"}};
  if (world().rank() == world().size() - 1) list = {{"a", "x"}, {"b", "y"}};
  if (alone()) {
    EXPECT_NO_THROW(require_agreement(world(), list));
  } else {
    EXPECT_THROW(require_agreement(world(), list), ConfigError);
  }
}

TEST(Agreement, LeavesNoMessageBehind) {
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(disagreement("even", at_last_rank(i % 2 == 0 ? "x" : "y", "x")).empty(), alone() || i % 2 == 0);
  }
}

}  // namespace
}  // namespace lora::testing::agreement_test
