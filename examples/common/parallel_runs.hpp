// SPDX-License-Identifier: MIT
// Independent pieces of work on all cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace examples {

/// Calls run(0), ..., run(count - 1), each once, on up to `workers` threads; in this order when there is one.
/// Rethrows the first exception, after which no new call starts.
template <class Run>
void parallel_runs(std::size_t count, std::size_t workers, const Run& run) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        run(i);
      } catch (...) {
        next = count;
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (std::size_t w = 1; w < workers && w < count; ++w) threads.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

/// Cores this process may use, at least 1.
[[nodiscard]] inline std::size_t available_cores() {
  return std::max<std::size_t>(1, std::thread::hardware_concurrency());
}

}  // namespace examples
