// The factors of a layer of several projections: shapes, starting values, and the block structure of the update.
#include "lora/layers/merged_linear_adapter.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

constexpr Index k = 10, d = 12;

MergedLinearAdapter<double> make(std::vector<bool> enable_lora, const LoraConfig& config, std::uint64_t seed = 3) {
  return {"Layer", k, d, std::move(enable_lora), config, seed};
}

TEST(MergedLinearAdapter, ShapesCountTheEnabledProjections) {
  const auto two = make({true, false, true}, {.rank = 2});
  EXPECT_EQ(two.enabled(), 2);
  EXPECT_EQ(two.total_rank(), 4);
  EXPECT_EQ(two.A().rows(), 4);
  EXPECT_EQ(two.A().cols(), k);
  EXPECT_EQ(two.B().rows(), 8);
  EXPECT_EQ(two.B().cols(), 2);
  const auto four = make({true, true, true, true}, {.rank = 5});
  EXPECT_EQ(four.A().rows(), 20);
  EXPECT_EQ(four.B().rows(), d);
}

TEST(MergedLinearAdapter, ScalingIsThatOfOneProjection) {
  EXPECT_EQ(make({true, true, true}, {.rank = 4, .alpha = 6}).scaling(), 1.5);
  EXPECT_EQ(make({true, true, true}, {.rank = 4, .alpha = 6, .use_rslora = true}).scaling(), 3.0);
}

TEST(MergedLinearAdapter, StartsWithKaimingUniformAAndZeroB) {
  const auto adapter = make({true, true, false}, {.rank = 3});
  const double bound = 1.0 / std::sqrt(static_cast<double>(k));
  EXPECT_LE(adapter.A().cwiseAbs().maxCoeff(), bound);
  EXPECT_GT(adapter.A().cwiseAbs().maxCoeff(), 0.8 * bound);
  EXPECT_NE(adapter.A().topRows(3), adapter.A().bottomRows(3));
  EXPECT_EQ(adapter.B().cwiseAbs().maxCoeff(), 0.0);
  EXPECT_TRUE(same_bits(adapter.A(), make({true, true, false}, {.rank = 3}).A()));
  EXPECT_FALSE(same_bits(adapter.A(), make({true, true, false}, {.rank = 3}, 4).A()));
}

// The mean square of n normal deviates lies within 5 sqrt(2 / n) of the variance but for a chance below 1e-6.
TEST(MergedLinearAdapter, GaussianHasTheDeviationOfOneProjection) {
  const MergedLinearAdapter<double> adapter("Layer", 500, d, {true, true, true},
                                            {.rank = 4, .init_lora_weights = InitLoraWeights::gaussian}, 7);
  const auto n = static_cast<double>(adapter.A().size());
  EXPECT_NEAR(adapter.A().squaredNorm() / n * 16.0, 1.0, 5 * std::sqrt(2 / n));
  EXPECT_EQ(adapter.B().norm(), 0.0);
}

TEST(MergedLinearAdapter, RandomStartsBToo) {
  const auto adapter = make({true, false, true}, {.rank = 4, .init_lora_weights = InitLoraWeights::random});
  EXPECT_LE(adapter.B().cwiseAbs().maxCoeff(), 0.5);
  EXPECT_GT(adapter.B().cwiseAbs().minCoeff(), 0.0);
}

TEST(MergedLinearAdapter, ExpandedBHasItsBlocksWhereTheProjectionsAre) {
  auto adapter = make({true, false, true}, {.rank = 2});
  adapter.B() = random_matrix<double>(8, 2, 1);
  Matrix<double> expected = Matrix<double>::Zero(12, 4);
  expected.block(0, 0, 4, 2) = adapter.B().topRows(4);
  expected.block(8, 2, 4, 2) = adapter.B().bottomRows(4);
  EXPECT_TRUE(same_bits(adapter.expanded_B(), expected));
}

TEST(MergedLinearAdapter, InferenceAddsTheEnabledBlocksToWhatIsThere) {
  auto adapter = make({false, true, true}, {.rank = 2, .alpha = 2});
  adapter.B() = random_matrix<double>(8, 2, 1);
  const auto x = random_matrix<double>(5, k, 2);
  const auto base = random_matrix<double>(5, d, 3);
  Matrix<double> y = base;
  Workspace workspace;
  adapter.infer(view_of(x), view_of(y), workspace);
  EXPECT_TRUE(same_bits(y.leftCols(4), base.leftCols(4)));
  const Matrix<double> expected = base + x * adapter.A().transpose() * adapter.expanded_B().transpose();
  // At most 10 + 2 + 1 roundings of sums of 21 terms below 1.
  EXPECT_LE((y - expected).cwiseAbs().maxCoeff(), 13 * 21 * 2.3e-16);
}

template <class Body>
std::string config_error(const Body& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(MergedLinearAdapterErrors, NameTheOption) {
  EXPECT_EQ(config_error([] {
              make({true, false, true, true, true}, {.rank = 2});
            }),
            "Layer: enable_lora: expected a number of projections that divides out_features, 12, got 5");
  EXPECT_EQ(config_error([] {
              make({false, false}, {.rank = 2});
            }),
            "Layer: enable_lora: expected at least one enabled projection with rank 1 or more, got none");
  EXPECT_EQ(config_error([] { make({}, {.rank = 2}); }),
            "Layer: enable_lora: expected one entry for each projection, got none");
  EXPECT_EQ(config_error([] { make({true}, {.rank = -2}); }), "Layer: rank: expected 0 or more, got -2");
  EXPECT_EQ(config_error([] { make({true}, {.rank = 2, .lora_bias = true}); }),
            "Layer: lora_bias: expected false for this kind of layer, got true");
  EXPECT_EQ(config_error([] { make({true}, {.rank = 2, .use_dora = true}); }),
            "Layer: use_dora: expected false for this kind of layer, got true");
  EXPECT_EQ(config_error([] { make({true}, {.rank = 2, .init_lora_weights = InitLoraWeights::olora}); }),
            "Layer: init_lora_weights: expected kaiming_uniform, gaussian or random, got another");
  EXPECT_EQ(config_error([] { make({true}, {.rank = 2}).set_alpha("f", std::nan("")); }),
            "f: alpha: expected a finite number, got nan");
  EXPECT_EQ(config_error([] { make({false, false}, {.rank = 0}); }), "no error");
}

}  // namespace
}  // namespace lora
