// A steady step of a layer of several projections allocates nothing. Counted by linear_allocation_test.cpp's hooks.
#include <gtest/gtest.h>

#include "lora/layers/merged_linear.hpp"
#include "lora/optim/adamw.hpp"
#include "support/allocation_count.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::allocations_of;
using testing::random_matrix;
using testing::random_vector;

TEST(MergedLinearAllocation, AllocationsAreCounted) {
  EXPECT_GE(allocations_of([] { Matrix<float>::Random(9, 9).eval(); }), 1);
}

TEST(MergedLinearAllocation, ASteadyTrainingStepAllocatesNothing) {
  MergedLinear<float> layer(random_matrix<float>(210, 300, 1), random_vector<float>(210, 2), {true, false, true},
                            {.rank = 8, .dropout = 0.1, .bias = BiasMode::all}, 1);
  AdamW<float> optimizer;
  const auto x = random_matrix<float>(65, 300, 3);
  const auto dy = random_matrix<float>(65, 210, 4);
  Matrix<float> y(65, 210);
  Matrix<float> dx(65, 300);
  const auto step = [&](Index rows) {
    layer.forward(x.topRows(rows), y.topRows(rows));
    layer.backward(dy.topRows(rows), dx.topRows(rows));
    layer.accumulate_gradients(dy.topRows(rows));
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

TEST(MergedLinearAllocation, SteadyInferenceAllocatesNothingMergedOrNot) {
  MergedLinear<double> layer(random_matrix<double>(210, 300, 1), {true, false, true}, {.rank = 8}, 1);
  const auto x = random_matrix<double>(9, 300, 3);
  Matrix<double> y(9, 210);
  Workspace workspace;
  for (const bool merged : {false, true}) {
    if (merged) layer.merge();
    layer.infer(x, y, workspace);
    EXPECT_EQ(allocations_of([&] { layer.infer(x, y, workspace); }), 0);
  }
}

// 4 N r E bytes of U and one bit for each element of X.
TEST(MergedLinearMemory, WhatTrainingRemembersBeyondXIsUAndTheDropoutBits) {
  const MergedLinear<float> layer(random_matrix<float>(210, 256, 1), {true, false, true}, {.rank = 8, .dropout = 0.1},
                                  1);
  LoraRecord<float> record;
  Workspace workspace;
  Matrix<float> y(64, 210);
  layer.forward(random_matrix<float>(64, 256, 2), record, y, workspace);
  EXPECT_EQ(record.bytes(), 4U * 64 * 8 * 2 + 64 * 256 / 8);
}

}  // namespace
}  // namespace lora
