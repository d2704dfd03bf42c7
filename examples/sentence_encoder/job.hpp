// SPDX-License-Identifier: MIT
// Several processes, on one machine or many, that train together: what the program needs of MPI, and no more.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "lora/core/parameter.hpp"
#include "sentence_encoder/fine_tuning.hpp"
#include "sentence_encoder/traffic.hpp"

namespace examples::sentence_encoder {

/// This process's place among the ranks; alone unless run_as_job says otherwise.
struct Job {
  int rank = 0;
  int ranks = 1;
  /// A share for one training run. Called by every rank for the same runs in the same order.
  std::function<JobShare()> share_of_run = [] { return JobShare{}; };
  /// Gives every rank the values that rank 0 has.
  std::function<void(std::span<const lora::Parameter<float>>)> take_first_ranks_values = [](auto&&) {};
  /// Throws lora::ConfigError on every rank unless all have this value alike.
  std::function<void(const std::string& name, const std::string& value)> require_agreement = [](auto&&, auto&&) {};

  /// Times the averaging of gradients between the ranks; every rank calls it, and gets the same. Nothing when alone.
  std::function<std::vector<ReductionTime>()> measure_reductions = [] { return std::vector<ReductionTime>{}; };

  [[nodiscard]] bool first() const noexcept { return rank == 0; }
};

/// Ranks of the job that mpirun started this process in, and which it is, before MPI begins.
struct LaunchedAs {
  int rank = 0;
  int ranks = 1;
};
[[nodiscard]] LaunchedAs launched_as();

/// Runs `body` as one rank of a job. A rank that fails ends the job. Returns the exit code.
/// @throws lora::ConfigError in a program that was built without MPI
int run_as_job(int argc, char** argv, const std::function<int(const Job&)>& body);

}  // namespace examples::sentence_encoder
