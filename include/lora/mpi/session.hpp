// SPDX-License-Identifier: MIT
// Initialising and finalising MPI in a program, and stopping the other ranks when one fails.
#pragma once

#include <chrono>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/mpi/communicator.hpp"

namespace lora::mpi {

/// Initialises MPI and finalises it, unless the program has already initialised it. The program may use threads, but
/// only the thread that created the session calls MPI (MPI_THREAD_FUNNELED).
class Session {
 public:
  /// `timeout`: how long leave() with code 0 waits for the other ranks, see Communicator.
  /// @throws StateError when MPI was finalised before or does not allow threads; ConfigError for a timeout that is not
  /// positive
  Session(int& argc, char**& argv, Communicator::Timeout timeout = std::nullopt) {
    timeout = detail::checked_timeout("lora::mpi::Session", timeout);
    require_not_finalized();
    int initialized = 0;
    MPI_Initialized(&initialized);
    owner_ = initialized == 0;
    int threads = MPI_THREAD_SINGLE;
    if (owner_) {
      detail::check("MPI_Init_thread", MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads));
    } else {
      detail::check("MPI_Query_thread", MPI_Query_thread(&threads));
    }
    if (threads < MPI_THREAD_FUNNELED) {
      throw StateError("lora::mpi::Session", "MPI", "support for MPI_THREAD_FUNNELED", "MPI_THREAD_SINGLE");
    }
    control_.emplace(MPI_COMM_WORLD, timeout);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Waits for every rank. If an exception destroys a rank's session, that rank ends the job, as abort() does.
  ~Session() {
    if (std::uncaught_exceptions() > exceptions_) abort("an exception left the session");
    control_.reset();
    if (owner_) MPI_Finalize();
  }

  /// Prints which rank failed and why on standard error, waits at most Communicator::patience for the other ranks to
  /// call it too, and ends the whole job with exit code `code`, whatever the other ranks are doing.
  [[noreturn]] void abort(std::string_view message, int code = EXIT_FAILURE) const noexcept {
    control_->report(message);
    if (all_leave(Communicator::patience)) control_->let_rank_0_go_first();
    control_->end_job(code);
  }

  /// The last call of a rank, with its exit code. With code 0 it waits for the others, at most the timeout. With
  /// another code it waits at most Communicator::patience, and ends the job if a rank is still working then: that rank
  /// might wait for this one for ever.
  int leave(int code) const noexcept {
    if (code == EXIT_SUCCESS) {
      if (!all_leave(control_->timeout()) && control_->timeout()) control_->give_up("lora::mpi::Session::leave");
    } else if (!all_leave(Communicator::patience)) {
      control_->report(std::string("returned exit code ").append(std::to_string(code)));
      control_->end_job(code);
    }
    return code;
  }

 private:
  static void require_not_finalized() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized != 0) throw StateError("lora::mpi::Session", "MPI", "one that was not finalised", "a finalised one");
  }

  // Whether every rank gets here within `limit`.
  bool all_leave(std::optional<std::chrono::milliseconds> limit) const noexcept {
    MPI_Request arrival = MPI_REQUEST_NULL;
    if (MPI_Ibarrier(control_->handle(), &arrival) != MPI_SUCCESS) return false;
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0; done == 0;) {
      if (MPI_Test(&arrival, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
      if (done != 0) break;
      if (limit && detail::passed(begin, *limit)) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  bool owner_ = false;
  std::optional<Communicator> control_;  // keeps the messages of leaving apart from the user's
  int exceptions_ = std::uncaught_exceptions();
};

/// Initialises MPI, runs `body(world)` and finalises MPI; return its result from `int main`. `body` returns nothing or
/// an exit code. An exception on any rank is printed with the rank's number, and the job ends with a non-zero exit code
/// on every rank: none waits for the one that failed. With a `timeout`, none waits longer for one that hangs, see
/// Communicator. @throws ConfigError, before `body` is called, for a timeout that is not positive
///
///     int main(int argc, char** argv) {
///       return lora::mpi::run(argc, argv, [](const lora::mpi::Communicator& world) { ... });
///     }
template <class Body>
int run(int& argc, char**& argv, Body&& body, Communicator::Timeout timeout = std::nullopt) {
  const Session session(argc, argv, timeout);
  try {
    const Communicator world(MPI_COMM_WORLD, timeout);
    int code = EXIT_SUCCESS;
    if constexpr (std::is_void_v<std::invoke_result_t<Body, const Communicator&>>) {
      std::forward<Body>(body)(world);
    } else {
      code = std::forward<Body>(body)(world);
    }
    return session.leave(code);
  } catch (const std::exception& error) {
    session.abort(error.what());
  } catch (...) {
    session.abort("an exception that is no std::exception");
  }
}

}  // namespace lora::mpi
