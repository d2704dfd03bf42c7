// SPDX-License-Identifier: MIT
// Training of a small encoder with adapters: gradients of parts of a batch, resuming, saving, loading and merging.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "examples/temporary_folder.hpp"
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/made_task.hpp"
#include "sentence_encoder/merge_tolerance.hpp"
#include "sentence_encoder/method_run_impl.hpp"
#include "sentence_encoder/toy_classifier.hpp"
#include "support/bits.hpp"

namespace method_run_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using examples::sentence_encoder::testing::made_task;
using examples::sentence_encoder::testing::small_shape;
using examples::sentence_encoder::testing::ToyClassifier;
using examples::testing::TemporaryFolder;
using lora::testing::same_bits;
using Layers = AdaptedLayers<float>;

const EncoderWeights<float>& weights() {
  static const auto made = random_encoder_weights<float>(small_shape, 5);
  return made;
}
const Task& task() {
  static const Task made = made_task();
  return made;
}

RunRequest request_in(const std::filesystem::path& folder, const Head& head) {
  RunRequest request{{MethodKind::lora, 4}, {}, weights(), task(), head, folder};
  request.options.epochs = 4;
  request.options.batch_size = 8;
  request.options.learning_rate = 0.02;
  request.options.patience = 100;
  request.options.seed = 2;
  return request;
}

/// All that a run leaves: curves, answers, and the files' values.
void expect_same(const RunResult& a, const std::filesystem::path& a_folder, const RunResult& b,
                 const std::filesystem::path& b_folder) {
  EXPECT_EQ(a.state.step, b.state.step);
  EXPECT_EQ(a.state.best_step, b.state.best_step);
  EXPECT_EQ(a.test_answers, b.test_answers);
  ASSERT_EQ(a.state.losses.size(), b.state.losses.size());
  for (std::size_t i = 0; i < a.state.losses.size(); ++i) EXPECT_EQ(a.state.losses[i].value, b.state.losses[i].value);
  for (const char* file : {"best.safetensors", "checkpoint.safetensors", "adapter/adapter_model.safetensors"}) {
    const auto left = lora::SafetensorsFile::open(a_folder / file);
    const auto right = lora::SafetensorsFile::open(b_folder / file);
    ASSERT_EQ(left.names(), right.names());
    for (const auto name : left.names()) {
      EXPECT_TRUE(std::ranges::equal(left.tensor(name).bytes, right.tensor(name).bytes)) << file << ": " << name;
    }
  }
}

TEST(MethodRun, StoppedAndResumedLeavesTheBitsOfAnUninterruptedRun) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "whole");
  const auto whole = run_method_with<Layers>(request_in(folder / "whole", head));
  EXPECT_EQ(whole.state.step, 24);
  for (const Index stop : {1, 7, 12}) {
    SCOPED_TRACE(stop);
    const auto part = folder / ("part" + std::to_string(stop));
    std::filesystem::create_directories(part);
    auto request = request_in(part, head);
    request.on_step = [&](const TrainingState& state, double) {
      if (state.step == stop) throw std::runtime_error("stopped here");
    };
    EXPECT_THROW(static_cast<void>(run_method_with<Layers>(request)), std::runtime_error);
    request.on_step = {};
    request.resume = true;
    expect_same(whole, folder / "whole", run_method_with<Layers>(request), part);
  }
}

/// What resuming a stopped run says when `change` has been made to what it is resumed with.
std::string refusal_after(const std::function<void(EncoderWeights<float>&, Task&, JobShare&)>& change) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  auto stopped = request_in(folder.path(), head);
  stopped.on_step = [](const TrainingState&, double) { throw std::runtime_error("stopped here"); };
  EXPECT_THROW(static_cast<void>(run_method_with<Layers>(stopped)), std::runtime_error);
  auto other_weights = weights();
  auto other_task = task();
  RunRequest resumed{stopped.method, stopped.options, other_weights, other_task, head, folder.path()};
  resumed.resume = true;
  change(other_weights, other_task, resumed.share);
  try {
    static_cast<void>(run_method_with<Layers>(resumed));
  } catch (const lora::ConfigError& error) {
    return error.what();
  }
  return "resumed";
}

TEST(MethodRun, ResumesNoCheckpointOfAnotherModelVocabularyOrNumberOfRanks) {
  EXPECT_EQ(refusal_after([](auto&, auto&, auto&) {}), "resumed");
  const auto model = refusal_after([](EncoderWeights<float>& weights, Task&, JobShare&) { weights.hash = 7; });
  EXPECT_NE(model.find("model 7"), std::string::npos) << model;
  const auto vocabulary = refusal_after([](auto&, Task& task, auto&) { ++task.train.texts[0].at(0); });
  EXPECT_NE(vocabulary.find("a checkpoint of the run"), std::string::npos) << vocabulary;
  const auto ranks = refusal_after([](auto&, auto&, JobShare& share) { share.ranks = 2; });
  EXPECT_NE(ranks.find("ranks 2"), std::string::npos) << ranks;
}

