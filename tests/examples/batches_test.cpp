// SPDX-License-Identifier: MIT
// Every epoch visits every image, in an order the seed fixes.
#include "common/batches.hpp"

#include <gtest/gtest.h>
#include <vector>

namespace batches_test {
namespace {

using examples::Batches;
using examples::ImageSet;

/// `count` images of one pixel, each with its own value.
ImageSet numbered(std::uint8_t count) {
  ImageSet set{1, 1, {}, {}};
  for (std::uint8_t i = 0; i < count; ++i) {
    set.pixels.push_back(i);
    set.labels.push_back(i);
  }
  return set;
}

std::vector<std::uint8_t> epoch(Batches& batches) {
  std::vector<std::uint8_t> labels;
  for (examples::Index b = 0; b < batches.per_epoch(); ++b) {
    const auto& batch = batches.next();
    labels.insert(labels.end(), batch.labels.begin(), batch.labels.end());
  }
  return labels;
}

TEST(Batches, VisitEveryImageOnceAnEpoch) {
  const ImageSet set = numbered(60);
  Batches batches(set, 12, 1);
  auto labels = epoch(batches);
  EXPECT_NE(labels, set.labels) << "not shuffled";
  std::sort(labels.begin(), labels.end());
  EXPECT_EQ(labels, set.labels);
}

TEST(Batches, LeaveOutARestOfAnEpoch) {
  const ImageSet set = numbered(60);
  Batches batches(set, 25, 1);
  EXPECT_EQ(batches.per_epoch(), 2);
  EXPECT_EQ(epoch(batches).size(), 50U);
}

TEST(Batches, ComeInAnOrderThatTheSeedFixesAndTheEpochChanges) {
  const ImageSet set = numbered(60);
  Batches first(set, 20, 1);
  Batches same(set, 20, 1);
  Batches other(set, 20, 2);
  const auto labels = epoch(first);
  EXPECT_EQ(labels, epoch(same));
  EXPECT_NE(labels, epoch(other));
  EXPECT_NE(labels, epoch(first));
}

TEST(Batches, MapPixelsToMinusOneToOne) {
  const ImageSet set{1, 2, {0, 255}, {5}};
  Batches batches(set, 1, 0);
  const auto& batch = batches.next();
  EXPECT_EQ(batch.x(0, 0), -1.0F);
  EXPECT_EQ(batch.x(0, 1), 1.0F);
  EXPECT_EQ(batch.labels[0], 5);
}

TEST(Batches, RefuseASizeThatNoBatchCanHave) {
  const ImageSet set = numbered(3);
  EXPECT_THROW(Batches(set, 4, 0), lora::ConfigError);
  EXPECT_THROW(Batches(set, 0, 0), lora::ConfigError);
}

}  // namespace
}  // namespace batches_test
