// LoraEmbedding: a linear layer on one-hot rows, and on its transpose; merging; DoRA; ids; options.
#include "lora/layers/embedding.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/layers/linear.hpp"
#include "support/bits.hpp"
#include "support/embedding_case.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using Setting = testing::EmbeddingSetting;
template <class S>
using Case = testing::EmbeddingCase<S>;
using testing::linear_answer;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::Wide;
using testing::within_rounding;

const std::vector<Setting> settings = {{7, 10, 6, 2},  {12, 31, 16, 4}, {1, 1, 1, 1},   {0, 5, 3, 2},
                                       {40, 3, 49, 5}, {9, 100, 33, 8}, {300, 17, 7, 3}};

template <class S>
class EmbeddingLaws : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(EmbeddingLaws, Scalars);

TYPED_TEST(EmbeddingLaws, LookingUpIsALinearLayerOnOneHotRows) {
  for (const auto& setting : settings) {
    SCOPED_TRACE(::testing::Message() << setting.n << " of " << setting.v << " x " << setting.d);
    const Case<TypeParam> c(setting);
    auto layer = c.layer();
    const auto exact = linear_answer(c.as_linear());
    const auto size = linear_answer(c.as_linear(), true);
    EXPECT_TRUE(within_rounding(layer.infer(c.ids), exact.y, size.y, 2 * setting.r + 8));
    EXPECT_TRUE(within_rounding(layer.forward(c.ids), exact.y, size.y, 2 * setting.r + 8));
    layer.backward(c.dy);
    EXPECT_TRUE(within_rounding(layer.gradients().A, exact.da, size.da, setting.d + setting.n + 8));
    EXPECT_TRUE(within_rounding(layer.gradients().B, exact.db, size.db, setting.n + 8));
  }
}

TYPED_TEST(EmbeddingLaws, ProjectingIsALinearLayerWithTheTableAsWeight) {
  for (const auto& setting : settings) {
    SCOPED_TRACE(::testing::Message() << setting.n << " of " << setting.v << " x " << setting.d);
    const Case<TypeParam> c(setting);
    auto layer = c.layer();
    const auto exact = linear_answer(c.as_projection());
    const auto size = linear_answer(c.as_projection(), true);
    const Index terms = setting.d + 2 * setting.r + 8;
    EXPECT_TRUE(within_rounding(layer.project(c.x), exact.y, size.y, terms));
    EXPECT_TRUE(within_rounding(layer.project_forward(c.x), exact.y, size.y, terms));
    const Matrix<TypeParam> dx = layer.project_backward(c.dlogits);
    EXPECT_TRUE(within_rounding(dx, exact.dx, size.dx, setting.v + 2 * setting.r + 8));
    EXPECT_TRUE(
        within_rounding(layer.gradients().A, exact.db.transpose(), size.db.transpose(), setting.d + setting.n + 8));
    EXPECT_TRUE(
        within_rounding(layer.gradients().B, exact.da.transpose(), size.da.transpose(), setting.v + setting.n + 8));
  }
}

TYPED_TEST(EmbeddingLaws, BothUsesOfTheTableAddToOneGradient) {
  const Setting setting{12, 31, 16, 4};
  const Case<TypeParam> c(setting);
  auto layer = c.layer();
  (void)layer.forward(c.ids);
  (void)layer.project_forward(c.x);
  (void)layer.project_backward(c.dlogits);
  layer.backward(c.dy);
  const auto lookup = linear_answer(c.as_linear()), projection = linear_answer(c.as_projection());
  const auto lookup_size = linear_answer(c.as_linear(), true), projection_size = linear_answer(c.as_projection(), true);
  EXPECT_TRUE(within_rounding(layer.gradients().A, Matrix<Wide>(lookup.da + projection.db.transpose()),
                              Matrix<Wide>(lookup_size.da + projection_size.db.transpose()), 31 + 12 + 9));
  EXPECT_TRUE(within_rounding(layer.gradients().B, Matrix<Wide>(lookup.db + projection.da.transpose()),
                              Matrix<Wide>(lookup_size.db + projection_size.da.transpose()), 31 + 12 + 9));
  layer.zero_grad();
  EXPECT_EQ(layer.gradients().A.norm() + layer.gradients().B.norm(), TypeParam(0));
}

