// SPDX-License-Identifier: MIT
// The sentence encoder's training as ranks of one job: the run that one process would do.
#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <string>
#include <utility>

#include "examples/temporary_folder.hpp"
#include "lora/mpi/gradient_reducer.hpp"
#include "mpi/ranks.hpp"
#include "sentence_encoder/fine_tuning.hpp"
#include "sentence_encoder/job.hpp"
#include "sentence_encoder/toy_classifier.hpp"

namespace fine_tuning_on_ranks_test {
namespace {

using examples::sentence_encoder::FineTuning;
using examples::sentence_encoder::FineTuningOptions;
using examples::sentence_encoder::Job;
using examples::sentence_encoder::JobShare;
using examples::sentence_encoder::run_as_job;
using examples::sentence_encoder::testing::ToyClassifier;
using examples::testing::TemporaryFolder;
using lora::testing::same_on_all_ranks;

FineTuningOptions toy_options() {
  FineTuningOptions options;
  options.epochs = 5;
  options.batch_size = 11;  // parts differ in size, and of the last batch, 2 of 90 points, ranks 2 and 3 get none
  options.learning_rate = 0.05;
  options.seed = 3;
  return options;
}

struct ToyRun {
  explicit ToyRun(JobShare share, const std::filesystem::path& folder = {})
      : training(classifier, ToyClassifier::points, toy_options(), "toy", folder, std::move(share)) {}

  ToyClassifier classifier;
  FineTuning<ToyClassifier> training;
};

/// Runs `body` on every rank with what mpirun's job gives each.
void on_every_rank(const std::function<void(const Job&)>& body) {
  int argc = 0;
  char** argv = nullptr;
  EXPECT_EQ(run_as_job(argc, argv,
                       [&](const Job& job) {
                         body(job);
                         return 0;
                       }),
            0);
}

TEST(FineTuningOnRanks, EndsOnAllWithTheSameBits) {
  on_every_rank([](const Job& job) {
    ToyRun run(job.share_of_run());
    while (!run.training.finished()) run.training.step();
    EXPECT_GT(run.training.state().best_score, 0.9);  // a third is chance
    for (const auto& parameter : run.classifier.parameters()) {
      EXPECT_TRUE(same_on_all_ranks(lora::Matrix<float>(parameter.value()))) << parameter.name();
    }
    const lora::Matrix<double> state{{static_cast<double>(run.training.state().step), run.training.state().best_score,
                                      static_cast<double>(run.training.state().best_step)}};
    EXPECT_TRUE(same_on_all_ranks(state));
  });
}

// The first loss is that of the start; the second also tells of the first update, whose elements AdamW makes g / |g|:
// an error relative to g moves them by no more than itself. No gradient of the bias is 0 there, as 11 rows of three
// classes are never balanced: AdamW would make a step of what rounding leaves. Logits sum 6 products, losses 11 rows.
TEST(FineTuningOnRanks, HasTheLossesOfOneProcess) {
  on_every_rank([](const Job& job) {
    ToyRun alone({});
    ToyRun shared(job.share_of_run());
    for (int step = 0; step < 2; ++step) {
      alone.training.step();
      shared.training.step();
      const double loss = alone.training.last_loss();
      EXPECT_NEAR(shared.training.last_loss(), loss, lora::mpi::gradient_tolerance<float>(11, 6, job.ranks) * loss);
    }
  });
}

// Each rank has a folder of its own here, as on machines without a shared disk. The ranks used to go on from different
// steps and waited for each other at the end.
TEST(FineTuningOnRanks, ResumeOnlyAtTheSameStep) {
  on_every_rank([](const Job& job) {
    const TemporaryFolder folder;
    ToyRun before({}, folder.path());
    for (int step = 0; step < (job.first() ? 3 : 2); ++step) before.training.step();
    before.training.save();
    ToyRun resumed(job.share_of_run(), folder.path());
    try {
      EXPECT_TRUE(resumed.training.resume());
      EXPECT_EQ(job.ranks, 1);
    } catch (const lora::ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("step: expected '3' as on rank 0, got '2' on rank 1"), std::string::npos)
          << error.what();
    }
  });
}

TEST(FineTuningOnRanks, ResumeEverywhereOrNowhere) {
  on_every_rank([](const Job& job) {
    const TemporaryFolder folder;
    if (job.first()) {
      ToyRun before({}, folder.path());
      before.training.step();
      before.training.save();
    }
    ToyRun resumed(job.share_of_run(), folder.path());
    if (job.ranks == 1) {
      EXPECT_TRUE(resumed.training.resume());
    } else {
      EXPECT_THROW(resumed.training.resume(), lora::ConfigError);
    }
  });
}

TEST(FineTuningOnRanks, MeasuresItsReductions) {
  on_every_rank([](const Job& job) {
    const auto measured = job.measure_reductions();
    ASSERT_GE(measured.size(), 2U);
    for (const auto& one : measured) EXPECT_GT(one.seconds, 0);
  });
}

}  // namespace
}  // namespace fine_tuning_on_ranks_test
