// SPDX-License-Identifier: MIT
#include "lora/core/workspace.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <new>
#include <utility>

#include "support/allocation_counter.hpp"
#include "support/thread_executor.hpp"

namespace {

using lora::AlignedBuffer;
using lora::Index;
using lora::Workspace;
using lora::testing::allocations_of;
using lora::testing::FailingAllocation;

TEST(AlignedBuffer, StartsEmptyWithoutAllocation) {
  EXPECT_EQ(allocations_of([] {
              const AlignedBuffer buffer;
              EXPECT_EQ(buffer.bytes(), 0U);
            }),
            0);
}

TEST(AlignedBuffer, AlwaysReturnsAlignedRoom) {
  for (std::size_t count = 1; count < 3000; count = count * 2 + 1) {
    AlignedBuffer buffer;
    float* data = buffer.reserve<float>(count);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % AlignedBuffer::alignment, 0U) << count;
    EXPECT_GE(buffer.bytes(), count * sizeof(float));
    std::fill(data, data + count, 1.0F);
  }
  EXPECT_EQ(AlignedBuffer::alignment, 64U);
}

TEST(AlignedBuffer, GrowsOnlyAndKeepsItsBlockOtherwise) {
  AlignedBuffer buffer;
  const double* first = buffer.reserve<double>(100);
  EXPECT_EQ(allocations_of([&] {
              EXPECT_EQ(buffer.reserve<double>(100), first);
              EXPECT_EQ(buffer.reserve<double>(3), first);
              EXPECT_EQ(static_cast<void*>(buffer.reserve<char>(800)), first);
            }),
            0);
  EXPECT_EQ(buffer.bytes(), 100 * sizeof(double));
  EXPECT_EQ(allocations_of([&] { (void)buffer.reserve<double>(101); }), 1);
  EXPECT_EQ(buffer.bytes(), 101 * sizeof(double));
}

TEST(AlignedBuffer, ReservingNothingAllocatesNothing) {
  AlignedBuffer buffer;
  EXPECT_EQ(allocations_of([&] { (void)buffer.reserve<float>(0); }), 0);
  EXPECT_EQ(buffer.bytes(), 0U);
}

TEST(AlignedBuffer, ACopyStartsEmpty) {
  AlignedBuffer buffer;
  (void)buffer.reserve<float>(10);
  const AlignedBuffer copy(buffer);
  EXPECT_EQ(copy.bytes(), 0U);
  EXPECT_EQ(buffer.bytes(), 10 * sizeof(float));
}

TEST(AlignedBuffer, AMoveTakesTheBlockAlong) {
  AlignedBuffer buffer;
  float* data = buffer.reserve<float>(10);
  AlignedBuffer moved(std::move(buffer));
  EXPECT_EQ(moved.bytes(), 10 * sizeof(float));
  EXPECT_EQ(moved.reserve<float>(10), data);
  EXPECT_EQ(buffer.bytes(), 0U);  // NOLINT(bugprone-use-after-move): a moved-from buffer is empty
  buffer = std::move(moved);
  EXPECT_EQ(buffer.reserve<float>(10), data);
}

TEST(AlignedBuffer, ACountThatOverflowsIsRefusedAndChangesNothing) {
  AlignedBuffer buffer;
  const double* data = buffer.reserve<double>(4);
  const std::size_t wraps_to_one = std::numeric_limits<std::size_t>::max() / sizeof(double) + 2;
  EXPECT_THROW((void)buffer.reserve<double>(wraps_to_one), std::bad_alloc);
  EXPECT_EQ(buffer.bytes(), 4 * sizeof(double));
  EXPECT_EQ(buffer.reserve<double>(4), data);
}