TYPED_TEST(EmbeddingLaws, ANewLayerIsItsTableBitForBit) {
  using S = TypeParam;
  const auto table = random_matrix<S>(20, 9, 1);
  const auto x = random_matrix<S>(4, 9, 2);
  const std::vector<int> ids = {3, 19, 0, 3};
  const LoraEmbedding<S> frozen(table, {.rank = 0}, 1);
  Matrix<S> rows(4, 9);
  for (Index i = 0; i < 4; ++i) rows.row(i) = table.row(ids[static_cast<std::size_t>(i)]);
  for (const bool dora : {false, true}) {
    for (const auto init : {InitLoraWeights::kaiming_uniform, InitLoraWeights::gaussian}) {
      const LoraEmbedding<S> layer(table, {.rank = 4, .alpha = 9, .use_dora = dora, .init_lora_weights = init}, 5);
      EXPECT_TRUE(same_bits(layer.infer(ids), rows));
      EXPECT_TRUE(same_bits(layer.project(x), frozen.project(x)));
      EXPECT_EQ(layer.lora_embedding_A().norm(), S(0));
      EXPECT_GT(layer.lora_embedding_B().norm(), S(0));
    }
  }
}

TYPED_TEST(EmbeddingLaws, MergingAddsTheDeltaAndIsUndoneBitForBit) {
  using S = TypeParam;
  for (const auto& setting : settings) {
    const Case<S> c(setting);
    auto layer = c.layer();
    const Matrix<S> delta = layer.delta_weight();
    for (int cycle = 0; cycle < 3; ++cycle) {
      layer.eval();
      EXPECT_TRUE(same_bits(layer.weight(), Matrix<S>(c.table + delta)));
      EXPECT_TRUE(same_bits(layer.base_weight(), c.table));
      EXPECT_TRUE(within_rounding(layer.infer(c.ids), linear_answer(c.as_linear()).y,
                                  linear_answer(c.as_linear(), true).y, 2 * setting.r + 8));
      EXPECT_TRUE(within_rounding(layer.project(c.x), linear_answer(c.as_projection()).y,
                                  linear_answer(c.as_projection(), true).y, setting.d + 2 * setting.r + 8));
      layer.train();
      EXPECT_TRUE(same_bits(layer.weight(), c.table));
    }
    EXPECT_EQ(layer.merge_bytes(), 0U);
  }
}

// DoRA.

// W_eff = (W + s A^T B^T) diag(m / n) by the dense formula.
template <class S>
Matrix<Wide> dense_dora(const Case<S>& c, const RowVector<S>& magnitude) {
  Matrix<Wide> adapted = c.table.template cast<Wide>();
  adapted += static_cast<Wide>(c.config.scaling()) *
             (c.a.transpose().template cast<Wide>() * c.b.transpose().template cast<Wide>());
  for (Index j = 0; j < adapted.cols(); ++j) adapted.col(j) *= magnitude[j] / adapted.col(j).norm();
  return adapted;
}

template <class S>
void expect_close(const Matrix<S>& ours, const Matrix<Wide>& exact, Index terms) {
  const Wide size = exact.cwiseAbs().maxCoeff();
  EXPECT_LE((ours.template cast<Wide>() - exact).cwiseAbs().maxCoeff(),
            static_cast<Wide>(terms) * std::numeric_limits<S>::epsilon() * size);
}

