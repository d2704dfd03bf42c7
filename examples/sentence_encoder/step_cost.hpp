// SPDX-License-Identifier: MIT
// What a training step of each method takes: time, and the peak memory of a process that does nothing else.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <sys/resource.h>
#include <sys/wait.h>
#include <vector>

#include "common/interrupt.hpp"
#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/file_descriptor.hpp"

namespace examples::sentence_encoder {

using lora::Index;

struct StepCost {
  double median_seconds = 0;
  Index trainable_parameters = 0;
  std::size_t peak_bytes = 0;    ///< resident, of the whole process
  std::size_t frozen_bytes = 0;  ///< of the linear layers' frozen weights
};

/// The value in the middle, the upper of two. @throws lora::ConfigError of nothing
[[nodiscard]] inline double median(std::vector<double> values) {
  if (values.empty()) throw lora::ConfigError("median", "values", "at least one", "none");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// The largest resident memory this process has had.
[[nodiscard]] inline std::size_t peak_resident_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;  // Linux counts in KiB
}

namespace detail {

/// What a system call returns, made again while a signal interrupts it.
template <class Call>
[[nodiscard]] auto in_spite_of_signals(const Call& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

}  // namespace detail

/// Runs `measure` in a child process of its own and returns what it returned, peak_bytes filled in. Call it while the
/// process has one thread and little memory: the child starts as its copy. @throws lora::StateError when the child
/// fails; Interrupted, once it has ended, after a signal
[[nodiscard]] inline StepCost cost_in_child(const std::string& what, const std::function<StepCost()>& measure) {
  int ends[2];
  if (::pipe(ends) != 0) lora::throw_io_error("cost_in_child", "pipe", "a pipe", errno);
  const lora::FileDescriptor read_end(ends[0]);
  lora::FileDescriptor write_end(ends[1]);
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) lora::throw_io_error("cost_in_child", "fork", "a child process", errno);
  if (child == 0) {
    int code = 1;
    try {
      StepCost cost = measure();
      cost.peak_bytes = peak_resident_bytes();
      if (::write(write_end.get(), &cost, sizeof cost) == static_cast<ssize_t>(sizeof cost)) code = 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", what.c_str(), error.what());
    }
    ::_exit(code);
  }
  write_end = lora::FileDescriptor();
  StepCost cost;
  const auto count = detail::in_spite_of_signals([&] { return ::read(read_end.get(), &cost, sizeof cost); });
  int status = 0;
  static_cast<void>(detail::in_spite_of_signals([&] { return ::waitpid(child, &status, 0); }));
  throw_if_interrupted();
  if (count != static_cast<ssize_t>(sizeof cost) || status != 0) {
    throw lora::StateError("cost_in_child", what, "a child process that ends well", "status " + std::to_string(status));
  }
  return cost;
}

}  // namespace examples::sentence_encoder
