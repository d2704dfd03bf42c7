// SPDX-License-Identifier: MIT
#include "lora/core/executor.hpp"

#include <atomic>
#include <gtest/gtest.h>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "support/thread_executor.hpp"

namespace {

using lora::FunctionRef;
using lora::Index;
using lora::parallel_ranges;
using lora::testing::ThreadExecutor;

struct Range {
  Index begin;
  Index end;
  int worker;
};

std::vector<Range> ranges_of(lora::Executor& executor, Index count, Index grain) {
  std::mutex mutex;
  std::vector<Range> ranges;
  parallel_ranges(executor, count, grain, [&](Index begin, Index end, int worker) {
    const std::lock_guard lock(mutex);
    ranges.push_back({begin, end, worker});
  });
  return ranges;
}

TEST(FunctionRef, CallsTheObjectItselfAndReturnsItsResult) {
  int calls = 0;
  const auto count = [&calls](int by) { return calls += by; };
  const FunctionRef<int(int)> reference = count;
  EXPECT_EQ(reference(2), 2);
  EXPECT_EQ(reference(3), 5);
  EXPECT_EQ(calls, 5);
}

TEST(FunctionRef, KeepsTheStateOfAMutableCallable) {
  auto next = [n = 0]() mutable { return ++n; };
  const FunctionRef<int()> reference = next;
  (void)reference();
  EXPECT_EQ(reference(), 2);
  EXPECT_EQ(next(), 3);
}

TEST(FunctionRef, ACopyRefersToTheCallableNotToTheReference) {
  const auto one = [] { return 1; };
  auto first = std::make_unique<FunctionRef<int()>>(one);
  const FunctionRef<int()> copy = *first;
  first.reset();
  EXPECT_EQ(copy(), 1);
}

TEST(FunctionRef, PassesAMoveOnlyArgumentOn) {
  const auto take = [](std::unique_ptr<int> value) { return *value; };
  const FunctionRef<int(std::unique_ptr<int>)> reference = take;
  EXPECT_EQ(reference(std::make_unique<int>(7)), 7);
}

TEST(SerialExecutor, RunsOnceOnTheCallingThread) {
  lora::SerialExecutor executor;
  EXPECT_EQ(executor.workers(), 1);
  std::vector<std::pair<int, std::thread::id>> calls;
  executor.run([&](int worker) { calls.emplace_back(worker, std::this_thread::get_id()); });
  ASSERT_EQ(calls.size(), 1U);
  EXPECT_EQ(calls[0], std::pair(0, std::this_thread::get_id()));
}

TEST(ParallelRanges, CoverEachIndexExactlyOnce) {
  for (int workers = 1; workers <= 9; ++workers) {
    ThreadExecutor executor(workers);
    for (const Index grain : {1, 2, 7, 16}) {
      for (const Index count : {0, 1, 2, 6, 7, 8, 15, 16, 17, 33, 100, 145}) {
        std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
        parallel_ranges(executor, count, grain, [&](Index begin, Index end, int /*worker*/) {
          for (Index i = begin; i < end; ++i) ++visits.at(static_cast<std::size_t>(i));
        });
        for (const auto& visit : visits) ASSERT_EQ(visit, 1) << workers << " workers, " << count << " by " << grain;
      }
    }
  }
}

TEST(ParallelRanges, AreContiguousNonEmptyAndOnePerWorker) {
  for (int workers = 1; workers <= 9; ++workers) {
    ThreadExecutor executor(workers);
    for (const Index count : {1, 5, 9, 10, 64}) {
      std::vector<bool> seen(static_cast<std::size_t>(workers));
      for (const auto& [begin, end, worker] : ranges_of(executor, count, 1)) {
        EXPECT_LT(begin, end);
        ASSERT_GE(worker, 0);
        ASSERT_LT(worker, workers);
        EXPECT_FALSE(seen[static_cast<std::size_t>(worker)]) << "worker " << worker << " has two ranges";
        seen[static_cast<std::size_t>(worker)] = true;
      }
    }
  }
}

TEST(ParallelRanges, BoundariesAreMultiplesOfTheGrain) {
  for (int workers = 1; workers <= 9; ++workers) {
    ThreadExecutor executor(workers);
    for (const Index grain : {1, 3, 16}) {
      for (const Index count : {1, 16, 17, 50, 145}) {
        for (const auto& [begin, end, worker] : ranges_of(executor, count, grain)) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(end == count || end % grain == 0) << end << " of " << count << " by " << grain;
        }
      }
    }
  }
}

TEST(ParallelRanges, SplitIsFairToOneGrain) {
  for (int workers = 2; workers <= 9; ++workers) {
    ThreadExecutor executor(workers);
    const Index grain = 4;
    const Index grains = 41;
    const auto ranges = ranges_of(executor, grains * grain, grain);
    EXPECT_EQ(ranges.size(), static_cast<std::size_t>(workers));
    for (const auto& [begin, end, worker] : ranges) {
      const Index length = (end - begin) / grain;
      EXPECT_GE(length, grains / workers);
      EXPECT_LE(length, (grains + workers - 1) / workers);
    }
  }
}

TEST(ParallelRanges, SplitIsAFunctionOfCountGrainAndWorkersAlone) {
  ThreadExecutor executor(3);
  for (int repetition = 0; repetition < 20; ++repetition) {
    for (const auto& [begin, end, worker] : ranges_of(executor, 96, 8)) {
      EXPECT_EQ(begin, 32 * worker);
      EXPECT_EQ(end, 32 * (worker + 1));
    }
  }
}

TEST(ParallelRanges, WorkOfOneGrainStaysOnTheCallingThread) {
  ThreadExecutor executor(4);
  std::thread::id thread;
  parallel_ranges(executor, 16, 16, [&](Index /*begin*/, Index /*end*/, int worker) {
    thread = std::this_thread::get_id();
    EXPECT_EQ(worker, 0);
  });
  EXPECT_EQ(thread, std::this_thread::get_id());
}

}  // namespace
