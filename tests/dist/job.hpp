// Starts this very program on several ranks, as a user does with mpirun, and takes what becomes of it.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "support/program.hpp"

namespace lora::testing {

struct JobRun {
  int exit_code = -1;
  std::string output;
  double seconds = 0;

  [[nodiscard]] bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

/// Seconds after which a job counts as hanging, and `timeout` ends it with this exit code.
inline constexpr int job_limit = 120;
inline constexpr int job_hung = 124;

/// `mpirun -n ranks <this program> <mode> <argument>`, with any number of ranks on any number of cores.
[[nodiscard]] inline JobRun run_job(int ranks, const std::string& mode, const std::string& argument) {
  ::setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
  ::setenv("OMPI_MCA_mpi_yield_when_idle", "1", 1);
  if (::geteuid() == 0) {
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  char program[4096] = {};
  const auto length = ::readlink("/proc/self/exe", program, sizeof(program) - 1);
  if (length <= 0) throw std::runtime_error("no /proc/self/exe");
  const auto begin = std::chrono::steady_clock::now();
  const auto run = run_program("/usr/bin/env", {"timeout", "--kill-after=10", std::to_string(job_limit), LORA_MPIEXEC,
                                                "-n", std::to_string(ranks), program, mode, argument});
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
  return {run.exit_code, run.output, time.count()};
}

}  // namespace lora::testing
