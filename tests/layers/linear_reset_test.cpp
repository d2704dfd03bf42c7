// Adapters that come and go on one layer, and those that start from its weight.
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "lora/layers/linear.hpp"
#include "lora/optim/adamw.hpp"
#include "support/bits.hpp"
#include "support/golden.hpp"
#include "support/layer_kinds.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::Golden;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

template <class Kind>
class LinearReset : public ::testing::Test {};
TYPED_TEST_SUITE(LinearReset, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(LinearReset, AFrozenLayerGainsTheAdapterItWouldHaveBeenMadeWith) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(9, 13, 1);
  const auto bias = random_vector<Scalar>(9, 2);
  const auto x = random_matrix<Scalar>(5, 13, 3);
  for (const auto init : {InitLoraWeights::random, InitLoraWeights::orthogonal, InitLoraWeights::pissa}) {
    const LoraConfig config{
        .rank = 4, .dropout = 0.2, .use_dora = true, .bias = BiasMode::all, .init_lora_weights = init};
    auto made = TypeParam::make(w, bias, config, 7);
    auto reset = TypeParam::make(w, bias, {.rank = 0}, 1);
    reset.layer->reset_adapter(config, 7);
    EXPECT_EQ(reset.layer->seed(), 7U);
    EXPECT_EQ(reset.layer->parameters().size(), 4U);
    EXPECT_TRUE(same_bits(reset.layer->lora_A(), made.layer->lora_A()));
    EXPECT_TRUE(same_bits(reset.layer->magnitude(), made.layer->magnitude()));
    EXPECT_TRUE(same_bits(reset.layer->weight(), made.layer->weight()));
    EXPECT_TRUE(same_bits(reset.layer->forward(x), made.layer->forward(x)));
  }
}

TYPED_TEST(LinearReset, NothingOfTheFormerAdapterStays) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(9, 13, 1);
  const auto x = random_matrix<Scalar>(5, 13, 3);
  auto made = TypeParam::make(w, {}, {.rank = 4, .dropout = 0.2, .use_dora = true});
  auto& layer = *made.layer;
  AdamW<Scalar> optimizer;
  (void)layer.backward(layer.forward(x));
  optimizer.step(layer.parameters());
  layer.reset_adapter({.rank = 4}, 2);
  EXPECT_EQ(layer.dropout_step(), 0U);
  EXPECT_EQ(layer.magnitude().size(), 0);
  ASSERT_EQ(layer.parameters().size(), 2U);
  for (const auto& parameter : layer.parameters()) {
    EXPECT_EQ(parameter.gradient().norm(), Scalar(0));
    EXPECT_EQ(parameter.moments().steps, 0);
  }
  EXPECT_THROW(layer.accumulate_gradients(random_matrix<Scalar>(5, 9, 4)), StateError);
  EXPECT_TRUE(same_bits(layer.infer(x), TypeParam::make(w, {}, {.rank = 0}).layer->infer(x)));
  layer.reset_adapter({.rank = 0}, 2);
  EXPECT_TRUE(layer.parameters().empty());
  layer.reset_adapter({.rank = 2, .init_lora_weights = InitLoraWeights::random}, 3);
  EXPECT_TRUE(same_bits(layer.eval().train().weight(), w));
}

TYPED_TEST(LinearReset, ARefusalChangesNothing) {
  using Scalar = typename TypeParam::Scalar;
  for (const bool transposed : {false, true}) {
    auto made =
        TypeParam::make(random_matrix<Scalar>(9, 13, 1), {},
                        {.rank = 4, .fan_in_fan_out = transposed, .init_lora_weights = InitLoraWeights::random});
    auto& layer = *made.layer;
    const auto x = random_matrix<Scalar>(5, 13, 3);
    const Matrix<Scalar> y = layer.forward(x);
    LoraConfig fits{.rank = 2, .fan_in_fan_out = transposed};
    LoraConfig turned{.rank = 2, .fan_in_fan_out = !transposed};
    LoraConfig too_large{.rank = 10, .fan_in_fan_out = transposed, .init_lora_weights = InitLoraWeights::pissa};
    LoraConfig negative{.rank = -1, .fan_in_fan_out = transposed};
    EXPECT_THROW(layer.reset_adapter(turned, 2), ConfigError);
    EXPECT_THROW(layer.reset_adapter(too_large, 2), ConfigError);
    EXPECT_THROW(layer.reset_adapter(negative, 2), ConfigError);
    layer.merge();
    EXPECT_THROW(layer.reset_adapter(fits, 2), StateError);
    layer.unmerge();
    EXPECT_EQ(layer.rank(), 4);
    EXPECT_TRUE(same_bits(layer.infer(x), y));
    EXPECT_NO_THROW(layer.accumulate_gradients(y));
  }
}