// Errors of norms, sums and products are some roundings of each of the v + d + r terms, whose cancellation is mild in
// these data: the sums lie within a factor of 10 of the sums of magnitudes.
TYPED_TEST(EmbeddingLaws, WithDoraBothUsesSeeTheNormalisedTable) {
  using S = TypeParam;
  for (const Setting& setting : {Setting{7, 10, 6, 2}, Setting{12, 31, 16, 4}, Setting{20, 100, 33, 3}}) {
    Case<S> c(setting);
    c.config.use_dora = true;
    auto layer = c.layer();
    const RowVector<S> magnitude = random_vector<S>(setting.d, 8).array() + S(2);
    layer.set_magnitude(magnitude);
    const Matrix<Wide> table = dense_dora(c, magnitude);
    const Index terms = 10 * (setting.v + setting.d + setting.r);
    const Matrix<Wide> rows = c.one_hot().template cast<Wide>() * table;
    const Matrix<Wide> logits = c.x.template cast<Wide>() * table.transpose();
    expect_close<S>(layer.infer(c.ids), rows, terms);
    expect_close<S>(layer.forward(c.ids), rows, terms);
    expect_close<S>(layer.project(c.x), logits, terms);
    expect_close<S>(layer.project_forward(c.x), logits, terms);
    layer.eval();
    expect_close<S>(layer.weight(), table, terms);
    expect_close<S>(layer.infer(c.ids), rows, terms);
    expect_close<S>(layer.project(c.x), logits, terms);
    EXPECT_TRUE(same_bits(layer.base_weight(), c.table));
    EXPECT_TRUE(same_bits(layer.train().weight(), c.table));
  }
}

// The same numbers through LoraLinear, whose own tests hold it to PEFT.
TEST(EmbeddingDora, GradientsAreThoseOfALinearLayerOnOneHotRows) {
  Case<double> c({12, 31, 16, 4});
  c.config.use_dora = true;
  const auto magnitude = random_vector<double>(16, 8);
  auto layer = c.layer();
  layer.set_magnitude(magnitude);
  LoraLinear<double> linear(c.table.transpose(), c.config, 1);
  linear.set_factors(c.a, c.b);
  linear.set_magnitude(magnitude);
  (void)layer.forward(c.ids);
  (void)linear.forward(c.one_hot());
  layer.backward(c.dy);
  linear.accumulate_gradients(c.dy);
  // Sums of at most 31 + 16 + 12 products, in two orders.
  const auto near = [](const auto& one, const auto& two) {
    return (one - two).cwiseAbs().maxCoeff() <= 100 * 2.3e-16 * two.cwiseAbs().maxCoeff();
  };
  EXPECT_TRUE(near(layer.gradients().A, linear.gradients().A));
  EXPECT_TRUE(near(layer.gradients().B, linear.gradients().B));
  EXPECT_TRUE(near(layer.gradients().magnitude, linear.gradients().magnitude));
}

// Ids.

TEST(LoraEmbedding, IdsComeInAnyIntegerTypeAndShape) {
  const Case<float> c({6, 31, 16, 4});
  const auto layer = c.layer();
  const Matrix<float> expected = layer.infer(c.ids);
  EXPECT_TRUE(same_bits(layer.infer(std::span<const std::int64_t>(c.ids)), expected));
  EXPECT_TRUE(same_bits(layer.infer(std::vector<std::int32_t>(c.ids.begin(), c.ids.end())), expected));
  EXPECT_TRUE(same_bits(layer.infer(std::vector<std::uint16_t>(c.ids.begin(), c.ids.end())), expected));
  Eigen::MatrixXi batch(2, 3);
  for (Index i = 0; i < 6; ++i) batch(i / 3, i % 3) = static_cast<int>(c.ids[static_cast<std::size_t>(i)]);
  EXPECT_TRUE(same_bits(layer.infer(batch), expected));
  EXPECT_TRUE(same_bits(layer.infer(batch.row(1)), expected.bottomRows(3)));
  EXPECT_TRUE(same_bits(layer.infer(batch * 1), expected));
}

