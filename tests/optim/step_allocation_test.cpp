// SPDX-License-Identifier: MIT
// Optimisers allocate a parameter's state once, and a step that runs out of memory has not happened.
#include <gtest/gtest.h>
#include <memory>
#include <new>
#include <vector>

#include "lora/optim/adamw.hpp"
#include "lora/optim/clip.hpp"
#include "lora/optim/moments.hpp"
#include "lora/optim/sgd.hpp"
#include "optim/two_factors.hpp"
#include "support/allocation_counter.hpp"

namespace {

using lora::testing::allocations_of;
using lora::testing::FailingAllocation;
using lora::testing::same;
using lora::testing::TwoFactors;

// Where an address escapes, a compiler may not leave the allocation out.
const volatile void* volatile escape = nullptr;

TEST(AllocationCounter, SeesNewAndEigen) {
  EXPECT_EQ(allocations_of([] {
              const std::vector<int> block(100);
              escape = block.data();
            }),
            1);
  EXPECT_EQ(allocations_of([] {
              const lora::Matrix<double> block(3, 4);
              escape = block.data();
            }),
            1);
  EXPECT_EQ(allocations_of([] { escape = nullptr; }), 0);
}

template <class Optimizer>
void expect_no_allocation_after_the_first_step(Optimizer optimizer, long arrays_of_state) {
  TwoFactors<float> model(8, 700, 900);  // more than one chunk of every array, with a tail
  const auto parameters = model.parameters();
  const long first = allocations_of([&] { optimizer.step(parameters); });
  EXPECT_GE(first, arrays_of_state);
  EXPECT_EQ(allocations_of([&] {
              for (int step = 0; step < 3; ++step) {
                lora::clip_gradient_norm(parameters, 1.0);
                optimizer.step(parameters);
              }
            }),
            0);
}

TEST(StepAllocation, NoneAfterTheFirstStep) {
  expect_no_allocation_after_the_first_step(lora::AdamW<float>(), 4);
  expect_no_allocation_after_the_first_step(lora::SGD<float>({.momentum = 0.9, .weight_decay = 0.1}), 2);
  expect_no_allocation_after_the_first_step(lora::SGD<float>({.momentum = 0.9, .nesterov = true}), 2);
  expect_no_allocation_after_the_first_step(lora::SGD<float>({.weight_decay = 0.1}), 0);
}

template <class Optimizer>
void expect_atomic_without_memory(const Optimizer& configured) {
  TwoFactors<double> model;
  const TwoFactors<double> before = model;
  const auto parameters = model.parameters();
  int failures = 0;
  for (bool done = false; !done;) {
    Optimizer optimizer = configured;
    lora::reset_moments(parameters);  // gives back what an earlier failure had reserved
    try {
      const FailingAllocation failing(failures);
      optimizer.step(parameters);
      done = true;
    } catch (const std::bad_alloc&) {
      ++failures;
      ASSERT_TRUE(same(model, before)) << failures;
      ASSERT_EQ(lora::moment_bytes(parameters), 0U) << failures;
    }
  }
  EXPECT_GE(failures, 2);
  TwoFactors<double> twin;
  Optimizer(configured).step(twin.parameters());
  EXPECT_TRUE(same(model, twin));
}

TEST(StepAllocation, AStepWithoutMemoryChangesNothing) {
  if (!lora::testing::allocations_can_fail) GTEST_SKIP() << "the sanitizer owns malloc";
  expect_atomic_without_memory(lora::AdamW<double>());
  expect_atomic_without_memory(lora::SGD<double>({.momentum = 0.9}));
}

}  // namespace
