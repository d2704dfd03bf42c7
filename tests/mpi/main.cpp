// SPDX-License-Identifier: MIT
// The program of these tests, in three roles. Started by itself it runs the suites ...Job, which start it under mpirun:
// with --ranks FILTER to run the other suites on every rank, with --worker NAME to misbehave as its name says.
#include <gtest/gtest.h>
#include <string>
#include <string_view>

#include "lora/mpi/session.hpp"
#include "mpi/ranks.hpp"
#include "mpi/workers.hpp"

namespace {

/// All tests but jobs, on every rank. The first failure of any rank is thrown, and with it the job ends: a rank that
/// went on alone would wait for messages that never come.
int run_on_ranks(const lora::mpi::Communicator& world, const std::string& filter) {
  lora::testing::world_pointer() = &world;
  ::testing::GTEST_FLAG(filter) = filter + "-*Job.*";
  ::testing::GTEST_FLAG(also_run_disabled_tests) = filter != "*";
  ::testing::GTEST_FLAG(throw_on_failure) = true;
  ::testing::GTEST_FLAG(catch_exceptions) = false;
  if (world.rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
  }
  return RUN_ALL_TESTS();
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const std::string_view mode = argc == 3 ? argv[1] : "";
  const std::string argument = argc == 3 ? argv[2] : "";
  if (mode == "--ranks") {
    return lora::mpi::run(argc, argv,
                          [&](const lora::mpi::Communicator& world) { return run_on_ranks(world, argument); });
  }
  if (mode == "--worker") return lora::testing::run_worker(argument, argc, argv);
  return RUN_ALL_TESTS();
}
