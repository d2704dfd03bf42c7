#include "lora/layers/multi_record.hpp"

#include <gtest/gtest.h>

#include "support/random_matrix.hpp"

namespace lora {
namespace {

TEST(MultiLoraRecord, IsUnfilledUntilAPassIsComplete) {
  MultiLoraRecord<float> record;
  EXPECT_EQ(record.rows(), -1);
  record.position = {7, 3};
  record.prepare(1);
  LoraRecord<float>& first = record.start(0, 42);
  EXPECT_EQ(first.position.step, 7U);
  EXPECT_EQ(first.position.first_row, 3);
  (void)first.prepare(5, 2);
  EXPECT_EQ(record.rows(), -1);
  record.finish(5);
  EXPECT_EQ(record.rows(), 5);
  EXPECT_EQ(record.size(), 1U);
  EXPECT_EQ(record.id(0), 42U);
  EXPECT_EQ(record.bytes(), 5 * 2 * sizeof(float));
}

TEST(MultiLoraRecord, ClearingForgetsThePassAndKeepsMemory) {
  MultiLoraRecord<float> record;
  record.prepare(2);
  const float* memory = record.start(0, 1).prepare(5, 2).data;
  record.finish(5);
  record.clear();
  EXPECT_EQ(record.rows(), -1);
  EXPECT_EQ(record.size(), 0U);
  EXPECT_EQ(record.bytes(), 0U);
  record.prepare(1);
  EXPECT_EQ(record.size(), 1U);
  LoraRecord<float>& again = record.start(0, 2);
  EXPECT_EQ(again.rows(), -1);
  EXPECT_EQ(again.prepare(5, 2).data, memory);
}

TEST(MultiLoraGradients, AddAdapterByAdapter) {
  using testing::random_matrix;
  MultiLoraGradients<double> one;
  for (const std::uint64_t i : {1U, 2U}) {
    LoraGradients<double> gradients;
    gradients.A = random_matrix<double>(2, 3, i);
    gradients.B = random_matrix<double>(4, 2, i);
    one.adapters.push_back(gradients);
  }
  MultiLoraGradients<double> sum = one;
  sum += one;
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(sum.adapters[i].A, 2 * one.adapters[i].A);
    EXPECT_EQ(sum.adapters[i].B, 2 * one.adapters[i].B);
  }
  EXPECT_EQ(sum.bytes(), 2 * (6 + 8) * sizeof(double));
  sum.set_zero();
  EXPECT_TRUE(sum.adapters[1].A.isZero(0));
}

}  // namespace
}  // namespace lora
