#include "lora/layers/frozen_linear.hpp"

#include <gtest/gtest.h>
#include <string>

#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using Frozen = FrozenLinear<float, PackedWeight<float>>;

TEST(FrozenLinear, ReadsAndReturnsBothOrientationsOfMatricesBlocksAndExpressions) {
  const auto w = random_matrix<float>(6, 4, 1);
  const Eigen::MatrixXf columns = w;
  const Matrix<float> stored = w.transpose();
  Matrix<float> wide(6, 9);
  wide.middleCols(2, 4) = w;
  for (const auto& weight :
       {Frozen::weight_from(w, false), Frozen::weight_from(columns, false), Frozen::weight_from(stored, true),
        Frozen::weight_from(wide.middleCols(2, 4), false), Frozen::weight_from(0.5F * (w + w), false)}) {
    const auto write = [&](const MatrixView<float>& out) { read_back(weight, out); };
    const Frozen plain("test", weight, false);
    EXPECT_EQ(plain.out_features(), 6);
    EXPECT_EQ(plain.in_features(), 4);
    EXPECT_TRUE(same_bits(plain.oriented(write), w));
    EXPECT_TRUE(same_bits(Frozen("test", weight, true).oriented(write), stored));
  }
}

TEST(FrozenLinear, TakesABiasOfEitherShape) {
  const auto weight = Frozen::weight_from(random_matrix<float>(6, 4, 1), false);
  const auto bias = random_vector<float>(6, 2);
  const Eigen::VectorXf column = bias.transpose();
  EXPECT_TRUE(same_bits(Frozen("test", weight, bias, false).bias, bias));
  EXPECT_TRUE(same_bits(Frozen("test", weight, column, false).bias, bias));
  EXPECT_EQ(Frozen("test", weight, false).bias.size(), 0);
}

TEST(FrozenLinear, RefusesEmptyWeightsAndBiasesOfAnotherSize) {
  EXPECT_THROW(Frozen("test", PackedWeight<float>(), false), ShapeError);
  try {
    Frozen("test", Frozen::weight_from(random_matrix<float>(6, 4, 1), false), random_vector<float>(5, 2), false);
    ADD_FAILURE() << "took a short bias";
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "test: bias: expected 6 elements, got 5");
  }
}

}  // namespace
}  // namespace lora
