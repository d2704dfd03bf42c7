// SPDX-License-Identifier: MIT
// A group of processes that exchange messages: the library's own MPI communicator, with errors as exceptions.
#pragma once

// Leaves out the deprecated C++ bindings of OpenMPI and MPICH.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace lora::mpi {

/// A call of MPI failed. `code` is what MPI returned.
class MpiError : public Error {
 public:
  /// `operation` is the MPI function, `code` what it returned.
  MpiError(std::string_view operation, int code)
      : Error(operation, "communication", "MPI_SUCCESS", text_of(code)), code_(code) {}

  /// What MPI returned.
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  static std::string text_of(int code) {
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return "error " + std::to_string(code);
    return {text, static_cast<std::size_t>(length)};
  }

  int code_;
};

namespace detail {

/// @throws MpiError unless `code`, which the call named `operation` returned, is MPI_SUCCESS.
inline void check(std::string_view operation, int code) {
  if (code != MPI_SUCCESS) throw MpiError(operation, code);
}

template <RealScalar Scalar>
[[nodiscard]] MPI_Datatype datatype() noexcept {
  static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>);
  return std::is_same_v<Scalar, float> ? MPI_FLOAT : MPI_DOUBLE;
}

/// A number of elements as MPI counts them. @throws ShapeError above INT_MAX
template <class Size>
[[nodiscard]] int checked_count(std::string_view operation, Size size) {
  if (!std::in_range<int>(size)) {
    throw ShapeError(operation, "size", "at most " + std::to_string(INT_MAX) + " elements", std::to_string(size));
  }
  return static_cast<int>(size);
}

/// `timeout`, for the operation named. @throws ConfigError unless it is positive or none
[[nodiscard]] inline std::optional<std::chrono::milliseconds> checked_timeout(
    std::string_view operation, std::optional<std::chrono::milliseconds> timeout) {
  if (timeout && timeout->count() <= 0) {
    throw ConfigError(operation, "timeout", "a positive time", std::to_string(timeout->count()) + " ms");
  }
  return timeout;
}

/// Whether more than `limit` has passed since `begin`. In floating point: the longest limits overflow the clock's
/// ticks.
[[nodiscard]] inline bool passed(std::chrono::steady_clock::time_point begin, std::chrono::milliseconds limit) {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - begin;
  return since > std::chrono::duration<double>(limit);
}

}  // namespace detail

/// A duplicate of an MPI communicator, freed with this object; its messages never mix with those of other code. Its
/// calls report errors as MpiError instead of ending the job.
///
/// Constructing and destroying are collective: every rank of `parent` does both, in the same order. If an exception
/// destroys a Communicator on one rank, it is not freed, since the other ranks may never join the call; such a job can
/// only end (Session ends it).
///
/// A rank that dies ends the job; one that hangs does not. With a timeout, a rank that waits longer than this for the
/// others, in any later call of this namespace, prints which call it was and ends the job. It does not throw: MPI would
/// still use the memory of the call. Choose more than the longest time that one rank computes, reads or writes while
/// the others wait for it. Constructing a Communicator or a GradientReducer waits for every rank without limit.
class Communicator {
 public:
  /// A time, or none: wait for ever.
  using Timeout = std::optional<std::chrono::milliseconds>;
  /// How long a rank that has failed lets the others print their messages before it ends the job.
  static constexpr std::chrono::milliseconds patience{1000};

  /// @throws ConfigError for a timeout that is not positive; MpiError
  explicit Communicator(MPI_Comm parent = MPI_COMM_WORLD, Timeout timeout = std::nullopt)
      : timeout_(detail::checked_timeout("lora::mpi::Communicator", timeout)) {
    detail::check("MPI_Comm_dup", MPI_Comm_dup(parent, &handle_));
    detail::check("MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN));
    detail::check("MPI_Comm_rank", MPI_Comm_rank(handle_, &rank_));
    detail::check("MPI_Comm_size", MPI_Comm_size(handle_, &size_));
  }
  Communicator(Communicator&& other) noexcept
      : handle_(std::exchange(other.handle_, MPI_COMM_NULL)),
        rank_(other.rank_),
        size_(other.size_),
        timeout_(other.timeout_),
        exceptions_(other.exceptions_) {}
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  Communicator& operator=(Communicator&&) = delete;
  ~Communicator() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (handle_ == MPI_COMM_NULL || finalized != 0 || std::uncaught_exceptions() > exceptions_) return;
    MPI_Comm_free(&handle_);
  }

  /// This process: 0 to size() - 1.
  [[nodiscard]] int rank() const noexcept { return rank_; }
  /// Processes of the communicator.
  [[nodiscard]] int size() const noexcept { return size_; }
  /// For MPI calls that this library does not make.
  [[nodiscard]] MPI_Comm handle() const noexcept { return handle_; }
  /// How long a call waits for the other ranks.
  [[nodiscard]] Timeout timeout() const noexcept { return timeout_; }

  /// Returns when every rank has called it. @throws MpiError
  void barrier() const {
    complete("MPI_Ibarrier", [&](MPI_Request* request) { return MPI_Ibarrier(handle_, request); });
  }

  /// Waits for what the MPI function named `operation` began on this communicator; at most the timeout.
  /// @throws MpiError
  void wait(std::string_view operation, MPI_Request& request) const {
    if (!timeout_) return detail::check(operation, MPI_Wait(&request, MPI_STATUS_IGNORE));
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0;;) {
      detail::check(operation, MPI_Test(&request, &done, MPI_STATUS_IGNORE));
      if (done != 0) return;
      if (detail::passed(begin, *timeout_)) give_up(operation);
      std::this_thread::yield();
    }
  }
  /// Calls `begin(&request)`, which calls the MPI function named `operation`, and waits. @throws MpiError
  template <class Begin>
  void complete(std::string_view operation, Begin&& begin) const {
    MPI_Request request = MPI_REQUEST_NULL;
    detail::check(operation, std::forward<Begin>(begin)(&request));
    wait(operation, request);
  }
  /// Ends the job: the other ranks did not answer `operation` within the timeout.
  [[noreturn]] void give_up(std::string_view operation) const noexcept {
    const std::chrono::duration<double> limit = timeout_.value_or(std::chrono::milliseconds(0));
    char message[256];
    std::snprintf(message, sizeof message, "%.*s: expected an answer of every rank within %g s, got none",
                  static_cast<int>(operation.size()), operation.data(), limit.count());
    report(message);
    let_rank_0_go_first();
    end_job(EXIT_FAILURE);
  }
  /// Prints "rank 1 of 4: " and `message` on standard error.
  void report(std::string_view message) const noexcept {
    std::fflush(stdout);
    // One write, so that the lines of several ranks do not mix.
    std::fprintf(stderr, "rank %d of %d: %.*s\n", rank_, size_, static_cast<int>(message.size()), message.data());
    std::fflush(stderr);
  }
  /// Waits for `patience` on every rank but 0. Where all ranks are about to end the job, only one does: several would
  /// confuse the launcher.
  void let_rank_0_go_first() const noexcept {
    if (rank_ != 0) std::this_thread::sleep_for(patience);
  }
  /// Ends the whole job with exit code `code`, whatever the other ranks are doing.
  [[noreturn]] void end_job(int code) const noexcept {
    MPI_Abort(MPI_COMM_WORLD, code);
    std::_Exit(code);
  }

 private:
  MPI_Comm handle_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  Timeout timeout_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace lora::mpi
