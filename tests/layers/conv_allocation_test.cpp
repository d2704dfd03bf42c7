// A steady step of a convolution allocates nothing, and what it remembers. Counted by linear_allocation_test.cpp's
// hooks.
#include <gtest/gtest.h>

#include "lora/layers/conv.hpp"
#include "lora/optim/adamw.hpp"
#include "support/allocation_count.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::allocations_of;
using testing::random_matrix;
using testing::random_vector;

constexpr ImageExtents<2> extents{9, 8};
const ConvGeometry<2> geometry{.in_channels = 6, .out_channels = 8, .kernel = {3, 3}, .padding = {1, 1}, .groups = 2};

LoraConv2d<float> make(bool dora, double dropout) {
  return {random_matrix<float>(8, 27, 1),
          random_vector<float>(8, 2),
          geometry,
          {.rank = 4, .dropout = dropout, .use_dora = dora, .lora_bias = !dora, .bias = BiasMode::all},
          1};
}

TEST(ConvAllocation, AllocationsAreCounted) {
  EXPECT_GE(allocations_of([] { Matrix<float>::Random(9, 9).eval(); }), 1);
}

TEST(ConvAllocation, ASteadyTrainingStepAllocatesNothing) {
  for (const bool dora : {false, true}) {
    for (const double dropout : {0.0, 0.2}) {
      auto layer = make(dora, dropout);
      AdamW<float> optimizer;
      const auto parameters = layer.parameters();  // one name is too long for a string without memory of its own
      const auto x = random_matrix<float>(5, 6 * 72, 3);
      const auto dy = random_matrix<float>(5, 8 * 72, 4);
      Matrix<float> y(5, 8 * 72);
      Matrix<float> dx(5, 6 * 72);
      const auto step = [&](Index samples) {
        layer.forward(x.topRows(samples), extents, y.topRows(samples));
        layer.backward(dy.topRows(samples), dx.topRows(samples));
        optimizer.step(parameters);
        layer.zero_grad();
      };
      step(5);
      EXPECT_EQ(allocations_of([&] {
                  step(5);
                  step(2);
                  step(5);
                }),
                0);
    }
  }
}

TEST(ConvAllocation, ASteadyStepOverTheCallersMemoryAllocatesNothing) {
  for (const bool dora : {false, true}) {
    const auto layer = make(dora, 0.2);
    const auto x = random_matrix<float>(3, 6 * 72, 3);
    const auto dy = random_matrix<float>(3, 8 * 72, 4);
    Matrix<float> y(3, 8 * 72);
    Matrix<float> dx(3, 6 * 72);
    ConvRecord<float, 2> record;
    Workspace workspace;
    auto gradients = layer.make_gradients();
    const auto step = [&] {
      layer.infer(x, extents, y, workspace);
      layer.forward(x, extents, record, y, workspace);
      layer.backward(x, record, dy, gradients, dx, workspace);
      layer.backward(x, record, dy, gradients, workspace);
    };
    step();
    EXPECT_EQ(allocations_of(step), 0);
  }
}

// 4 bytes of U for each rank and position, and one bit for each element of X; with DoRA Z and the norms.
TEST(ConvMemory, WhatTrainingRemembersBeyondXIsUAndTheDropoutBits) {
  constexpr std::size_t n = 3, positions = 72, r = 4, inputs = 6 * 72, outputs = 8 * 72;
  for (const bool dora : {false, true}) {
    for (const double dropout : {0.0, 0.2}) {
      const auto layer = make(dora, dropout);
      const auto x = random_matrix<float>(n, inputs, 3);
      Matrix<float> y(n, outputs);
      ConvRecord<float, 2> record;
      Workspace workspace;
      layer.forward(x, extents, record, y, workspace);
      EXPECT_EQ(record.bytes(),
                4 * n * positions * r + (dropout > 0 ? n * inputs / 8 : 0) + (dora ? 4 * (n * outputs + 8) : 0));
    }
  }
}

// The unfolded input would be 9 times the input; scratch is that of some panels, whatever the image's size.
TEST(ConvMemory, ScratchDoesNotGrowWithTheImage) {
  const LoraConv2d<float> layer(random_matrix<float>(4, 36, 1),
                                {.in_channels = 4, .out_channels = 4, .kernel = {3, 3}, .padding = {1, 1}}, {.rank = 1},
                                1);
  const auto scratch_of = [&](Index side) {
    const auto x = random_matrix<float>(1, 4 * side * side, 3);
    Matrix<float> y(1, 4 * side * side);
    Workspace workspace;
    layer.infer(x, {side, side}, y, workspace);
    return workspace.bytes();
  };
  EXPECT_EQ(scratch_of(20), scratch_of(200));
}

}  // namespace
}  // namespace lora