// Such a step may have moved the parameters and not yet have looked at the validation texts. It used to be saved.
TEST(MethodRun, AStepThatThrowsLeavesTheCheckpointBeforeIt) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  const auto request = request_in(folder.path(), head);
  ToyClassifier classifier;
  classifier.scores = {0.5};  // the second evaluation throws std::out_of_range
  FineTuning<ToyClassifier> stopped(classifier, ToyClassifier::points, request.options, "toy", folder.path());
  EXPECT_THROW(detail::train_to_end(stopped, request), std::out_of_range);
  EXPECT_EQ(stopped.state().step, 12);
  ToyClassifier other;
  FineTuning<ToyClassifier> resumed(other, ToyClassifier::points, request.options, "toy", folder.path());
  ASSERT_TRUE(resumed.resume());
  EXPECT_EQ(resumed.state().step, 6);
  EXPECT_EQ(resumed.state().evaluations.size(), 1U);
}

TEST(MethodRun, LearnsAndSavesAnAdapterThatAnswersTheSame) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  const auto run = run_method_with<Layers>(request_in(folder.path(), head));
  EXPECT_GT(run.validation_score(), 0.6);  // a third is chance
  const auto adapter = lora::read_peft_directory<float>(folder / "adapter");
  const auto loaded = make_text_classifier_with<Layers>(weights(), adapter);
  const auto unmerged = loaded->logits(task().test.texts);
  EXPECT_EQ(predictions(unmerged), run.test_answers);

  loaded->merge();
  const auto merged = loaded->logits(task().test.texts);
  const double difference = (merged - unmerged).cwiseAbs().maxCoeff();
  const double tolerance = MergeTolerance<Layers>(weights(), adapter)(task().test.texts);
  EXPECT_GT(difference, 0);
  EXPECT_LE(difference, tolerance);
  EXPECT_LE(tolerance, 1e-4 * static_cast<double>(unmerged.cwiseAbs().maxCoeff()));  // it would see a wrong weight

  loaded->unmerge();
  EXPECT_TRUE(same_bits(loaded->logits(task().test.texts), unmerged));
}

/// small_shape with widths that every format's blocks divide.
const EncoderWeights<float>& wide_weights() {
  static const auto made = random_encoder_weights<float>(
      {.vocabulary = 40, .embedding = 64, .width = 64, .hidden = 64, .layers = 2, .heads = 4, .output = 20}, 5);
  return made;
}

class MethodRunOver : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(MethodRunOver, AFormatLearnsAndItsSavedAdapterAnswersTheSame) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  RunRequest request{{MethodKind::lora, 4, GetParam()}, {}, wide_weights(), task(), head, folder.path()};
  request.options = request_in({}, head).options;
  const auto run = run_method_with<Layers>(request);
  EXPECT_GT(run.validation_score(), 0.6);  // a third is chance
  const auto adapter = lora::read_peft_directory<float>(folder / "adapter");
  const auto loaded = make_text_classifier_with<Layers>(wide_weights(), adapter, Layers{GetParam()});
  const auto unmerged = loaded->logits(task().test.texts);
  EXPECT_EQ(predictions(unmerged), run.test_answers);

  if (can_be_merged_into(GetParam())) {
    loaded->merge();
    EXPECT_FALSE(same_bits(loaded->logits(task().test.texts), unmerged));
    loaded->unmerge();
  } else {
    EXPECT_THROW(loaded->merge(), lora::StateError);
  }
  EXPECT_TRUE(same_bits(loaded->logits(task().test.texts), unmerged));
}

INSTANTIATE_TEST_SUITE_P(All, MethodRunOver,
                         ::testing::Values(WeightFormat::scalar, WeightFormat::bf16, WeightFormat::q8_0,
                                           WeightFormat::nf4),
                         [](const auto& tested) { return std::string(name_of(tested.param)); });

TEST(MethodRun, StepsOverFewerBitsHaveFewerFrozenBytesAndTheSameParameters) {
  const Head head(3, small_shape.output);
  RunRequest request{{MethodKind::lora, 4}, {}, wide_weights(), task(), head, {}};
  const auto floats = time_steps_with<Layers>(request, 1);
  request.method.weights = WeightFormat::nf4;
  const auto blocks = time_steps_with<Layers>(request, 1);
  EXPECT_EQ(blocks.trainable_parameters, floats.trainable_parameters);
  EXPECT_EQ(blocks.frozen_bytes * 64 * 4, floats.frozen_bytes * 36);  // 64 weights take 36 bytes
}

