// SPDX-License-Identifier: MIT
#include "lora/weight/low_rank_update.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "support/bits.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace low_rank_update_test {
namespace {

using testing::random_matrix;
using testing::same_bits;

template <class Scalar>
class LowRankUpdateLaws : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LowRankUpdateLaws, Scalars);

// Rows of 256 are padded where they are copied.
TYPED_TEST(LowRankUpdateLaws, IsTheScaledProductOfTheFactors) {
  for (const Index in_features : {45, 256}) {
    for (const Index rank : {1, 2, 7, 16}) {
      const auto a = random_matrix<TypeParam>(rank, in_features, 1);
      const auto b = random_matrix<TypeParam>(38, rank, 2);
      Matrix<TypeParam> delta(38, in_features);
      write_delta(LowRankUpdate<TypeParam>{view_of(a), view_of(b), TypeParam(0.3)}, view_of(delta));
      const auto scale = static_cast<testing::Wide>(TypeParam(0.3));
      const Matrix<testing::Wide> exact = scale * b.template cast<testing::Wide>() * a.template cast<testing::Wide>();
      const Matrix<testing::Wide> size =
          scale * b.cwiseAbs().template cast<testing::Wide>() * a.cwiseAbs().template cast<testing::Wide>();
      EXPECT_TRUE(testing::within_rounding(delta, exact, size, rank + 2));
    }
  }
}

// The same element has the same bits whether lines are outputs or inputs, and wherever a piece begins.
TYPED_TEST(LowRankUpdateLaws, EveryWayOfEvaluatingItGivesTheSameBits) {
  for (const Index rank : {1, 3, 8, 21}) {
    const auto a = random_matrix<TypeParam>(rank, 45, 1);
    const auto b = random_matrix<TypeParam>(38, rank, 2);
    const LowRankUpdate<TypeParam> update{view_of(a), view_of(b), TypeParam(0.7)};
    Matrix<TypeParam> whole(38, 45);
    write_delta(update, view_of(whole));
    const DeltaSource<TypeParam> by_input(update, false);
    Matrix<TypeParam> transposed(45, 38);
    by_input.evaluate(0, 45, 0, 38, transposed.data());
    EXPECT_TRUE(same_bits(transposed.transpose().eval(), whole));
    const DeltaSource<TypeParam> by_output(update, true);
    for (const Index first : {0, 1, 5, 17}) {
      for (const Index length : {1, 3, 16, 28}) {
        Matrix<TypeParam> piece(4, length);
        by_output.evaluate(9, 4, first, length, piece.data());
        EXPECT_TRUE(same_bits(piece, whole.block(9, first, 4, length)));
      }
    }
  }
}

}  // namespace
}  // namespace low_rank_update_test
}  // namespace lora
