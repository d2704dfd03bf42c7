// Exact counts: allocations of a steady step, bytes remembered, bytes resident.
#include <gtest/gtest.h>

#include "lora/optim/adamw.hpp"
#include "support/allocation_counter.hpp"
#include "support/layer_kinds.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::allocations_of;
using testing::random_matrix;
using testing::random_vector;

template <class Kind>
class LinearAllocation : public ::testing::Test {};
TYPED_TEST_SUITE(LinearAllocation, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(LinearAllocation, ASteadyTrainingStepAllocatesNothing) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(200, 300, 1), random_vector<Scalar>(200, 2),
                              {.rank = 8, .dropout = 0.1, .bias = BiasMode::all});
  auto& layer = *made.layer;
  AdamW<Scalar> optimizer;
  const auto x = random_matrix<Scalar>(65, 300, 3);
  const auto dy = random_matrix<Scalar>(65, 200, 4);
  Matrix<Scalar> y(65, 200);
  Matrix<Scalar> dx(65, 300);
  const auto step = [&](Index rows) {
    layer.forward(x.topRows(rows), y.topRows(rows));
    layer.backward(dy.topRows(rows), dx.topRows(rows));
    optimizer.step(layer.parameters());
    layer.zero_grad();
  };
  step(65);
  EXPECT_EQ(allocations_of([&] {
              step(65);
              step(17);
              step(65);
            }),
            0);
}

TYPED_TEST(LinearAllocation, ASteadyStepOverTheCallersMemoryAllocatesNothing) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(200, 300, 1), random_vector<Scalar>(200, 2),
                              {.rank = 8, .dropout = 0.1, .lora_bias = true});
  const auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(65, 300, 3);
  const auto dy = random_matrix<Scalar>(65, 200, 4);
  Matrix<Scalar> y(65, 200);
  Matrix<Scalar> dx(65, 300);
  LoraRecord<Scalar> record;
  Workspace workspace;
  auto gradients = layer.make_gradients();
  const auto step = [&] {
    layer.infer(x, y, workspace);
    layer.forward(x, record, y, workspace);
    layer.backward(x, record, dy, gradients, dx, workspace);
    layer.backward(x, record, dy, gradients, workspace);
  };
  step();
  EXPECT_EQ(allocations_of(step), 0);
}

TYPED_TEST(LinearAllocation, SteadyInferenceAllocatesNothingMergedOrNot) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(200, 300, 1), random_vector<Scalar>(200, 2), {.rank = 8});
  auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(9, 300, 3);
  Matrix<Scalar> y(9, 200);
  Workspace workspace;
  for (const bool merged : {false, true}) {
    if (merged) layer.merge();
    layer.infer(x, y, workspace);
    EXPECT_EQ(allocations_of([&] { layer.infer(x, y, workspace); }), 0);
    layer.infer(x.row(0), y.row(0), workspace);
    EXPECT_EQ(allocations_of([&] { layer.infer(x.row(0), y.row(0), workspace); }), 0);
  }
}

// 4 N r bytes of U and one bit for each element of X.
TEST(LinearMemory, WhatTrainingRemembersBeyondXIsUAndTheDropoutBits) {
  constexpr Index n = 64, k = 256, r = 8;
  for (const double dropout : {0.0, 0.1}) {
    LoraLinear<float> layer(random_matrix<float>(128, k, 1), {.rank = r, .dropout = dropout}, 1);
    const auto x = random_matrix<float>(n, k, 2);
    Matrix<float> y(n, 128);
    LoraRecord<float> record;
    Workspace workspace;
    layer.forward(x, record, y, workspace);
    EXPECT_EQ(record.bytes(), static_cast<std::size_t>(4 * n * r + (dropout > 0 ? n * k / 8 : 0)));
  }
}

TEST(LinearMemory, ALayerThatOwnsItsWeightIsAtMostSixPercentLarger) {
  constexpr Index size = 4096;
  const Matrix<float> w = Matrix<float>::Ones(size, size);
  const LoraLinear<float> layer(w, {.rank = 8}, 1);
  EXPECT_LE(static_cast<double>(layer.parameter_bytes()), 1.06 * static_cast<double>(size * size * sizeof(float)));
  EXPECT_GE(layer.frozen_weight().bytes(), static_cast<std::size_t>(size * size) * sizeof(float));
}

TEST(LinearMemory, MergingHoldsAByteAWeightAndUnmergingReturnsIt) {
  LoraLinear<float> layer(random_matrix<float>(256, 256, 1),
                          {.rank = 8, .alpha = 1, .init_lora_weights = InitLoraWeights::random}, 1);
  layer.merge();
  EXPECT_GE(layer.merge_bytes(), 256U * 256U);
  EXPECT_LE(layer.merge_bytes(), 256U * 256U * 4U * 3U / 10U);
  layer.unmerge();
  EXPECT_EQ(layer.merge_bytes(), 0U);
}

}  // namespace
}  // namespace lora
