// SPDX-License-Identifier: MIT
#include "lora/core/openmp_executor.hpp"

#include <gtest/gtest.h>

#if defined(__SANITIZE_THREAD__)
#define LORA_TEST_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LORA_TEST_THREAD_SANITIZER 1
#endif
#endif

#if !defined(_OPENMP)

TEST(OpenMpExecutorConcurrent, NeedsOpenMp) { GTEST_SKIP() << "compiled without OpenMP"; }

#elif defined(LORA_TEST_THREAD_SANITIZER)

// libgomp synchronises in ways that ThreadSanitizer does not see, and would report races that are none.
TEST(OpenMpExecutorConcurrent, NeedsARuntimeThatThreadSanitizerKnows) {
  GTEST_SKIP() << "compiled with -fsanitize=thread";
}

#else

#include <atomic>
#include <vector>

#include "core/executor_checks.hpp"

namespace {

using lora::OpenMpExecutor;
using lora::testing::calls_per_worker;

TEST(OpenMpExecutorConcurrent, TakesTheNumberOfThreadsGivenOrOpenMps) {
  EXPECT_EQ(OpenMpExecutor(5).workers(), 5);
  EXPECT_EQ(OpenMpExecutor().workers(), omp_get_max_threads());
}

TEST(OpenMpExecutorConcurrent, CallsEachWorkerOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    OpenMpExecutor executor(threads);
    for (int repetition = 0; repetition < 50; ++repetition) {
      ASSERT_EQ(calls_per_worker(executor), std::vector<int>(static_cast<std::size_t>(threads), 1));
    }
  }
}

// Within a parallel region OpenMP grants one thread, which must make all the calls.
TEST(OpenMpExecutorConcurrent, ALoopWithinALoopMakesAllItsCalls) {
  OpenMpExecutor executor(3);
  std::atomic<int> calls{0};
  executor.run([&](int /*worker*/) { executor.run([&](int /*inner*/) { ++calls; }); });
  EXPECT_EQ(calls, 9);
}

TEST(OpenMpExecutorConcurrent, ManyCallersShareOneExecutor) {
  OpenMpExecutor executor(2);
  lora::testing::expect_shared_by_callers(executor, 3, 50);
}

TEST(OpenMpExecutorConcurrent, AProductHasTheSameBits) {
  OpenMpExecutor executor(4);
  lora::testing::expect_same_bits_as_serial(executor);
}

}  // namespace

#endif