TEST(LinearResetErrors, AReadOnlyWeightRefusesAResidualAndKeepsItsAdapter) {
  const Matrix<float> w = random_matrix<float>(9, 13, 1);
  LoraLinear<float, DenseWeight<float>> layer(w, {.rank = 3}, 1);
  EXPECT_THROW(layer.reset_adapter({.rank = 3, .init_lora_weights = InitLoraWeights::olora}, 2), StateError);
  EXPECT_EQ(layer.seed(), 1U);
  using Layer = LoraLinear<float, DenseWeight<float>>;
  EXPECT_THROW(Layer(w, {.rank = 3, .init_lora_weights = InitLoraWeights::pissa}, 1), StateError);
}

TYPED_TEST(LinearReset, ALayerThatStartsFromItsWeightAnswersAsItsBaseMergedAndNot) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(20, 30, 1);
  const auto x = random_matrix<Scalar>(5, 30, 3);
  const Matrix<Scalar> y = x * w.transpose();
  const Scalar bound = 64 * std::numeric_limits<Scalar>::epsilon() * w.norm() * x.norm();
  for (const auto init : {InitLoraWeights::pissa, InitLoraWeights::olora, InitLoraWeights::orthogonal}) {
    for (const Index iterations : {0, 2}) {
      for (const bool transposed : {false, true}) {
        auto made = TypeParam::make(w, {},
                                    {.rank = 4,
                                     .alpha = 8,
                                     .fan_in_fan_out = transposed,
                                     .init_lora_weights = init,
                                     .pissa_niter = iterations});
        auto& layer = *made.layer;
        const Matrix<Scalar> residual = layer.weight();
        EXPECT_EQ(residual.rows(), transposed ? 30 : 20);
        EXPECT_LE((layer.infer(x) - y).norm(), bound);
        layer.eval();
        EXPECT_LE((layer.infer(x) - y).norm(), bound);
        EXPECT_TRUE(same_bits(layer.base_weight(), residual));
        EXPECT_TRUE(same_bits(layer.train().weight(), residual));
      }
    }
  }
}

// PEFT's numbers: float, and a decomposition that is unique up to signs.
class InitGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(InitGolden, AgreesWithPeft) {
  const auto golden = Golden::load(testing::golden_path("init_" + GetParam()));
  const auto& lora = golden.description().at("lora");
  const auto init = GetParam() == "pissa" ? InitLoraWeights::pissa : InitLoraWeights::olora;
  const auto w = golden.matrix<float>("base.weight");
  const LoraLinear<float> layer(w, {.rank = lora.at("r"), .alpha = lora.at("lora_alpha"), .init_lora_weights = init},
                                1);
  constexpr float agreement = 1e-4F;
  const auto close = [&](const Matrix<float>& ours, const Matrix<float>& theirs) {
    return (ours - theirs).cwiseAbs().maxCoeff() <= agreement * std::max(1.0F, theirs.cwiseAbs().maxCoeff());
  };
  const auto a = golden.matrix<float>("param.lora_A");
  const auto b = golden.matrix<float>("param.lora_B");
  EXPECT_TRUE(close(layer.weight(), golden.matrix<float>("residual_weight")));
  EXPECT_TRUE(close(layer.weight() + layer.delta_weight(), w));
  EXPECT_TRUE(close(layer.lora_B() * layer.lora_A(), b * a));
  for (Index p = 0; p < layer.rank(); ++p) {
    const float sign = a.row(p).dot(layer.lora_A().row(p)) < 0 ? -1.0F : 1.0F;
    EXPECT_TRUE(close(layer.lora_A().row(p), sign * a.row(p))) << p;
    EXPECT_TRUE(close(layer.lora_B().col(p), sign * b.col(p))) << p;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, InitGolden, ::testing::Values("pissa", "olora"),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace lora