TEST(AlignedBuffer, WithoutMemoryTheBlockIsUnchanged) {
  if (!lora::testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  AlignedBuffer buffer;
  float* data = buffer.reserve<float>(3);
  std::copy_n("ab", 3, reinterpret_cast<char*>(data));
  bool refused = false;
  {
    const FailingAllocation failing(0);
    try {
      (void)buffer.reserve<float>(1000);
    } catch (const std::bad_alloc&) {
      refused = true;
    }
  }
  EXPECT_TRUE(refused);
  EXPECT_EQ(buffer.bytes(), 3 * sizeof(float));
  EXPECT_STREQ(reinterpret_cast<const char*>(buffer.reserve<float>(3)), "ab");
}

TEST(Workspace, MatricesOfOneScopeAreDistinctMemory) {
  Workspace workspace;
  const auto first = workspace.matrix<float>(3, 5);
  const auto second = workspace.matrix<double>(2, 7);
  std::fill_n(first.data, 15, 1.0F);
  std::fill_n(second.data, 14, 2.0);
  EXPECT_EQ(std::count(first.data, first.data + 15, 1.0F), 15);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first.data) % AlignedBuffer::alignment, 0U);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(second.data) % AlignedBuffer::alignment, 0U);
}

TEST(Workspace, ASteadyCallAllocatesNothing) {
  Workspace workspace;
  const auto call = [&workspace](Index rows) {
    const auto outer = workspace.matrix<float>(rows, 8);
    const auto inner = workspace.row<float>(rows * 3);
    EXPECT_NE(outer.data, nullptr);
    EXPECT_NE(inner.data, nullptr);
  };
  call(32);
  call(32);  // the first call of a larger shape may leave its memory in two blocks
  const std::size_t bytes = workspace.bytes();
  EXPECT_EQ(allocations_of([&] {
              for (const Index rows : {32, 1, 0, 31}) call(rows);
            }),
            0);
  EXPECT_EQ(workspace.bytes(), bytes);
}

TEST(Workspace, ExtentsThatAreNegativeOrOverflowAreRefused) {
  Workspace workspace;
  EXPECT_THROW((void)workspace.matrix<float>(-1, 3), std::bad_alloc);
  constexpr Index greatest = std::numeric_limits<Index>::max();
  EXPECT_THROW((void)workspace.matrix<float>(greatest, greatest), std::bad_alloc);
  constexpr Index doubles = Index{1} << (8 * sizeof(Index) - 3);  // of 2^64 bytes, where Index has 64 bits
  EXPECT_THROW((void)workspace.matrix<double>(doubles, 1), std::bad_alloc);
  EXPECT_EQ(workspace.bytes(), 0U);
}

TEST(Workspace, ACopyHasTheExecutorAndNoScratch) {
  lora::testing::ThreadExecutor executor(2);
  Workspace workspace(executor);
  (void)workspace.row<float>(10);
  Workspace copy(workspace);
  EXPECT_EQ(copy.bytes(), 0U);
  EXPECT_EQ(&copy.executor(), &executor);
  EXPECT_GE(workspace.bytes(), 10 * sizeof(float));
}

// A copy that ran on the original's own serial executor would dangle.
TEST(Workspace, WithoutExecutorEachRunsOnItsOwnSerialOne) {
  Workspace workspace;
  Workspace copy(workspace);
  Workspace assigned;
  assigned = workspace;
  Workspace moved(Workspace{});
  for (Workspace* other : {&copy, &assigned, &moved}) {
    EXPECT_EQ(other->executor().workers(), 1);
    EXPECT_NE(&other->executor(), &workspace.executor());
    const auto* begin = reinterpret_cast<const char*>(other);
    const auto* executor = reinterpret_cast<const char*>(&other->executor());
    EXPECT_TRUE(executor >= begin && executor < begin + sizeof(Workspace));
  }
}

// The executor of a pool belongs to the workspaces that share it.
TEST(Workspace, AMoveTakesTheExecutorAlong) {
  lora::testing::ThreadExecutor executor(2);
  Workspace workspace(executor);
  const Workspace moved(std::move(workspace));
  EXPECT_EQ(workspace.executor().workers(), 1);  // NOLINT(bugprone-use-after-move)
  Workspace assigned;
  workspace = Workspace(executor);
  assigned = std::move(workspace);
  EXPECT_EQ(&assigned.executor(), &executor);
  EXPECT_EQ(workspace.executor().workers(), 1);  // NOLINT(bugprone-use-after-move)
}

TEST(Workspace, AMoveTakesScratchAlong) {
  Workspace workspace;
  const float* data = workspace.row<float>(10).data;
  Workspace moved(std::move(workspace));
  EXPECT_EQ(moved.row<float>(10).data, data);
}

}  // namespace
