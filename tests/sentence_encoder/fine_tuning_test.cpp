// SPDX-License-Identifier: MIT
#include "sentence_encoder/fine_tuning.hpp"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <vector>

#include "examples/temporary_folder.hpp"
#include "sentence_encoder/toy_classifier.hpp"
#include "support/bits.hpp"

namespace fine_tuning_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using examples::sentence_encoder::testing::ToyClassifier;
using examples::testing::TemporaryFolder;
using lora::testing::same_bits;

using Toy = FineTuning<ToyClassifier>;

FineTuningOptions toy_options() {
  FineTuningOptions options;
  options.epochs = 5;
  options.batch_size = 8;
  options.learning_rate = 0.05;
  options.patience = 1000;
  options.seed = 3;
  return options;
}

/// A classifier and its training, which refer to each other.
struct ToyRun {
  explicit ToyRun(const std::filesystem::path& folder = {}, const FineTuningOptions& options = toy_options(),
                  JobShare share = {})
      : training(classifier, ToyClassifier::points, options, "toy", folder, std::move(share)) {}

  ToyRun& steps(Index count) {
    for (Index i = 0; i < count && !training.finished(); ++i) training.step();
    return *this;
  }
  ToyRun& to_end() { return steps(1000); }

  ToyClassifier classifier;
  Toy training;
};

void expect_same(const std::vector<StepValue>& a, const std::vector<StepValue>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].step, b[i].step);
    EXPECT_EQ(lora::testing::bits_of(a[i].value), lora::testing::bits_of(b[i].value));
  }
}

/// Parameters, moments, curves and the best: everything, to the bit.
void expect_same(ToyRun& a, ToyRun& b) {
  const auto left = a.classifier.parameters();
  const auto right = b.classifier.parameters();
  for (std::size_t i = 0; i < left.size(); ++i) {
    EXPECT_TRUE(same_bits(left[i].value(), right[i].value())) << left[i].name();
    EXPECT_EQ(left[i].moments().first, right[i].moments().first);
    EXPECT_EQ(left[i].moments().second, right[i].moments().second);
    EXPECT_EQ(left[i].moments().steps, right[i].moments().steps);
  }
  const TrainingState& s = a.training.state();
  const TrainingState& t = b.training.state();
  EXPECT_EQ(s.step, t.step);
  EXPECT_EQ(s.best_step, t.best_step);
  EXPECT_EQ(lora::testing::bits_of(s.best_score), lora::testing::bits_of(t.best_score));
  EXPECT_EQ(s.stale_evaluations, t.stale_evaluations);
  EXPECT_EQ(a.classifier.dropout_step(), b.classifier.dropout_step());
  expect_same(s.losses, t.losses);
  expect_same(s.evaluations, t.evaluations);
}

TEST(FineTuning, LearnsWhatTheDataSay) {
  ToyRun run;
  EXPECT_EQ(run.training.total_steps(), 60);  // ceil(90 / 8) * 5
  run.to_end();
  EXPECT_TRUE(run.training.finished());
  EXPECT_GT(run.training.state().best_score, 0.9);  // a third is chance
  EXPECT_LT(run.training.state().losses.back().value, run.training.state().losses.front().value);
}

TEST(FineTuning, IsAFunctionOfItsSeeds) {
  ToyRun a;
  ToyRun b;
  expect_same(a.to_end(), b.to_end());
  auto other = toy_options();
  other.seed = 4;
  ToyRun c({}, other);
  c.to_end();
  EXPECT_FALSE(same_bits(a.classifier.parameters()[0].value(), c.classifier.parameters()[0].value()));
}

// Before the first step, within an epoch, at an evaluation, at an epoch's end, at the end.
TEST(FineTuning, StoppedAndResumedEndsWithTheBitsOfAnUninterruptedRun) {
  ToyRun whole;
  whole.to_end();
  for (const Index stop : {0, 1, 5, 6, 7, 12, 13, 59, 60}) {
    SCOPED_TRACE(stop);
    const TemporaryFolder folder;
    {
      ToyRun first(folder.path());
      first.steps(stop).training.save();
    }
    ToyRun second(folder.path());
    EXPECT_TRUE(second.training.resume());
    EXPECT_EQ(second.training.state().step, stop);
    second.to_end();
    expect_same(whole, second);
  }
}

TEST(FineTuning, ResumedTwiceIsStillTheSame) {
  const TemporaryFolder folder;
  ToyRun whole;
  whole.to_end();
  for (int part = 0; part < 4; ++part) {
    ToyRun run(folder.path());
    EXPECT_EQ(run.training.resume(), part > 0);
    run.steps(13).training.save();
  }
  ToyRun last(folder.path());
  last.training.resume();
  expect_same(whole, last.to_end());
}

