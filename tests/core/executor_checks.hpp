// SPDX-License-Identifier: MIT
// What every executor must do, whatever its threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <gtest/gtest.h>
#include <thread>
#include <vector>

#include "lora/core/executor.hpp"
#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {

/// How often one loop calls the body as each worker.
[[nodiscard]] inline std::vector<int> calls_per_worker(Executor& executor) {
  std::vector<std::atomic<int>> calls(static_cast<std::size_t>(executor.workers()));
  executor.run([&](int worker) { ++calls.at(static_cast<std::size_t>(worker)); });
  return {calls.begin(), calls.end()};
}

/// Loops that several threads start at the same time all make all their calls.
inline void expect_shared_by_callers(Executor& executor, int callers, int repetitions) {
  std::vector<int> sums(static_cast<std::size_t>(callers), 0);
  std::vector<std::thread> threads;
  for (int& sum : sums) {
    threads.emplace_back([&executor, &sum, repetitions] {
      for (int repetition = 0; repetition < repetitions; ++repetition) {
        for (const int calls : calls_per_worker(executor)) sum += calls;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(sums, std::vector<int>(sums.size(), repetitions * executor.workers()));
}

inline void expect_same_bits_as_serial(Executor& executor) {
  const auto w = random_matrix<float>(70, 90, 1);
  const auto x = random_matrix<float>(21, 90, 2);
  const PackedWeight<float> weight(view_of(w));
  Matrix<float> y(21, 70), expected(21, 70);
  Workspace serial;
  weight.product(view_of(x), nullptr, {}, view_of(expected), serial);
  Workspace workspace(executor);
  weight.product(view_of(x), nullptr, {}, view_of(y), workspace);
  EXPECT_TRUE(same_bits(y, expected));
}

}  // namespace lora::testing
