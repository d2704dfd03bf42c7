// train, eval, merge and unmerge on a real layer: every short sequence, many cycles, and what is forbidden while
// merged.
#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "lora/optim/adamw.hpp"
#include "support/bits.hpp"
#include "support/layer_kinds.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

template <class Kind>
class LinearState : public ::testing::Test {};
TYPED_TEST_SUITE(LinearState, testing::LayerKinds, testing::LayerKindNames);

enum class Call { train, eval, merge, unmerge };

template <class Layer>
void make(Layer& layer, Call call) {
  switch (call) {
    case Call::train:
      layer.train();
      break;
    case Call::eval:
      layer.eval();
      break;
    case Call::merge:
      layer.merge();
      break;
    case Call::unmerge:
      layer.unmerge();
      break;
  }
}

TYPED_TEST(LinearState, EverySequenceOfUpToFiveCallsEndsInTheStateItNames) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(6, 5, 1);
  for (const bool merge_weights : {true, false}) {
    for (int length = 1; length <= 5; ++length) {
      for (int code = 0; code < 1 << (2 * length); ++code) {
        auto made = TypeParam::make(
            w, {}, {.rank = 2, .merge_weights = merge_weights, .init_lora_weights = InitLoraWeights::random});
        auto& layer = *made.layer;
        const Matrix<Scalar> merged_weight = w + layer.delta_weight();
        bool training = true;
        bool merged = false;
        for (int i = 0; i < length; ++i) {
          const auto call = static_cast<Call>((code >> (2 * i)) & 3);
          make(layer, call);
          if (call == Call::train || call == Call::eval) training = call == Call::train;
          if (call == Call::merge || (call == Call::eval && merge_weights)) merged = true;
          if (call == Call::unmerge || (call == Call::train && merge_weights)) merged = false;
        }
        ASSERT_EQ(layer.training(), training);
        ASSERT_EQ(layer.merged(), merged);
        ASSERT_TRUE(same_bits(layer.weight(), merged ? merged_weight : w));
        ASSERT_TRUE(same_bits(layer.base_weight(), w));
      }
    }
  }
}

TYPED_TEST(LinearState, TenThousandCyclesRestoreEveryBit) {
  using Scalar = typename TypeParam::Scalar;
  using Limits = std::numeric_limits<Scalar>;
  auto w = random_matrix<Scalar>(9, 17, 1);
  w(0, 0) = Limits::denorm_min();
  w(3, 4) = Scalar(-0.0);
  w(8, 16) = Limits::min() / 2;
  for (const double alpha : {2.0, 2e6}) {
    auto made = TypeParam::make(w, {}, {.rank = 2, .alpha = alpha, .init_lora_weights = InitLoraWeights::random});
    for (int cycle = 0; cycle < 10000; ++cycle) made.layer->eval().train();
    EXPECT_TRUE(same_bits(made.layer->weight(), w)) << alpha;
  }
}

TYPED_TEST(LinearState, AFailedMergeChangesNeitherModeNorWeight) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(9, 17, 1);
  auto made = TypeParam::make(w, {}, {.rank = 2});
  Matrix<Scalar> b = Matrix<Scalar>::Zero(9, 2);
  b(8, 1) = std::numeric_limits<Scalar>::quiet_NaN();
  made.layer->set_factors(made.layer->lora_A(), b);
  EXPECT_THROW(made.layer->eval(), StateError);
  EXPECT_TRUE(made.layer->training());
  EXPECT_FALSE(made.layer->merged());
  EXPECT_TRUE(same_bits(made.layer->weight(), w));
  EXPECT_EQ(made.layer->merge_bytes(), 0U);
}

TYPED_TEST(LinearState, WhileMergedNothingThatWouldBreakUnmergingIsAllowed) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(9, 17, 1);
  auto made = TypeParam::make(w, random_vector<Scalar>(9, 2),
                              {.rank = 2, .lora_bias = true, .init_lora_weights = InitLoraWeights::random});
  auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(3, 17, 3);
  const Matrix<Scalar> y = layer.forward(x);
  const auto early_handles = layer.parameters();
  const Matrix<Scalar> a = layer.lora_A();
  AdamW<Scalar> optimizer;
  layer.merge();
  EXPECT_THROW(layer.set_factors(layer.lora_A(), layer.lora_B()), StateError);
  EXPECT_THROW(layer.set_lora_bias(random_vector<Scalar>(9, 4)), StateError);
  EXPECT_THROW(layer.set_alpha(3), StateError);
  EXPECT_THROW((void)layer.forward(x), StateError);
  EXPECT_THROW((void)layer.backward(y), StateError);
  EXPECT_THROW(layer.accumulate_gradients(y), StateError);
  EXPECT_THROW(optimizer.step(layer.parameters()), StateError);
  EXPECT_THROW(optimizer.step(early_handles), StateError);
  EXPECT_THROW((void)layer.parameters()[0].value(), StateError);
  EXPECT_TRUE(same_bits(layer.lora_A(), a));
  EXPECT_TRUE(same_bits(layer.unmerge().weight(), w));
}

TYPED_TEST(LinearState, EvaluationDropsNothingAndRemembersNothing) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(
      random_matrix<Scalar>(9, 17, 1), {},
      {.rank = 2, .dropout = 0.5, .merge_weights = false, .init_lora_weights = InitLoraWeights::random});
  auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(3, 17, 3);
  layer.eval();
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(same_bits(layer.forward(x), layer.infer(x)));
  EXPECT_THROW((void)layer.backward(random_matrix<Scalar>(3, 9, 4)), StateError);
  EXPECT_EQ(layer.dropout_step(), 0U);
}

TYPED_TEST(LinearState, DropoutAdvancesEveryStepAndCanBeReplayed) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(9, 40, 1), {},
                              {.rank = 2, .dropout = 0.5, .init_lora_weights = InitLoraWeights::random});
  auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(3, 40, 3);
  const Matrix<Scalar> first = layer.forward(x);
  const Matrix<Scalar> second = layer.forward(x);
  EXPECT_FALSE(same_bits(first, second));
  EXPECT_EQ(layer.dropout_step(), 2U);
  layer.set_dropout_step(0);
  EXPECT_TRUE(same_bits(layer.forward(x), first));
  EXPECT_TRUE(same_bits(layer.forward(x), second));
}

// PEFT calls a parent's eval() on a layer as train(false).
TYPED_TEST(LinearState, TrainFalseIsEval) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(9, 17, 1), {}, {.rank = 2});
  made.layer->train(false);
  EXPECT_FALSE(made.layer->training());
  EXPECT_TRUE(made.layer->merged());
  made.layer->train(true);
  EXPECT_TRUE(made.layer->training());
  EXPECT_FALSE(made.layer->merged());
}

}  // namespace
}  // namespace lora
