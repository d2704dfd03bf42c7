#include "lora/adapter/adaptation.hpp"

#include <gtest/gtest.h>
#include <limits>

#include "lora/weight/dense.hpp"
#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace {

using lora::ConfigError;
using lora::DenseWeight;
using lora::InitLoraWeights;
using lora::LoraConfig;
using lora::make_adaptation;
using lora::Matrix;
using lora::PackedWeight;
using lora::StateError;
using lora::view_of;
using lora::testing::random_matrix;
using lora::testing::same_bits;

constexpr InitLoraWeights all[] = {InitLoraWeights::kaiming_uniform, InitLoraWeights::gaussian, InitLoraWeights::random,
                                   InitLoraWeights::orthogonal,      InitLoraWeights::pissa,    InitLoraWeights::olora};

template <class Weight>
Matrix<typename Weight::Scalar> values(const Weight& weight) {
  Matrix<typename Weight::Scalar> result(weight.out_features(), weight.in_features());
  lora::read_back(weight, view_of(result));
  return result;
}

template <class Scalar>
class Adaptation : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Adaptation, Scalars);

TYPED_TEST(Adaptation, OnlyPissaAndOloraChangeTheWeightAndTheAdapterMakesUpForIt) {
  const auto w = random_matrix<TypeParam>(19, 30, 1);
  for (const auto init : all) {
    PackedWeight<TypeParam> weight(view_of(w));
    const LoraConfig config{.rank = 4, .alpha = 8, .init_lora_weights = init};
    const auto made = make_adaptation("test", weight, config, 5);
    EXPECT_FALSE(made.dora.active());
    const Matrix<TypeParam> residual = values(weight);
    if (!lora::takes_from_weight(init)) {
      EXPECT_TRUE(same_bits(residual, w));
      continue;
    }
    EXPECT_GT((residual - w).norm(), 1);
    Matrix<TypeParam> update(19, 30);
    lora::write_delta(made.adapter.update(), view_of(update));
    // One rounding when it was taken and one when it is given back, of numbers up to |w| + |update|.
    const TypeParam bound = std::numeric_limits<TypeParam>::epsilon() * (1 + update.cwiseAbs().maxCoeff());
    EXPECT_LE((residual + update - w).cwiseAbs().maxCoeff(), bound);
  }
}

TYPED_TEST(Adaptation, OrthogonalStartsAtNoChangeWithBothFactorsAwayFromZero) {
  PackedWeight<TypeParam> weight(view_of(random_matrix<TypeParam>(19, 30, 1)));
  const auto made = make_adaptation("test", weight, {.rank = 4, .init_lora_weights = InitLoraWeights::orthogonal}, 5);
  const auto& a = made.adapter.A();
  const auto& b = made.adapter.B();
  EXPECT_GT(a.cwiseAbs().maxCoeff(), TypeParam(0.01));
  EXPECT_GT(b.cwiseAbs().maxCoeff(), TypeParam(0.01));
  EXPECT_LE((b * a).norm(), 8 * std::numeric_limits<TypeParam>::epsilon() * a.norm() * b.norm());
}

TYPED_TEST(Adaptation, TheMagnitudeIsThatOfTheWeightAsItWas) {
  const auto w = random_matrix<TypeParam>(19, 30, 1);
  for (const auto init : all) {
    PackedWeight<TypeParam> weight(view_of(w));
    const auto made = make_adaptation("test", weight, {.rank = 4, .use_dora = true, .init_lora_weights = init}, 5);
    ASSERT_TRUE(made.dora.active());
    if (init == InitLoraWeights::random) continue;  // starts with an update
    for (lora::Index j = 0; j < 19; ++j) {
      const TypeParam norm = w.row(j).norm();
      EXPECT_NEAR(made.dora.value()[j], norm, 256 * std::numeric_limits<TypeParam>::epsilon() * norm);
    }
  }
}

TYPED_TEST(Adaptation, RankZeroNeedsNoInitialisation) {
  const auto w = random_matrix<TypeParam>(5, 6, 1);
  for (const auto init : all) {
    PackedWeight<TypeParam> weight(view_of(w));
    EXPECT_EQ(make_adaptation("test", weight, {.rank = 0, .init_lora_weights = init}, 5).adapter.rank(), 0);
    EXPECT_TRUE(same_bits(values(weight), w));
  }
}

TYPED_TEST(Adaptation, AResidualGoesIntoTheMemoryThatTheWeightViews) {
  Matrix<TypeParam> w = random_matrix<TypeParam>(5, 6, 1);
  const Matrix<TypeParam> original = w;
  DenseWeight<TypeParam> weight(view_of(w));
  const auto made = make_adaptation("test", weight, {.rank = 2, .init_lora_weights = InitLoraWeights::olora}, 5);
  EXPECT_LE((w + made.adapter.scaling() * made.adapter.B() * made.adapter.A() - original).norm(),
            32 * std::numeric_limits<TypeParam>::epsilon() * original.norm());
  EXPECT_GT((w - original).norm(), TypeParam(0.1));
}

TYPED_TEST(Adaptation, AFailureLeavesEveryBitOfTheWeight) {
  const Matrix<TypeParam> w = random_matrix<TypeParam>(5, 6, 1, 8.0);
  DenseWeight<TypeParam> read_only(view_of(w));
  const LoraConfig pissa{.rank = 2, .init_lora_weights = InitLoraWeights::pissa};
  EXPECT_THROW((void)make_adaptation("test", read_only, pissa, 5), StateError);
  PackedWeight<TypeParam> weight(view_of(w));
  LoraConfig too_large = pissa;
  too_large.rank = 6;
  EXPECT_THROW((void)make_adaptation("test", weight, too_large, 5), ConfigError);
  const auto huge = static_cast<double>(std::numeric_limits<TypeParam>::max());
  EXPECT_THROW(
      (void)make_adaptation("test", weight, {.rank = 2, .alpha = huge, .init_lora_weights = InitLoraWeights::olora}, 5),
      StateError);
  EXPECT_TRUE(same_bits(values(weight), w));
}

// The kinds of layer that have no decomposition construct the adapter alone.
TEST(AdapterAlone, RefusesInitialisationsThatNeedTheWeight) {
  for (const auto init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
    EXPECT_THROW(lora::LoraAdapter<float>("test", 9, 7, {.rank = 3, .init_lora_weights = init}, 1), ConfigError);
  }
}

TEST(AdapterAlone, TakesGivenFactorsOfTheConfiguredRank) {
  const lora::LoraFactors<float> factors{random_matrix<float>(3, 9, 1), random_matrix<float>(7, 3, 2)};
  const lora::LoraAdapter<float> adapter("test", {.rank = 3}, 1, factors);
  EXPECT_EQ(adapter.A(), factors.A);
  EXPECT_EQ(adapter.B(), factors.B);
  EXPECT_THROW(lora::LoraAdapter<float>("test", {.rank = 2}, 1, factors), lora::ShapeError);
}

}  // namespace
