// What a convolution's record keeps, grows and forgets.
#include "lora/layers/conv_record.hpp"

#include <gtest/gtest.h>

namespace lora {
namespace {

TEST(ConvRecord, IsEmptyUntilAPassIsComplete) {
  ConvRecord<float, 2> record;
  EXPECT_EQ(record.samples(), -1);
  EXPECT_EQ(record.bytes(), 0U);
  const auto room = record.prepare(3, 2, 10, 0);
  EXPECT_EQ(record.samples(), -1);
  EXPECT_EQ(room.down.rows, 2);
  EXPECT_EQ(room.down.cols, 30);
  room.down(1, 29) = 7;
  record.keep(3, {5, 4}, 2, 10, 0);
  EXPECT_EQ(record.samples(), 3);
  EXPECT_EQ(record.extents(), (ImageExtents<2>{5, 4}));
  EXPECT_EQ(record.down_projection()(1, 29), 7);
  EXPECT_EQ(record.unscaled_output().cols, 0);
  EXPECT_EQ(record.bytes(), 4U * 60);
}

TEST(ConvRecord, WithDoraKeepsWhatTheMagnitudeMultiplies) {
  ConvRecord<double, 1> record;
  const auto room = record.prepare(2, 1, 5, 4);
  EXPECT_EQ(room.unscaled.rows, 2);
  EXPECT_EQ(room.unscaled.cols, 20);
  room.norms[3] = 9;
  record.keep(2, {7}, 1, 5, 4);
  EXPECT_EQ(record.row_norms()[3], 9);
  EXPECT_EQ(record.unscaled_output().cols, 20);
  EXPECT_EQ(record.bytes(), 8U * (10 + 40 + 4));
}

TEST(ConvRecord, ClearForgetsThePassAndKeepsTheMemory) {
  ConvRecord<float, 1> record;
  const auto* before = record.prepare(4, 4, 4, 0).down.data;
  record.keep(4, {4}, 4, 4, 0);
  record.clear();
  EXPECT_EQ(record.samples(), -1);
  EXPECT_EQ(record.bytes(), 0U);
  EXPECT_EQ(record.prepare(2, 4, 4, 0).down.data, before);
}

}  // namespace
}  // namespace lora
