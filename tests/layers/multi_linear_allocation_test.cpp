// Exact counts: allocations of a steady step with several adapters, bytes remembered, and memory that runs out.
#include <algorithm>
#include <gtest/gtest.h>
#include <new>
#include <string>
#include <vector>

#include "layers/multi_linear_kinds.hpp"
#include "lora/optim/adamw.hpp"
#include "support/allocation_counter.hpp"
#include "support/bits.hpp"

namespace lora {
namespace {

using testing::allocations_of;
using testing::random_config;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

constexpr Index n = 33, d = 100, k = 150;

template <class Kind>
class MultiLinearAllocation : public ::testing::Test {
 protected:
  using Element = typename Kind::Scalar;

  MultiLinearAllocation() {
    auto& layer = made.layer();
    LoraConfig a = random_config(4, 0.1);
    a.lora_bias = true;
    layer.add_adapter("a", a, 1);
    layer.add_adapter("b", random_config(8), 2);
    layer.add_adapter("c", random_config(3), 3);
    layer.set_adapters({"a", "b"});
  }

  testing::MultiLayerUnderTest<Kind> made{random_matrix<Element>(d, k, 1), random_vector<Element>(d, 2)};
  Matrix<Element> x = random_matrix<Element>(n, k, 3);
  Matrix<Element> dy = random_matrix<Element>(n, d, 4);
  Matrix<Element> y{n, d};
  Matrix<Element> dx{n, k};
};
TYPED_TEST_SUITE(MultiLinearAllocation, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(MultiLinearAllocation, SteadyInferenceAllocatesNothingMergedOrNot) {
  auto& layer = this->made.layer();
  Workspace workspace;
  for (const auto& merging : {"", "a", "b"}) {
    if (*merging != '\0') layer.merge({merging});
    layer.infer(this->x, this->y, workspace);
    EXPECT_EQ(allocations_of([&] {
                layer.infer(this->x, this->y, workspace);
                layer.infer(this->x.row(0), this->y.row(0), workspace);
              }),
              0);
  }
}

TYPED_TEST(MultiLinearAllocation, SteadyInferenceByRowAllocatesNothing) {
  const auto& layer = this->made.layer();
  Workspace workspace;
  std::vector<std::string> names(n, "__base__");
  std::vector<Index> positions(n, 2);
  for (std::size_t i = 0; i < names.size(); i += 3) names[i] = i % 2 == 0 ? "a" : "b";
  const auto step = [&] {
    layer.infer(this->x, names, this->y, workspace);
    layer.infer(this->x, positions, this->y, workspace);
  };
  step();
  EXPECT_EQ(allocations_of(step), 0);
}

TYPED_TEST(MultiLinearAllocation, ASteadyTrainingStepAllocatesNothing) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  AdamW<Scalar> optimizer;
  auto parameters = layer.parameters();
  const auto step = [&](Index rows) {
    layer.forward(this->x.topRows(rows), this->y.topRows(rows));
    layer.backward(this->dy.topRows(rows), this->dx.topRows(rows));
    layer.accumulate_gradients(this->dy.topRows(rows));
    optimizer.step(parameters);
    layer.zero_grad();
  };
  step(n);
  EXPECT_EQ(allocations_of([&] {
              step(n);
              step(7);
              step(n);
            }),
            0);
}

TYPED_TEST(MultiLinearAllocation, ASteadyStepOverTheCallersMemoryAllocatesNothingWhateverIsActive) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  MultiLoraRecord<Scalar> record;
  Workspace workspace;
  layer.set_adapters({"a", "b", "c"});
  layer.forward(this->x, record, this->y, workspace);
  for (const std::vector<std::string>& active : {std::vector<std::string>{"b", "c"}, {"a"}, {}}) {
    layer.set_adapters(active);
    auto gradients = layer.make_gradients();
    const auto step = [&] {
      layer.forward(this->x, record, this->y, workspace);
      layer.backward(this->x, record, this->dy, gradients, this->dx, workspace);
      layer.backward(this->x, record, this->dy, gradients, workspace);
    };
    step();
    EXPECT_EQ(allocations_of(step), 0);
  }
}

TYPED_TEST(MultiLinearAllocation, SwappingAndScalingAllocateNothing) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  LoraAdapter<Scalar> other("test", k, d, random_config(5), 9);
  EXPECT_EQ(allocations_of([&] {
              layer.swap_adapter("b", other);
              layer.set_scale("b", 2);
              layer.scale_layer(2);
              layer.swap_adapter("b", other);
            }),
            0);
}

