// The frozen weight of a convolution: exact merging by groups.
#include "lora/layers/frozen_conv.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

const ConvGeometry<1> geometry{.in_channels = 6, .out_channels = 9, .kernel = {4}, .groups = 3};

ConvAdapter<float> adapter(double alpha) {
  return {"test", geometry, {.rank = 6, .alpha = alpha, .init_lora_weights = InitLoraWeights::random}, 1};
}

TEST(FrozenConv, MergesTheUpdateOfEachGroupAndRestoresEveryBit) {
  const auto w = random_matrix<float>(9, 8, 2);
  FrozenConv<float, 1> weight("test", w, geometry);
  for (const double alpha : {0.01, 1.0, 1e6}) {  // the last is kept as a copy
    const auto updates = adapter(alpha);
    weight.merge("test", updates, {});
    EXPECT_TRUE(same_bits(weight.matrix(), Matrix<float>(w + weight.delta(updates))));
    EXPECT_TRUE(same_bits(weight.unmerged(), w));
    EXPECT_GT(weight.merge_bytes(), 0U);
    weight.unmerge();
    EXPECT_TRUE(same_bits(weight.matrix(), w));
    EXPECT_EQ(weight.merge_bytes(), 0U);
  }
}

TEST(FrozenConv, FactorsScaleTheirOwnRows) {
  const auto w = random_matrix<float>(9, 8, 2);
  FrozenConv<float, 1> weight("test", w, geometry);
  const auto updates = adapter(1);
  const std::vector<float> factors{1, 2, 3, 4, 5, 6, 7, 8, 9};
  weight.merge("test", updates, factors);
  const Matrix<float> sum = w + weight.delta(updates);
  for (Index o = 0; o < 9; ++o) {
    EXPECT_TRUE(same_bits(Matrix<float>(weight.matrix().row(o)), Matrix<float>(sum.row(o) * float(o + 1))));
  }
  weight.unmerge();
  EXPECT_TRUE(same_bits(weight.matrix(), w));
}

TEST(FrozenConv, AMergeThatFailsInALaterGroupUndoesTheEarlierOnes) {
  const auto w = random_matrix<float>(9, 8, 2);
  FrozenConv<float, 1> weight("test", w, geometry);
  auto updates = adapter(1);
  updates.B()(8, 0) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(weight.merge("test", updates, {}), StateError);
  EXPECT_TRUE(same_bits(weight.matrix(), w));
  EXPECT_EQ(weight.merge_bytes(), 0U);
}

TEST(FrozenConv, RefusesWeightsOfAnotherShapeAndBadGeometries) {
  EXPECT_THROW((FrozenConv<float, 1>("test", random_matrix<float>(9, 24, 1), geometry)), ShapeError);
  auto broken = geometry;
  broken.groups = 4;
  EXPECT_THROW((FrozenConv<float, 1>("test", random_matrix<float>(9, 8, 1), broken)), ConfigError);
}

}  // namespace
}  // namespace lora
