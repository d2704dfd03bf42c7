// SPDX-License-Identifier: MIT
// A job ends as its ranks do: well when all do, at once and with a reason when one does not.
#include "lora/mpi/session.hpp"

#include <gtest/gtest.h>
#include <string>
#include <utility>

#include "mpi/job.hpp"

namespace lora::testing::session_test {
namespace {

/// A job that failed within the limit. A rank that fails gives the others one second.
::testing::AssertionResult failed_in_time(const JobRun& run) {
  if (run.exit_code == 0 || run.exit_code == job_hung || run.seconds > job_limit) {
    return ::testing::AssertionFailure() << "exit code " << run.exit_code << " after " << run.seconds << " s\n"
                                         << run.output;
  }
  return ::testing::AssertionSuccess();
}

TEST(SessionJob, EndsWellWhenEveryRankDoes) {
  for (const int ranks : {1, 3}) {
    const auto run = run_job(ranks, "--worker", "succeeds");
    EXPECT_EQ(run.exit_code, 0) << run.output;
    EXPECT_EQ(run.output, "");
  }
}

TEST(SessionJob, AnExceptionEndsTheJobWithItsMessageAndRank) {
  const auto run = run_job(3, "--worker", "throws");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("rank 1 of 3: LoraConfig: rank: expected a number that is not negative, got -1\n"))
      << run.output;
}

TEST(SessionJob, SoDoesOneOfAnotherKind) {
  const auto run = run_job(2, "--worker", "throws_a_number");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("rank 1 of 2: an exception that is no std::exception\n")) << run.output;
}

TEST(SessionJob, AKilledRankEndsTheJob) {
  const auto run = run_job(3, "--worker", "is_killed");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("process rank 1")) << run.output;
  EXPECT_TRUE(run.says("signal 9")) << run.output;
}

TEST(SessionJob, ARankThatExitsEndsTheJob) {
  const auto run = run_job(2, "--worker", "exits");
  EXPECT_TRUE(failed_in_time(run));
}

TEST(SessionJob, AnExitCodeOfOneRankIsThatOfTheJob) {
  const auto run = run_job(3, "--worker", "returns_3");
  EXPECT_EQ(run.exit_code, 3) << run.output;
  EXPECT_TRUE(run.says("rank 1 of 3: returned exit code 3\n")) << run.output;
}

TEST(SessionJob, AnExitCodeOfAllRanksNeedsNoAbort) {
  const auto run = run_job(3, "--worker", "all_return_3");
  EXPECT_EQ(run.exit_code, 3) << run.output;
  EXPECT_FALSE(run.says("MPI_ABORT")) << run.output;
  EXPECT_FALSE(run.says("returned exit code")) << run.output;
}

TEST(SessionJob, ASessionWithinAnotherIsAGuest) {
  const auto run = run_job(2, "--worker", "by_hand");
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_TRUE(run.says("rank 0 was here\n") && run.says("rank 1 was here\n")) << run.output;
}

TEST(SessionJob, AnExceptionPastASessionEndsTheJob) {
  const auto run = run_job(2, "--worker", "by_hand_fails");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("rank 1 of 2: an exception left the session\n")) << run.output;
}

TEST(SessionJob, EveryRankSaysOnWhichConfigurationTheyDisagree) {
  const auto run = run_job(3, "--worker", "disagrees_on_config");
  EXPECT_TRUE(failed_in_time(run));
  for (const char* rank : {"0", "1", "2"}) {
    const std::string line = std::string("rank ").append(rank).append(
        " of 3: lora::mpi::require_agreement: config: expected '{\"r\": 4, \"lora_alpha\": 16}' as on rank 0, got "
        "'{\"r\": 8, \"lora_alpha\": 16}' on rank 1\n");
    EXPECT_TRUE(run.says(line)) << line << "is missing in\n" << run.output;
  }
}

TEST(SessionJob, AReducerRefusesModelsOfDifferentShapes) {
  const auto run = run_job(2, "--worker", "disagrees_on_shapes");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("lora_A.weight 4 x 5 float")) << run.output;
  EXPECT_TRUE(run.says("lora_A.weight 8 x 5 float")) << run.output;
}

TEST(SessionJob, AnExceptionWhileGradientsTravelEndsTheJob) {
  const auto run = run_job(3, "--worker", "throws_in_flight");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("rank 1 of 3: backward: layer: expected a forward pass before, got none\n")) << run.output;
}

TEST(SessionJob, StartsInAnotherOrderEndTheJob) {
  const auto run = run_job(3, "--worker", "starts_in_another_order");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(
      run.says("GradientReducer::reduce: start(): expected the same parameters in the same order as on rank 0, "
               "got others on rank 1\n"))
      << run.output;
}

// MPI may notice first.
TEST(SessionJob, SoDoStartsOfTensorsOfOtherSizes) {
  const auto run = run_job(3, "--worker", "starts_tensors_of_other_sizes");
  EXPECT_TRUE(failed_in_time(run));
  EXPECT_TRUE(run.says("GradientReducer::reduce: start()") || run.says("MPI_ERR_TRUNCATE")) << run.output;
}

// Rank 1 neither dies nor answers. Without a timeout the others would wait for ever.
TEST(SessionJob, AHangingRankEndsTheJobAfterTheTimeout) {
  for (const auto& [worker, call] : {std::pair{"hangs", "MPI_Ibarrier"},
                                     {"hangs_in_flight", "MPI_Iallgather"},
                                     {"hangs_at_the_end", "lora::mpi::Session::leave"}}) {
    const auto run = run_job(3, "--worker", worker);
    EXPECT_TRUE(failed_in_time(run)) << worker;
    EXPECT_GE(run.seconds, 3) << worker;
    const std::string line =
        std::string("rank 0 of 3: ").append(call).append(": expected an answer of every rank within 3 s, got none\n");
    EXPECT_TRUE(run.says(line)) << line << "is missing in\n" << run.output;
  }
}

// In the clock's nanoseconds such a limit overflowed, and the job ended at once.
TEST(SessionJob, TheLongestTimeoutIsWaitedFor) {
  const auto run = run_job(2, "--worker", "is_late");
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ(run.output, "");
}

TEST(SessionJob, ATimeoutThatIsNotPositiveIsRefusedBeforeMpiBegins) {
  const auto run = run_job(1, "--worker", "refused_timeout");
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ(run.output, "lora::mpi::Session: timeout: expected a positive time, got 0 ms\n");
}

}  // namespace
}  // namespace lora::testing::session_test