// The child saves now and then and is killed wherever it happens to be, which may be within a write.
TEST(FineTuning, KilledAndResumedEndsWithTheBitsOfAnUninterruptedRun) {
  ToyRun whole;
  ToyRun best;
  whole.to_end();
  best.to_end().training.restore_best();
  for (int attempt = 0; attempt < 4; ++attempt) {
    const TemporaryFolder folder;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ToyRun run(folder.path());
      while (!run.training.finished()) {
        run.steps(3).training.save();
        ::usleep(2000);
      }
      for (;;) ::pause();
    }
    ToyRun second(folder.path());
    while (!std::filesystem::exists(second.training.checkpoint_path())) ::usleep(200);
    ::usleep(static_cast<useconds_t>(5000 * attempt));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ASSERT_TRUE(second.training.resume());
    EXPECT_GT(second.training.state().step, 0);
    second.to_end();
    expect_same(whole, second);
    second.training.restore_best();
    EXPECT_TRUE(same_bits(best.classifier.parameters()[0].value(), second.classifier.parameters()[0].value()));
  }
}

TEST(FineTuning, WithoutACheckpointThereIsNothingToResume) {
  const TemporaryFolder folder;
  EXPECT_FALSE(ToyRun(folder.path()).training.resume());
  EXPECT_FALSE(ToyRun().training.resume());
}

TEST(FineTuning, ACheckpointOfAnotherRunIsRefused) {
  const TemporaryFolder folder;
  ToyRun(folder.path()).steps(4).training.save();
  auto options = toy_options();
  options.learning_rate = 0.01;
  ToyRun other(folder.path(), options);
  try {
    other.training.resume();
    FAIL() << "resumed a run with another learning rate";
  } catch (const lora::ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("rate 0.01"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("rate 0.05"), std::string::npos) << error.what();
  }
  EXPECT_EQ(other.training.state().step, 0);
}

TEST(FineTuning, ADamagedCheckpointIsRefusedAndChangesNothing) {
  const TemporaryFolder folder;
  ToyRun run(folder.path());
  run.steps(4).training.save();
  const auto path = run.training.checkpoint_path();
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  ToyRun second(folder.path());
  EXPECT_THROW(second.training.resume(), lora::FormatError);
  EXPECT_EQ(second.training.state().step, 0);
  EXPECT_TRUE(second.classifier.parameters()[0].value().isZero(0));
}

TEST(FineTuning, StopsWhenValidationNoLongerImprovesAndKeepsTheBest) {
  auto options = toy_options();
  options.patience = 3;
  ToyRun run({}, options);
  run.classifier.scores = {0.2, 0.5, 0.5, 0.4, 0.3, 0.9};
  lora::Matrix<float> best;
  while (!run.training.finished()) {
    run.training.step();
    if (run.training.state().best_score == 0.5 && best.size() == 0) best = run.classifier.parameters()[0].value();
  }
  EXPECT_EQ(run.training.state().evaluations.size(), 5U);  // an equal score is no better one
  EXPECT_EQ(run.training.state().best_step, 12);
  EXPECT_EQ(run.training.state().step, 30);
  EXPECT_FALSE(same_bits(best, run.classifier.parameters()[0].value()));
  run.training.restore_best();
  EXPECT_TRUE(same_bits(best, run.classifier.parameters()[0].value()));
}

TEST(FineTuning, ResumedPatienceGoesOn) {
  auto options = toy_options();
  options.patience = 3;
  const TemporaryFolder folder;
  {
    ToyRun run(folder.path(), options);
    run.classifier.scores = {0.5, 0.4, 0.3};
    run.steps(18);
  }
  ToyRun run(folder.path(), options);
  run.training.resume();
  run.classifier.scores = {0.2};
  run.to_end();
  EXPECT_EQ(run.training.state().step, 24);
  EXPECT_EQ(run.training.state().best_step, 6);
}

TEST(FineTuning, EvaluatesAtEvenStepsAndAtTheEndOfEveryEpoch) {
  auto options = toy_options();
  options.evaluations_per_epoch = 5;  // of 12 steps
  options.epochs = 2;
  options.patience = 1000;
  ToyRun run({}, options);
  run.to_end();
  std::vector<Index> steps;
  for (const auto& evaluation : run.training.state().evaluations) steps.push_back(evaluation.step);
  EXPECT_EQ(steps, (std::vector<Index>{3, 5, 8, 10, 12, 15, 17, 20, 22, 24}));
}

// Gradients that the job replaces by zeros leave the weights, zero at the start, where they are.
TEST(FineTuning, TheJobsAverageReplacesGradientsBeforeTheStep) {
  JobShare share{.rank = 0, .ranks = 2, .average = [](auto parameters, Index rows, double) {
                   EXPECT_EQ(rows, 4);
                   for (const auto& parameter : parameters) {
                     EXPECT_GT(parameter.gradient().cwiseAbs().maxCoeff(), 0.0F);
                     parameter.gradient().setZero();
                   }
                   return 0.25;
                 }};
  ToyRun run({}, toy_options(), share);
  run.training.step();
  EXPECT_TRUE(run.classifier.parameters()[0].value().isZero(0));
  EXPECT_EQ(run.training.last_loss(), 0.25);
}

}  // namespace
}  // namespace fine_tuning_test
