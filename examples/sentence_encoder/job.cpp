// SPDX-License-Identifier: MIT
// The job's MPI, where the program is built with it.
#include "sentence_encoder/job.hpp"

#include <array>
#include <cstdlib>
#include <memory>
#include <string>

#ifdef LORA_EXAMPLES_WITH_MPI
#include "lora/mpi/mpi.hpp"
#include "sentence_encoder/link_measurement.hpp"
#endif

namespace examples::sentence_encoder {

namespace {

// OpenMPI's launcher, then those of MPICH and Slurm.
int number_from(std::initializer_list<const char*> names, int fallback) {
  for (const char* name : names) {
    if (const char* text = std::getenv(name)) return std::atoi(text);
  }
  return fallback;
}

}  // namespace

LaunchedAs launched_as() {
  return {number_from({"OMPI_COMM_WORLD_RANK", "PMI_RANK"}, 0), number_from({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}, 1)};
}

#ifdef LORA_EXAMPLES_WITH_MPI

namespace {

JobShare share_of(const lora::mpi::Communicator& world) {
  JobShare share;
  share.rank = world.rank();
  share.ranks = world.size();
  // Made with the first step of the run, when its parameters are known.
  const auto reducer = std::make_shared<std::unique_ptr<lora::mpi::GradientReducer<float>>>();
  share.average = [&world, reducer](std::span<const lora::Parameter<float>> parameters, Index rows, double loss) {
    if (!*reducer) *reducer = std::make_unique<lora::mpi::GradientReducer<float>>(world, parameters);
    (*reducer)->reduce(parameters, static_cast<double>(rows));
    double sums[2] = {loss * static_cast<double>(rows), static_cast<double>(rows)};
    world.complete("MPI_Iallreduce", [&](MPI_Request* request) {
      return MPI_Iallreduce(MPI_IN_PLACE, sums, 2, MPI_DOUBLE, MPI_SUM, world.handle(), request);
    });
    return sums[0] / sums[1];
  };
  share.of_first_rank = [&world](double value) {
    world.complete("MPI_Ibcast",
                   [&](MPI_Request* request) { return MPI_Ibcast(&value, 1, MPI_DOUBLE, 0, world.handle(), request); });
    return value;
  };
  share.require_agreement = [&world](const std::string& name, const std::string& value) {
    lora::mpi::require_agreement(world, name, value);
  };
  return share;
}

}  // namespace

int run_as_job(int argc, char** argv, const std::function<int(const Job&)>& body) {
  return lora::mpi::run(argc, argv, [&](const lora::mpi::Communicator& world) {
    Job job;
    job.rank = world.rank();
    job.ranks = world.size();
    job.share_of_run = [&] { return share_of(world); };
    job.take_first_ranks_values = [&](std::span<const lora::Parameter<float>> parameters) {
      lora::mpi::broadcast_values(world, parameters);
    };
    job.require_agreement = [&](const std::string& name, const std::string& value) {
      lora::mpi::require_agreement(world, name, value);
    };
    job.measure_reductions = [&] {
      // From what latency decides to what bandwidth does.
      constexpr std::array<lora::Index, 4> sizes = {1'000, 30'000, 500'000, 5'000'000};
      return sentence_encoder::measure_reductions(world, sizes);
    };
    return body(job);
  });
}

#else

int run_as_job(int /*argc*/, char** /*argv*/, const std::function<int(const Job&)>& /*body*/) {
  throw lora::ConfigError("sentence_encoder", "ranks", "1, as this program was built without MPI",
                          std::to_string(launched_as().ranks));
}

#endif

}  // namespace examples::sentence_encoder
