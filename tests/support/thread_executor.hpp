// SPDX-License-Identifier: MIT
// An executor for tests: new threads for every loop, so that the order of work is the scheduler's.
#pragma once

#include <thread>
#include <vector>

#include "lora/core/executor.hpp"

namespace lora::testing {

class ThreadExecutor final : public Executor {
 public:
  explicit ThreadExecutor(int workers) : workers_(workers) {}

  [[nodiscard]] int workers() const noexcept override { return workers_; }

  void run(FunctionRef<void(int)> body) override {
    std::vector<std::thread> threads;
    for (int worker = 1; worker < workers_; ++worker) threads.emplace_back([body, worker] { body(worker); });
    body(0);
    for (auto& thread : threads) thread.join();
  }

 private:
  int workers_;
};

}  // namespace lora::testing
