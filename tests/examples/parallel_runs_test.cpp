// SPDX-License-Identifier: MIT
// Every run happens once, and a failure reaches the caller.
#include "common/parallel_runs.hpp"

#include <atomic>
#include <gtest/gtest.h>
#include <stdexcept>
#include <vector>

namespace parallel_runs_test {
namespace {

using examples::parallel_runs;

TEST(ParallelRunsThreads, CallEachOnce) {
  for (const std::size_t workers : {1U, 2U, 5U}) {
    std::vector<std::atomic<int>> calls(17);
    parallel_runs(calls.size(), workers, [&](std::size_t i) { ++calls[i]; });
    for (const auto& count : calls) EXPECT_EQ(count, 1);
  }
}

TEST(ParallelRunsThreads, MayHaveNothingToDo) {
  parallel_runs(0, 2, [](std::size_t /*i*/) { FAIL(); });
}

TEST(ParallelRunsThreads, RethrowAndStartNoMore) {
  for (const std::size_t workers : {1U, 3U}) {
    std::atomic<int> calls{0};
    EXPECT_THROW(parallel_runs(1000, workers,
                               [&](std::size_t /*i*/) {
                                 ++calls;
                                 throw std::runtime_error("run");
                               }),
                 std::runtime_error);
    EXPECT_LE(calls, static_cast<int>(workers));
  }
}

}  // namespace
}  // namespace parallel_runs_test
