// SPDX-License-Identifier: MIT
// Starts this very program on several ranks, as a user does with mpirun, and takes what becomes of it.
#pragma once

#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <string>

#include "support/mpirun.hpp"

namespace lora::testing {

struct JobRun {
  int exit_code = -1;
  std::string output;
  double seconds = 0;

  [[nodiscard]] bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

/// `mpirun -n ranks <this program> <mode> <argument>`, with any number of ranks on any number of cores.
[[nodiscard]] inline JobRun run_job(int ranks, const std::string& mode, const std::string& argument) {
  char program[4096] = {};
  const auto length = ::readlink("/proc/self/exe", program, sizeof(program) - 1);
  if (length <= 0) throw std::runtime_error("no /proc/self/exe");
  const auto begin = std::chrono::steady_clock::now();
  const auto run = run_under_mpirun({"-n", std::to_string(ranks), program, mode, argument});
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  return {run.exit_code, run.output, time.count()};
}

}  // namespace lora::testing
