// SPDX-License-Identifier: MIT
// Runs loops on a pool of threads that the caller owns: Eigen's ThreadPool, or any other Eigen::ThreadPoolInterface.
#pragma once

#include <condition_variable>
#include <mutex>
#include <type_traits>

// Eigen 5 moved the pool out of its unsupported modules.
#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#include "lora/core/executor.hpp"

namespace lora {

/// The calling thread and the threads of a pool: workers() is pool.NumThreads() + 1, so that a pool of P - 1 threads
/// keeps P cores busy. The pool is not owned, must outlive the executor, and may be shared with other work.
///
/// run(body) calls body(0) on the calling thread and schedules the rest; it sleeps, and never spins, until the pool is
/// done. When called from a thread of the pool itself, as a loop within a loop is, it runs every body on that thread: a
/// thread that waits for its own pool may wait for ever.
///
/// Idle threads of an Eigen::ThreadPool look for work for a while before they sleep; a pool made with
/// `allow_spinning = false`, as in `Eigen::ThreadPool pool(threads, false)`, goes to sleep at once and leaves the core
/// to its neighbours.
///
/// No allocation. Many threads may call run() on one executor at the same time.
/// @throws what the pool's Schedule throws when memory runs out, once the bodies that were scheduled have ended;
/// Eigen's throws nothing.
class ThreadPoolExecutor final : public Executor {
 public:
  /// Runs on `pool`, which must outlive this executor. No allocation.
  // NOLINTNEXTLINE(google-explicit-constructor): a pool converts wherever an executor is expected.
  ThreadPoolExecutor(Eigen::ThreadPoolInterface& pool) noexcept : pool_(pool) {}

  [[nodiscard]] int workers() const noexcept override { return pool_.NumThreads() + 1; }

  void run(FunctionRef<void(int)> body) override {
    const int count = workers();
    if (pool_.CurrentThreadId() >= 0) {
      for (int worker = 0; worker < count; ++worker) body(worker);
      return;
    }
    Loop loop{body, count - 1};
    // One pointer, so that std::function stores the closure without allocating. Each closure takes the next number.
    Loop* const shared = &loop;
    int scheduled = 1;
    try {
      for (; scheduled < count; ++scheduled) pool_.Schedule([shared] { shared->run_next(); });
    } catch (...) {
      loop.forget(count - scheduled);
      loop.wait();
      throw;
    }
    body(0);
    loop.wait();
  }

 private:
  // One call of run(), on its stack. The last closure notifies while it holds the lock, so once wait() holds the lock
  // and finds nothing left, no closure touches the loop any more.
  class Loop {
   public:
    Loop(FunctionRef<void(int)> body, int scheduled) noexcept : body_(body), waiting_(scheduled), running_(scheduled) {}

    void run_next() {
      body_(take());
      const std::lock_guard lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }

    /// Some closures were not scheduled after all.
    void forget(int closures) {
      const std::lock_guard lock(mutex_);
      running_ -= closures;
    }

    void wait() {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return running_ == 0; });
    }

   private:
    int take() {
      const std::lock_guard lock(mutex_);
      return waiting_--;
    }

    FunctionRef<void(int)> body_;
    std::mutex mutex_;
    std::condition_variable done_;
    int waiting_;
    int running_;
  };

  Eigen::ThreadPoolInterface& pool_;
};

/// With this header, `layer.set_executor(pool)` and `Workspace(pool)` accept the pool itself.
template <class Pool>
  requires(std::is_base_of_v<Eigen::ThreadPoolInterface, Pool>)
struct ExecutorOf<Pool> {
  using Type = ThreadPoolExecutor;  ///< the executor for the pool
};

}  // namespace lora
