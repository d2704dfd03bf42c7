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
#include <thread>
#include <vector>

#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace {

using lora::OpenMpExecutor;

std::vector<int> calls_per_worker(lora::Executor& executor) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(executor.workers()));
  executor.run([&](int worker) { ++calls.at(static_cast<std::size_t>(worker)); });
  return {calls.begin(), calls.end()};
}

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
  std::vector<int> sums(3, 0);
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < sums.size(); ++caller) {
    callers.emplace_back([&, caller] {
      for (int repetition = 0; repetition < 50; ++repetition) {
        for (const int calls : calls_per_worker(executor)) sums[caller] += calls;
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(sums, std::vector<int>(3, 100));
}

TEST(OpenMpExecutorConcurrent, AProductHasTheSameBits) {
  const auto w = lora::testing::random_matrix<float>(70, 90, 1);
  const auto x = lora::testing::random_matrix<float>(21, 90, 2);
  const lora::PackedWeight<float> weight(lora::view_of(w));
  lora::Matrix<float> y(21, 70), expected(21, 70);
  lora::Workspace serial;
  weight.product(lora::view_of(x), nullptr, {}, lora::view_of(expected), serial);
  OpenMpExecutor executor(4);
  lora::Workspace workspace(executor);
  weight.product(lora::view_of(x), nullptr, {}, lora::view_of(y), workspace);
  EXPECT_TRUE(lora::testing::same_bits(y, expected));
}

}  // namespace

#endif
