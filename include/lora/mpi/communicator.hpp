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

#include <climits>
#include <cstddef>
#include <exception>
#include <string>
#include <string_view>
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

}  // namespace detail

/// A duplicate of an MPI communicator, freed with this object; its messages never mix with those of other code. Its
/// calls report errors as MpiError instead of ending the job.
///
/// Constructing and destroying are collective: every rank of `parent` does both, in the same order. If an exception
/// destroys a Communicator on one rank, it is not freed, since the other ranks may never join the call; such a job can
/// only end (Session ends it).
class Communicator {
 public:
  /// @throws MpiError
  explicit Communicator(MPI_Comm parent = MPI_COMM_WORLD) {
    detail::check("MPI_Comm_dup", MPI_Comm_dup(parent, &handle_));
    detail::check("MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN));
    detail::check("MPI_Comm_rank", MPI_Comm_rank(handle_, &rank_));
    detail::check("MPI_Comm_size", MPI_Comm_size(handle_, &size_));
  }
  Communicator(Communicator&& other) noexcept
      : handle_(std::exchange(other.handle_, MPI_COMM_NULL)),
        rank_(other.rank_),
        size_(other.size_),
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

  /// Returns when every rank has called it. @throws MpiError
  void barrier() const { detail::check("MPI_Barrier", MPI_Barrier(handle_)); }

 private:
  MPI_Comm handle_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace lora::mpi
