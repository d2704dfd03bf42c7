// The factors of a convolution, alone: their shapes, norms and sums.
#include "lora/layers/conv_adapter.hpp"

#include <gtest/gtest.h>

#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;

const ConvGeometry<2> geometry{.in_channels = 4, .out_channels = 6, .kernel = {3, 3}, .groups = 2};
const LoraConfig config{.rank = 4, .alpha = 2, .init_lora_weights = InitLoraWeights::random};

TEST(ConvAdapter, NormsAreThoseOfTheDenseSumOfEachGroup) {
  const ConvAdapter<double> adapter("test", geometry, config, 1);
  const auto w = random_matrix<double>(6, 18, 2);
  RowVector<double> norms(6);
  Workspace workspace;
  adapter.row_norms(view_of(w), norms.data(), workspace);
  for (Index g = 0; g < 2; ++g) {
    const Matrix<double> sum =
        w.middleRows(3 * g, 3) + 0.5 * adapter.B().middleRows(3 * g, 3) * adapter.A().middleRows(2 * g, 2);
    for (Index o = 0; o < 3; ++o) EXPECT_NEAR(norms[3 * g + o], sum.row(o).norm(), 1e-14 * sum.row(o).norm());
  }
}

TEST(ConvAdapter, FactorsOfARowWithoutDirectionAreOne) {
  ConvAdapter<double> adapter("test", geometry, {.rank = 4, .use_dora = true}, 1);
  Matrix<double> w = random_matrix<double>(6, 18, 2);
  w.row(4).setZero();
  adapter.start_magnitude(view_of(w));
  Workspace workspace;
  const double* factors = adapter.factors(view_of(w), workspace);
  for (Index o = 0; o < 6; ++o) EXPECT_EQ(factors[o], 1.0);
  EXPECT_EQ(adapter.magnitude()[4], 0.0);
}

TEST(ConvAdapter, ChannelSumsGoOverSamplesAndPositions) {
  const auto dy = random_matrix<double>(3, 6 * 11, 3);
  RowVector<double> sums = RowVector<double>::Ones(6);
  SerialExecutor executor;
  ConvAdapter<double>::add_channel_sums(view_of(dy), 2.0, sums, executor);
  for (Index o = 0; o < 6; ++o) EXPECT_NEAR(sums[o], 1 + 2 * dy.middleCols(o * 11, 11).sum(), 1e-13);
}

TEST(ConvAdapter, GradientsHaveItsShapes) {
  const ConvAdapter<float> adapter("test", geometry, config, 1);
  auto gradients = adapter.make_gradients(6);
  EXPECT_NO_THROW(adapter.check_gradients("test", gradients, 6));
  EXPECT_EQ(gradients.B.cols(), 2);
  EXPECT_THROW(adapter.check_gradients("test", gradients, 0), ShapeError);
  gradients.A.resize(2, 18);
  EXPECT_THROW(adapter.check_gradients("test", gradients, 6), ShapeError);
}

TEST(ConvAdapter, AScalingThatIsNotFiniteIsRefusedAndChangesNothing) {
  ConvAdapter<float> adapter("test", geometry, config, 1);
  EXPECT_THROW(adapter.set_alpha("test", 1e300), ConfigError);
  EXPECT_EQ(adapter.scaling(), 0.5F);
  adapter.set_alpha("test", 8);
  EXPECT_EQ(adapter.scaling(), 2.0F);
  EXPECT_THROW(ConvAdapter<float>("test", geometry, {.rank = 3}, 1), ConfigError);
  EXPECT_THROW(ConvAdapter<float>("test", geometry, {.rank = 4, .init_lora_weights = InitLoraWeights::orthogonal}, 1),
               ConfigError);
}

}  // namespace
}  // namespace lora
