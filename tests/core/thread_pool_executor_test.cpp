// SPDX-License-Identifier: MIT
#include "lora/core/thread_pool_executor.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <functional>
#include <gtest/gtest.h>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "core/executor_checks.hpp"

namespace {

using lora::ThreadPoolExecutor;
using lora::testing::calls_per_worker;

TEST(ThreadPoolExecutorConcurrent, CallsEachWorkerOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    Eigen::ThreadPool pool(threads, false);
    ThreadPoolExecutor executor(pool);
    ASSERT_EQ(executor.workers(), threads + 1);
    for (int repetition = 0; repetition < 200; ++repetition) {
      ASSERT_EQ(calls_per_worker(executor), std::vector<int>(static_cast<std::size_t>(threads) + 1, 1));
    }
  }
}

TEST(ThreadPoolExecutorConcurrent, TheCallerIsWorkerZeroAndTheRestAreThePools) {
  Eigen::ThreadPool pool(2, false);
  ThreadPoolExecutor executor(pool);
  std::vector<int> pool_thread(3, -2);
  executor.run([&](int worker) { pool_thread[static_cast<std::size_t>(worker)] = pool.CurrentThreadId(); });
  EXPECT_EQ(pool_thread[0], -1);
  EXPECT_GE(pool_thread[1], 0);
  EXPECT_GE(pool_thread[2], 0);
}

TEST(ThreadPoolExecutorConcurrent, BodiesRunAtTheSameTime) {
  Eigen::ThreadPool pool(2, false);
  ThreadPoolExecutor executor(pool);
  std::mutex mutex;
  std::condition_variable all_here;
  int here = 0;
  // Returns only if three bodies are under way together.
  executor.run([&](int /*worker*/) {
    std::unique_lock lock(mutex);
    if (++here == 3) all_here.notify_all();
    all_here.wait(lock, [&] { return here == 3; });
  });
  EXPECT_EQ(here, 3);
}

TEST(ThreadPoolExecutorConcurrent, ALoopWithinALoopRunsWhereItIs) {
  Eigen::ThreadPool pool(2, false);
  ThreadPoolExecutor executor(pool);
  std::atomic<int> calls{0};
  executor.run([&](int /*worker*/) { executor.run([&](int /*inner*/) { ++calls; }); });
  EXPECT_EQ(calls, 9);
}

TEST(ThreadPoolExecutorConcurrent, ManyCallersShareOneExecutor) {
  Eigen::ThreadPool pool(2, false);
  ThreadPoolExecutor executor(pool);
  lora::testing::expect_shared_by_callers(executor, 4, 100);
}

TEST(ThreadPoolExecutorConcurrent, AProductHasTheSameBits) {
  Eigen::ThreadPool pool(3, false);
  ThreadPoolExecutor executor(pool);
  lora::testing::expect_same_bits_as_serial(executor);
}

// A pool whose memory runs out at the second closure.
class ShortPool final : public Eigen::ThreadPoolInterface {
 public:
  void Schedule(std::function<void()> closure) override {
    if (scheduled_++ == 1) throw std::bad_alloc();
    pool_.Schedule(std::move(closure));
  }
  [[nodiscard]] int NumThreads() const override { return 3; }
  [[nodiscard]] int CurrentThreadId() const override { return pool_.CurrentThreadId(); }

 private:
  Eigen::ThreadPool pool_{3, false};
  int scheduled_ = 0;
};

// The bodies that run already refer to the caller's stack.
TEST(ThreadPoolExecutorConcurrent, APoolWithoutMemoryIsLeftWhenItsBodiesHaveEnded) {
  ShortPool pool;
  ThreadPoolExecutor executor(pool);
  std::atomic<int> ended = 0;
  EXPECT_THROW(executor.run([&](int /*worker*/) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ++ended;
  }),
               std::bad_alloc);
  EXPECT_EQ(ended, 1);
}

// Processor time is what a spinning thread takes from its neighbours. The body sleeps for 0.2 s; a caller or a pool
// that spins for that long takes 0.2 s or more of processor time, and one that sleeps next to none.
TEST(ThreadPoolExecutorConcurrent, NobodySpinsWhileABodyTakesLong) {
  Eigen::ThreadPool pool(1, false);
  ThreadPoolExecutor executor(pool);
  (void)calls_per_worker(executor);
  const std::clock_t before = std::clock();
  executor.run([](int worker) {
    if (worker == 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  });
  const double seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 0.1);
}

TEST(ThreadPoolExecutorConcurrent, AWorkspaceTakesAPoolItselfAndItsCopiesShareIt) {
  Eigen::ThreadPool pool(2, false);
  lora::Workspace first(pool);
  lora::Workspace copy = first;
  first = lora::Workspace();
  EXPECT_EQ(first.executor().workers(), 1);
  EXPECT_EQ(copy.executor().workers(), 3);
  EXPECT_EQ(calls_per_worker(copy.executor()), std::vector<int>(3, 1));
  static_assert(std::is_convertible_v<Eigen::ThreadPool&, ThreadPoolExecutor>);
  static_assert(lora::PoolOfThreads<Eigen::ThreadPool> && !lora::PoolOfThreads<ThreadPoolExecutor>);
}

}  // namespace
