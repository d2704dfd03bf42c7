// SPDX-License-Identifier: MIT
// Runs loops on OpenMP's threads. Empty unless the including file is compiled with OpenMP (-fopenmp).
#pragma once

#if defined(_OPENMP)

#include <omp.h>

#include <algorithm>

#include "lora/core/executor.hpp"

namespace lora {

/// A team of OpenMP threads that includes the calling thread. If OpenMP grants fewer threads than requested, as it does
/// inside another parallel region, those it grants share the calls.
///
/// OpenMP decides how idle threads wait: OMP_WAIT_POLICY=passive lets them sleep, while some runtimes by default spin
/// for milliseconds and starve other work. If that matters, use ThreadPoolExecutor.
///
/// Allocates nothing itself; the runtime creates its threads in the first run() of each calling thread. Many threads
/// may call run() on one executor at the same time, each with its own team.
class OpenMpExecutor final : public Executor {
 public:
  /// `threads` < 1 uses OpenMP's default: OMP_NUM_THREADS, or the number of cores.
  explicit OpenMpExecutor(int threads = 0) noexcept
      : workers_(threads > 0 ? threads : std::max(1, omp_get_max_threads())) {}

  [[nodiscard]] int workers() const noexcept override { return workers_; }

  void run(FunctionRef<void(int)> body) override {
    const int count = workers_;
#pragma omp parallel for num_threads(count) schedule(static, 1)
    for (int worker = 0; worker < count; ++worker) body(worker);
  }

 private:
  int workers_;
};

}  // namespace lora

#endif
