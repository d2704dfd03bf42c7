// SPDX-License-Identifier: MIT
#include "sentence_encoder/batch_order.hpp"

#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>
#include <vector>

namespace batch_order_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test

std::vector<Index> rows_of(BatchOrder& order, Index first_step, Index steps) {
  std::vector<Index> rows;
  for (Index step = first_step; step < first_step + steps; ++step) {
    const auto batch = order.batch(step);
    rows.insert(rows.end(), batch.begin(), batch.end());
  }
  return rows;
}

TEST(BatchOrder, AnEpochIsAPermutation) {
  BatchOrder order(103, 10, 1);
  EXPECT_EQ(order.per_epoch(), 11);
  EXPECT_EQ(order.batch(10).size(), 3U);
  std::vector<Index> all(103);
  std::iota(all.begin(), all.end(), Index{0});
  for (Index epoch = 0; epoch < 3; ++epoch) {
    auto rows = rows_of(order, epoch * 11, 11);
    EXPECT_NE(rows, all);
    std::sort(rows.begin(), rows.end());
    EXPECT_EQ(rows, all);
  }
}

TEST(BatchOrder, EpochsAndSeedsDiffer) {
  BatchOrder a(50, 50, 1);
  BatchOrder b(50, 50, 2);
  EXPECT_NE(rows_of(a, 0, 1), rows_of(a, 1, 1));
  EXPECT_NE(rows_of(a, 0, 1), rows_of(b, 0, 1));
}

TEST(BatchOrder, AnyStepCanBeTheFirst) {
  BatchOrder whole(37, 5, 9);
  const auto all = rows_of(whole, 0, 40);
  for (const Index step : {0, 1, 7, 8, 9, 30}) {
    BatchOrder late(37, 5, 9);
    const auto batch = late.batch(step);
    BatchOrder again(37, 5, 9);
    const auto expected = rows_of(again, 0, step + 1);
    EXPECT_TRUE(std::equal(batch.begin(), batch.end(), expected.end() - static_cast<std::ptrdiff_t>(batch.size())));
  }
}

TEST(BatchOrder, RefusesNothing) {
  EXPECT_THROW(BatchOrder(0, 5, 1), lora::ConfigError);
  EXPECT_THROW(BatchOrder(5, 0, 1), lora::ConfigError);
}

}  // namespace
}  // namespace batch_order_test
