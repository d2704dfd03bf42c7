// SPDX-License-Identifier: MIT
// Runs a job under mpirun as a user does, with any number of ranks on any number of cores.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "support/program.hpp"

namespace lora::testing {

/// Seconds after which a job counts as hanging, and `timeout` ends it with this exit code.
inline constexpr int job_limit = 120;
inline constexpr int job_hung = 124;

/// `mpirun <arguments>`. @throws std::runtime_error when it cannot be started
[[nodiscard]] inline ProgramRun run_under_mpirun(const std::vector<std::string>& arguments) {
  ::setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
  ::setenv("OMPI_MCA_mpi_yield_when_idle", "1", 1);
  if (::geteuid() == 0) {
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  std::vector<std::string> words = {"timeout", "--kill-after=10", std::to_string(job_limit), LORA_MPIEXEC};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return run_program("/usr/bin/env", words);
}

}  // namespace lora::testing