TEST(MethodRun, AnAdapterWithoutAHeadIsRefused) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  static_cast<void>(run_method_with<Layers>(request_in(folder.path(), head)));
  auto adapter = lora::read_peft_directory<float>(folder / "adapter");
  adapter.weights.saved.clear();
  EXPECT_THROW(static_cast<void>(make_text_classifier_with<Layers>(weights(), adapter)), lora::FormatError);
}

// A projection so far out that tanh is 1: nothing below it reaches the logits, which the head rounds all the same.
TEST(MergeTolerance, CountsTheHeadsOwnRounding) {
  const Head head(3, small_shape.output);
  const TemporaryFolder folder;
  static_cast<void>(run_method_with<Layers>(request_in(folder.path(), head)));
  auto saturated = weights();
  saturated.projection.bias.setConstant(30);
  const auto adapter = lora::read_peft_directory<float>(folder / "adapter");
  const auto logits = make_text_classifier_with<Layers>(saturated, adapter)->logits(task().test.texts);
  const double unit = std::numeric_limits<float>::epsilon() / 2;
  const double tolerance = MergeTolerance<Layers>(saturated, adapter)(task().test.texts);
  EXPECT_GE(tolerance, unit * static_cast<double>(logits.cwiseAbs().maxCoeff()));
}

using Gradients = std::vector<lora::Matrix<double>>;

/// An adapted classifier whose B are not zero, so that every gradient has something to say.
struct Trained {
  Trained() : head(3, small_shape.output), classifier(detail::start_classifier<Layers>(request_in({}, head))) {
    for (auto& parameter : classifier->parameters()) {
      lora::Matrix<float> noise(parameter.rows(), parameter.cols());
      lora::fill_uniform(lora::view_of(noise), 0.2, lora::RandomStream(9, fnv1a(parameter.name())));
      parameter.value() += noise;
    }
  }

  /// Of the mean loss of a part of the batch, at dropout step 0.
  Gradients of(std::span<const Index> batch, Shard part) {
    ClassifierOnTask<Layers> on_task(*classifier, task());
    loss = on_task.loss_and_gradients(batch, part);
    Gradients all;
    for (const auto& parameter : classifier->parameters()) all.push_back(parameter.gradient().cast<double>());
    return all;
  }

  Head head;
  std::unique_ptr<Classifier<Layers>> classifier;
  double loss = 0;
};

// Each side sums terms of at most N texts of 9 tokens through inner products of at most 96 (3 x 32): with independent
// rounding errors an element is off by 2 sqrt(n) u S, S the sum of magnitudes (Higham, Mary 2019). The depth of the
// network, two layers of ten products each, counts as that many sums.
TEST(ClassifierOnTask, PartsOfABatchHaveTheGradientsOfTheWhole) {
  Trained trained;
  const std::vector<Index> batch = {3, 17, 44, 8, 21, 30, 2};
  const auto n = static_cast<double>(batch.size());
  const Gradients whole = trained.of(batch, {0, 7});
  const double whole_loss = trained.loss;
  Gradients sums;
  Gradients magnitudes;
  double loss = 0;
  for (Index i = 0; i < 7; ++i) {
    const Gradients one = trained.of(batch, {i, 1});
    loss += trained.loss / n;
    for (std::size_t p = 0; p < one.size(); ++p) {
      if (i == 0) {
        sums.push_back(one[p] / n);
        magnitudes.push_back(one[p].cwiseAbs() / n);
      } else {
        sums[p] += one[p] / n;
        magnitudes[p] += one[p].cwiseAbs() / n;
      }
    }
  }
  const double unit = std::numeric_limits<float>::epsilon() / 2;
  EXPECT_NEAR(loss, whole_loss, 20 * unit * whole_loss);
  for (std::size_t p = 0; p < whole.size(); ++p) {
    const double tolerance = 20 * 2 * std::sqrt(n * 9 + 96) * unit * magnitudes[p].maxCoeff();
    EXPECT_LE((whole[p] - sums[p]).cwiseAbs().maxCoeff(), tolerance) << trained.classifier->parameters()[p].name();
    EXPECT_GT(whole[p].cwiseAbs().maxCoeff(), 10 * tolerance);
  }
}

TEST(ClassifierOnTask, AnEmptyPartHasNoLossAndZeroGradients) {
  Trained trained;
  const std::vector<Index> batch = {3, 17};
  static_cast<void>(trained.of(batch, {0, 2}));
  for (const auto& gradient : trained.of(batch, {2, 0})) EXPECT_TRUE(gradient.isZero(0));
  EXPECT_EQ(trained.loss, 0);
}

}  // namespace
}  // namespace method_run_test
