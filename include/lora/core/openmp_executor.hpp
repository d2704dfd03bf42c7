// Runs loops on OpenMP's threads. Empty unless the including file is compiled with OpenMP (-fopenmp).
#pragma once

#if defined(_OPENMP)

#include <omp.h>

#include <algorithm>

#include "lora/core/executor.hpp"

namespace lora {

/// A team of OpenMP threads, of which the calling thread is one. Where OpenMP grants fewer threads than asked for, as
/// within another parallel region, those there are share the calls.
///
/// How idle threads wait is OpenMP's matter: OMP_WAIT_POLICY=passive lets them sleep, while the default of some
/// runtimes spins for milliseconds and starves a neighbour. Where that matters use ThreadPoolExecutor.
///
/// Allocates nothing itself; the runtime makes its threads in the first run() of each calling thread. Many threads may
/// call run() on one executor at the same time, each with a team of its own.
class OpenMpExecutor final : public Executor {
 public:
  /// `threads` < 1 takes what OpenMP would: OMP_NUM_THREADS, or the number of cores.
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
