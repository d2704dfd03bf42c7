// SPDX-License-Identifier: MIT
// Where loops run: the caller passes an executor in. The library starts no threads of its own.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>

#include "lora/core/types.hpp"

namespace lora {

/// A non-owning reference to a callable; neither allocates nor copies it. The callable must outlive the reference.
template <class Signature>
class FunctionRef;

/// FunctionRef for a signature: FunctionRef<void(int)> refers to what can be called with an int.
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  /// Refers to `callable`, which must outlive this object.
  template <class Callable>
    requires(!std::is_same_v<std::remove_cvref_t<Callable>, FunctionRef> &&
             std::is_invocable_r_v<Result, Callable&, Arguments...>)
  // NOLINTNEXTLINE(google-explicit-constructor): converts from a lambda at the call.
  FunctionRef(Callable&& callable)
  noexcept
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Arguments... arguments) -> Result {
          return (*static_cast<std::remove_reference_t<Callable>*>(object))(std::forward<Arguments>(arguments)...);
        }) {}

  /// Calls it. @throws what it throws
  Result operator()(Arguments... arguments) const { return call_(object_, std::forward<Arguments>(arguments)...); }

 private:
  void* object_;
  Result (*call_)(void*, Arguments...);
};

/// Runs a loop body on one or more threads.
class Executor {
 public:
  Executor() = default;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  /// Number of workers, at least 1; constant over the executor's life.
  [[nodiscard]] virtual int workers() const noexcept = 0;

  /// Calls body(w) exactly once for each w in [0, workers()), possibly at the same time, and returns when all are done.
  /// The body does not throw.
  virtual void run(FunctionRef<void(int)> body) = 0;
};

/// The calling thread alone. Stateless: one object may serve any number of threads.
class SerialExecutor final : public Executor {
 public:
  [[nodiscard]] int workers() const noexcept override { return 1; }
  void run(FunctionRef<void(int)> body) override { body(0); }
};

/// Adapts another library's thread pool to Executor. A header that supports a kind of pool specialises this with `using
/// Type`: an Executor constructible from `Pool&`, on which any number of threads may call run().
/// thread_pool_executor.hpp does so for Eigen's pool.
template <class Pool>
struct ExecutorOf {};

/// A pool of threads that can be passed as an executor, once the header that supports it is included.
template <class Pool>
concept PoolOfThreads = requires {
  typename ExecutorOf<Pool>::Type;
};

/// Calls body(begin, end, worker) over a fixed split of [0, count) in one contiguous range per worker.
/// Boundaries are multiples of `grain`. No allocation.
template <class Body>
void parallel_ranges(Executor& executor, Index count, Index grain, const Body& body) {
  const Index grains = (count + grain - 1) / grain;
  const int workers = executor.workers();
  if (workers == 1 || grains <= 1) {
    if (count > 0) body(Index{0}, count, 0);
    return;
  }
  executor.run([&](int worker) {
    const Index begin = grains * worker / workers * grain;
    const Index end = std::min(count, grains * (worker + 1) / workers * grain);
    if (begin < end) body(begin, end, worker);
  });
}

}  // namespace lora