TEST(LoraEmbedding, AnIdThatComesAgainAddsItsGradientAgain) {
  const Case<double> c({3, 10, 6, 2});
  auto layer = c.layer();
  const auto gradient_of = [&](const std::vector<int>& ids, const Matrix<double>& dy) {
    (void)layer.forward(ids);
    layer.zero_grad();
    layer.backward(dy);
    return layer.gradients();
  };
  const Matrix<double> dy = Matrix<double>::Ones(4, 6);
  const auto once = gradient_of({7}, dy.topRows(1));
  const auto again = gradient_of({7, 7, 7, 7}, dy);
  EXPECT_TRUE(same_bits(again.A, Matrix<double>(4 * once.A)));
  EXPECT_GT(once.A.col(7).norm(), 0);
  EXPECT_EQ(once.A.leftCols(7).norm() + once.A.rightCols(2).norm(), 0.0);
  EXPECT_LE((again.B - 4 * once.B).cwiseAbs().maxCoeff(), 4 * 2.3e-16 * again.B.cwiseAbs().maxCoeff());
}

TEST(LoraEmbedding, NoIdsAreAnEmptyBatch) {
  auto layer = Case<float>({0, 10, 6, 2}).layer();
  const Matrix<float> y = layer.forward(std::vector<int>{});
  EXPECT_EQ(y.rows(), 0);
  EXPECT_EQ(y.cols(), 6);
  layer.backward(y);
  EXPECT_EQ(layer.gradients().A.norm() + layer.gradients().B.norm(), 0.0F);
}

TEST(LoraEmbedding, PaddingHasAnAnswerButNoGradientInA) {
  const Case<double> c({4, 10, 6, 2});
  const std::vector<int> ids = {9, 2, 9, 4};
  auto plain = c.layer();
  for (const Index padding : {Index(9), Index(-1)}) {
    auto padded = c.layer(padding);
    EXPECT_EQ(padded.padding_idx(), std::optional<Index>(9));
    EXPECT_TRUE(same_bits(padded.forward(ids), plain.forward(ids)));
    plain.zero_grad();
    plain.backward(c.dy);
    padded.backward(c.dy);
    EXPECT_EQ(padded.gradients().A.col(9).norm(), 0.0);
    EXPECT_GT(plain.gradients().A.col(9).norm(), 0.0);
    EXPECT_TRUE(same_bits(padded.gradients().A.leftCols(9), plain.gradients().A.leftCols(9)));
    EXPECT_TRUE(same_bits(padded.gradients().B, plain.gradients().B));
  }
  EXPECT_EQ(plain.padding_idx(), std::nullopt);
}

// Options and handles.

TEST(LoraEmbedding, RankZeroIsAPlainTable) {
  const auto table = random_matrix<float>(10, 6, 1);
  LoraEmbedding<float> layer(table, {.rank = 0}, 1);
  EXPECT_TRUE(layer.parameters().empty());
  EXPECT_TRUE(same_bits(layer.forward(std::vector<int>{4}), table.row(4)));
  layer.backward(Matrix<float>::Ones(1, 6));
  const Matrix<float> logits = layer.project_forward(table);
  const Matrix<float> dx = layer.project_backward(logits);
  EXPECT_LT((dx - logits * table).norm(), 32 * 1.2e-7F * logits.norm() * table.norm());
  layer.eval();
  EXPECT_TRUE(same_bits(layer.weight(), table));
}

TEST(LoraEmbedding, OptionsThatMeanNothingForAnEmbeddingAreIgnoredAsInPeft) {
  const auto table = random_matrix<double>(10, 6, 1);
  LoraEmbedding<double> plain(table, {.rank = 2}, 7);
  LoraEmbedding<double> other(table,
                              {.rank = 2,
                               .dropout = 0.9,
                               .fan_in_fan_out = true,
                               .bias = BiasMode::all,
                               .init_lora_weights = InitLoraWeights::olora},
                              7);
  EXPECT_TRUE(same_bits(other.lora_embedding_B(), plain.lora_embedding_B()));
  const auto a = random_matrix<double>(2, 10, 3);
  plain.set_factors(a, plain.lora_embedding_B());
  other.set_factors(a, plain.lora_embedding_B());
  const std::vector<int> ids = {1, 2, 3};
  EXPECT_TRUE(same_bits(other.forward(ids), plain.forward(ids)));
  EXPECT_TRUE(same_bits(other.delta_weight(), plain.delta_weight()));
}

