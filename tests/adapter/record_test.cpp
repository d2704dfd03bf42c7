#include "lora/adapter/record.hpp"

#include <cstddef>
#include <gtest/gtest.h>
#include <utility>

namespace {

using lora::Index;
using lora::LoraRecord;

template <class Scalar>
void fill(LoraRecord<Scalar>& record, Index rows, Index rank, Index cols) {
  record.prepare(rows, rank).map().setOnes();
  lora::SerialExecutor executor;
  record.dropout_bits().draw(0.1, 1, record.position, rows, cols, executor);
}

TEST(LoraRecord, IsEmptyBeforeTheFirstPass) {
  const LoraRecord<float> record;
  EXPECT_EQ(record.rows(), -1);
  EXPECT_EQ(record.position.step, 0U);
  EXPECT_EQ(record.position.first_row, 0);
}

TEST(LoraRecord, KeepsUAsRowsByRank) {
  LoraRecord<float> record;
  const auto u = record.prepare(3, 2);
  for (Index i = 0; i < 3; ++i)
    for (Index p = 0; p < 2; ++p) u(i, p) = static_cast<float>(10 * i + p);
  const auto kept = record.down_projection();
  EXPECT_EQ(record.rows(), 3);
  ASSERT_EQ(kept.rows, 3);
  ASSERT_EQ(kept.cols, 2);
  EXPECT_TRUE(kept.row_major());
  EXPECT_EQ(kept.data, u.data);
  EXPECT_EQ(kept(2, 1), 21);
}

TEST(LoraRecord, ShowsTheLastPassWhateverTheOneBefore) {
  LoraRecord<double> record;
  for (const auto& [rows, rank] : {std::pair<Index, Index>{5, 4}, {2, 3}, {7, 1}, {0, 4}, {5, 0}}) {
    (void)record.prepare(rows, rank);
    EXPECT_EQ(record.rows(), rows);
    EXPECT_EQ(record.down_projection().rows, rows);
    EXPECT_EQ(record.down_projection().cols, rank);
  }
}

// 4 N r + N ceil(k / 8), and no more: X itself is the caller's.
TEST(LoraRecord, BytesAreFourPerElementOfUAndOneBitPerElementOfX) {
  for (const Index rows : {0, 1, 5, 32}) {
    for (const Index rank : {1, 3, 8}) {
      for (const Index cols : {1, 7, 8, 9, 64, 100}) {
        LoraRecord<float> record;
        fill(record, rows, rank, cols);
        EXPECT_EQ(record.bytes(), static_cast<std::size_t>(4 * rows * rank + rows * ((cols + 7) / 8)));
      }
    }
  }
}

TEST(LoraRecord, BytesAreEightPerElementOfUInDouble) {
  LoraRecord<double> record;
  fill(record, 5, 3, 9);
  EXPECT_EQ(record.bytes(), 8U * 5 * 3 + 5 * 2);
}

TEST(LoraRecord, BytesWithoutDropoutAreThoseOfU) {
  LoraRecord<float> record;
  (void)record.prepare(5, 3);
  EXPECT_EQ(record.bytes(), 4U * 5 * 3);
}

TEST(LoraRecord, BytesCountTheLastPassNotTheLargest) {
  LoraRecord<float> record;
  fill(record, 32, 8, 100);
  fill(record, 2, 8, 100);
  EXPECT_EQ(record.bytes(), 4U * 2 * 8 + 2 * 13);
}

TEST(LoraRecord, BytesForgetTheDropoutOfAnEarlierPass) {
  LoraRecord<float> record;
  fill(record, 32, 8, 100);
  record.clear();
  EXPECT_EQ(record.rows(), -1);
  EXPECT_EQ(record.bytes(), 0U);
  (void)record.prepare(2, 8);
  EXPECT_EQ(record.bytes(), 4U * 2 * 8);
}

// With DoRA: Z, rows x out_features, and a norm for each output. 4 (N + 1) d more.
TEST(LoraRecord, KeepsTheUnscaledOutputAndTheNormsOnceTheyAreComplete) {
  LoraRecord<float> record;
  (void)record.prepare(3, 2);
  EXPECT_EQ(record.unscaled_output().cols, 0);
  const auto made = record.prepare_outputs(5);
  EXPECT_EQ(made.unscaled.rows, 3);
  EXPECT_EQ(made.unscaled.cols, 5);
  made.unscaled.map().setConstant(7);
  for (Index j = 0; j < 5; ++j) made.norms[j] = static_cast<float>(j);
  EXPECT_EQ(record.unscaled_output().cols, 0);
  EXPECT_EQ(record.bytes(), 4U * 3 * 2);
  record.keep_outputs(5);
  EXPECT_EQ(record.unscaled_output().map(), (lora::Matrix<float>::Constant(3, 5, 7)));
  EXPECT_EQ(record.row_norms()[4], 4);
  EXPECT_EQ(record.bytes(), 4U * (3 * 2 + 4 * 5));
}

TEST(LoraRecord, ForgetsTheUnscaledOutputOfAnEarlierPass) {
  LoraRecord<double> record;
  (void)record.prepare(3, 2);
  (void)record.prepare_outputs(5);
  record.keep_outputs(5);
  (void)record.prepare(3, 2);
  EXPECT_EQ(record.unscaled_output().cols, 0);
  record.keep_outputs(5);
  record.clear();
  EXPECT_EQ(record.unscaled_output().cols, 0);
  EXPECT_EQ(record.bytes(), 0U);
}

TEST(LoraRecord, CopiesAreApart) {
  LoraRecord<float> record;
  fill(record, 4, 2, 9);
  LoraRecord<float> copy = record;
  copy.prepare(4, 2).map().setConstant(7);
  EXPECT_EQ(record.down_projection()(3, 1), 1);
  EXPECT_EQ(copy.down_projection()(3, 1), 7);
}

}  // namespace