TYPED_TEST(MultiLinearAllocation, WhatTrainingRemembersIsUAndTheDropoutBits) {
  using Scalar = typename TypeParam::Scalar;
  auto& layer = this->made.layer();
  MultiLoraRecord<Scalar> record;
  Workspace workspace;
  layer.forward(this->x, record, this->y, workspace);
  EXPECT_EQ(record.bytes(), sizeof(Scalar) * n * (4 + 8) + n * ((k + 7) / 8));
}

TYPED_TEST(MultiLinearAllocation, UnmergingAllOrTheTopOfTheStackAllocatesNothing) {
  auto& layer = this->made.layer();
  layer.merge({"a", "b", "c"});
  EXPECT_EQ(allocations_of([&] { layer.unmerge(); }), 0);
  EXPECT_EQ(layer.merge_bytes(), 0U);
}

// Every allocation of a merge fails once: the weight keeps its bits, and the same call then succeeds.
TYPED_TEST(MultiLinearAllocation, AMergeThatRunsOutOfMemoryChangesNothing) {
  using Scalar = typename TypeParam::Scalar;
  if (!testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  auto& layer = this->made.layer();
  const Matrix<Scalar> w = layer.weight();
  bool failed = true;
  for (long successes = 0; failed; ++successes) {
    failed = false;
    try {
      const testing::FailingAllocation failing(successes);
      layer.merge({"a", "b", "c"});
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    ASSERT_EQ(layer.merged(), !failed);
    ASSERT_TRUE(!failed || same_bits(layer.weight(), w));
  }
  EXPECT_EQ(layer.merged_adapters().size(), 3U);
  EXPECT_TRUE(same_bits(layer.unmerge().weight(), w));
}

// Of the two above the one that leaves, none, one or both are merged again, and the weight is what the layer says.
TYPED_TEST(MultiLinearAllocation, AnInnerUnmergeThatRunsOutOfMemoryLeavesWhatTheLayerSays) {
  using Scalar = typename TypeParam::Scalar;
  if (!testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  auto& layer = this->made.layer();
  const Matrix<Scalar> w = layer.weight();
  const Matrix<Scalar> delta_b = layer.delta_weight("b");
  const Matrix<Scalar> delta_c = layer.delta_weight("c");
  std::vector<std::size_t> left;
  bool failed = true;
  for (long successes = 0; failed; ++successes) {
    failed = false;
    layer.unmerge().merge({"a", "b", "c"});
    try {
      const testing::FailingAllocation failing(successes);
      layer.unmerge({"a"});
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    const auto merged = layer.merged_adapters();
    left.push_back(merged.size());
    Matrix<Scalar> expected = w;
    if (merged.size() == 3) expected += layer.delta_weight("a");
    if (merged.size() > 0) expected += delta_b;
    if (merged.size() > 1) expected += delta_c;
    ASSERT_TRUE(same_bits(layer.weight(), expected)) << successes;
    ASSERT_TRUE(same_bits(layer.base_weight(), w)) << successes;
  }
  EXPECT_EQ(left.back(), 2U);
  EXPECT_EQ(left.front(), 3U);
  EXPECT_NE(std::find(left.begin(), left.end(), 0U), left.end());
  EXPECT_NE(std::find(left.begin(), left.end(), 1U), left.end());
}

}  // namespace
}  // namespace lora
