// SPDX-License-Identifier: MIT
#include "lora/adapter/plain_adapter.hpp"

#include <gtest/gtest.h>

#include "lora/layers/linear.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace {

using lora::Index;
using lora::InitLoraWeights;
using lora::LoraConfig;
using lora::LoraLinear;
using lora::Matrix;
using lora::testing::random_matrix;
using lora::testing::same_bits;

TEST(PlainAdapter, HasTwiceTheRankAndTheSameScaling) {
  for (const bool rslora : {false, true}) {
    const LoraConfig config{
        .rank = 3, .alpha = 5, .use_rslora = rslora, .init_lora_weights = InitLoraWeights::pissa, .pissa_niter = 4};
    const auto a = random_matrix<double>(3, 7, 1);
    const auto b = random_matrix<double>(6, 3, 2);
    const auto a0 = random_matrix<double>(3, 7, 3);
    const auto b0 = random_matrix<double>(6, 3, 4);
    const auto plain = lora::plain_adapter(config, a, b, a0, b0);
    EXPECT_EQ(plain.config.rank, 6);
    EXPECT_DOUBLE_EQ(plain.config.alpha, rslora ? 5 * std::sqrt(2.0) : 10.0);
    EXPECT_DOUBLE_EQ(plain.config.scaling(), config.scaling());
    EXPECT_EQ(plain.config.init_lora_weights, InitLoraWeights::kaiming_uniform);
    EXPECT_EQ(plain.config.pissa_niter, 0);
    EXPECT_LE((plain.B * plain.A - (b * a - b0 * a0)).norm(), 1e-14 * (1 + b.norm() * a.norm()));
    EXPECT_TRUE(same_bits(plain.A.topRows(3), a));
    EXPECT_TRUE(same_bits(plain.B.rightCols(3), Matrix<double>(-b0)));
  }
}

// What it is for: on the original weight it answers as the trained layer does on the residual, with DoRA too.
TEST(PlainAdapter, OnTheOriginalWeightAnswersAsTheTrainedLayer) {
  const auto w = random_matrix<double>(9, 13, 1);
  const auto x = random_matrix<double>(5, 13, 2);
  for (const auto init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
    for (const bool rslora : {false, true}) {
      for (const bool dora : {false, true}) {
        LoraLinear<double> trained(
            w, {.rank = 3, .alpha = 5, .use_rslora = rslora, .use_dora = dora, .init_lora_weights = init}, 7);
        const Matrix<double> a0 = trained.lora_A();
        const Matrix<double> b0 = trained.lora_B();
        EXPECT_LE((trained.infer(x) - x * w.transpose()).norm(), 1e-13 * x.norm() * w.norm());
        for (const auto& parameter : trained.parameters()) {
          parameter.value() += random_matrix<double>(parameter.rows(), parameter.cols(), 11, 0.2);
        }
        const auto plain = lora::plain_adapter(trained.config(), trained.lora_A(), trained.lora_B(), a0, b0);
        LoraLinear<double> loaded(w, plain.config, 1);
        loaded.set_factors(plain.A, plain.B);
        if (dora) loaded.set_magnitude(trained.magnitude());
        EXPECT_LE((loaded.infer(x) - trained.infer(x)).norm(), 1e-12 * trained.infer(x).norm());
      }
    }
  }
}

TEST(PlainAdapter, RefusesFactorsThatDoNotFit) {
  const LoraConfig config{.rank = 3};
  const Matrix<float> a(3, 7), b(6, 3), wide(3, 8), low(2, 7);
  EXPECT_THROW((void)lora::plain_adapter(config, low, b, a, b), lora::ShapeError);
  EXPECT_THROW((void)lora::plain_adapter(config, a, a, a, b), lora::ShapeError);
  EXPECT_THROW((void)lora::plain_adapter(config, a, b, wide, b), lora::ShapeError);
  EXPECT_THROW((void)lora::plain_adapter(config, a, b, a, a), lora::ShapeError);
}

}  // namespace