TEST(LoraEmbedding, RandomInitialisationStartsBothFactorsNormal) {
  const LoraEmbedding<double> layer(random_matrix<double>(500, 60, 1),
                                    {.rank = 8, .init_lora_weights = InitLoraWeights::random}, 7);
  // The mean square of n normal deviates lies within 5 sqrt(2 / n) of 1 but for a chance below 1e-6.
  EXPECT_NEAR(layer.lora_embedding_A().squaredNorm() / 4000, 1.0, 5 * std::sqrt(2.0 / 4000));
  EXPECT_NEAR(layer.lora_embedding_B().squaredNorm() / 480, 1.0, 5 * std::sqrt(2.0 / 480));
}

TEST(LoraEmbedding, ParametersCarryPeftsNames) {
  LoraEmbedding<float> layer(random_matrix<float>(10, 6, 1), {.rank = 2, .use_dora = true}, 1);
  const auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), 3U);
  EXPECT_EQ(parameters[0].name(), "lora_embedding_A");
  EXPECT_EQ(parameters[0].rows(), 2);
  EXPECT_EQ(parameters[0].cols(), 10);
  EXPECT_EQ(parameters[1].name(), "lora_embedding_B");
  EXPECT_EQ(parameters[1].rows(), 6);
  EXPECT_EQ(parameters[2].name(), "lora_magnitude_vector.weight");
  EXPECT_EQ(parameters[2].role(), ParameterRole::magnitude);
  EXPECT_EQ(layer.trainable_parameter_count(), 2 * 16 + 6);
  EXPECT_EQ(layer.parameter_bytes(), (60U + 2 * 16 + 2 * 6) * sizeof(float));
  layer.merge();
  EXPECT_THROW((void)parameters[0].value(), StateError);
}

TEST(LoraEmbedding, CopiesAreIndependentAndMovesKeepEverything) {
  const Case<double> c({4, 10, 6, 2});
  auto layer = c.layer();
  layer.eval();
  const Matrix<double> y = layer.infer(c.ids);
  auto copy = layer;
  copy.train();
  EXPECT_TRUE(same_bits(copy.weight(), c.table));
  EXPECT_TRUE(same_bits(layer.infer(c.ids), y));
  auto moved = std::move(layer);
  EXPECT_TRUE(same_bits(moved.infer(c.ids), y));
  EXPECT_TRUE(same_bits(moved.train().weight(), c.table));
}

TEST(LoraEmbedding, ResettingTheAdapterIsMakingTheLayerAnew) {
  const Case<double> c({4, 10, 6, 2});
  auto layer = c.layer();
  (void)layer.forward(c.ids);
  layer.backward(c.dy);
  EXPECT_THROW(layer.reset_adapter({.rank = 2, .lora_bias = true}, 5), ConfigError);
  EXPECT_EQ(layer.rank(), 2);
  EXPECT_TRUE(same_bits(layer.lora_embedding_A(), c.a));
  layer.reset_adapter({.rank = 3, .use_dora = true}, 5);
  const LoraEmbedding<double> anew(c.table, {.rank = 3, .use_dora = true}, 5);
  EXPECT_TRUE(same_bits(layer.lora_embedding_B(), anew.lora_embedding_B()));
  EXPECT_TRUE(same_bits(layer.magnitude(), anew.magnitude()));
  EXPECT_EQ(layer.gradients().A.norm(), 0.0);
  EXPECT_THROW(layer.backward(c.dy), StateError);
}

}  // namespace
}  // namespace lora
