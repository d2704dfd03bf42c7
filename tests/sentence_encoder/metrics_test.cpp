// SPDX-License-Identifier: MIT
#include "sentence_encoder/metrics.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

namespace metrics_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using Labels = std::vector<std::uint8_t>;

// Worked out by hand: class 0 has TP 2, FP 1, FN 1; class 1 has TP 1, FP 1, FN 1; class 2 has TP 1, FP 1, FN 1.
const Labels truth = {0, 0, 0, 1, 1, 2, 2};
const Labels answers = {0, 0, 1, 1, 2, 2, 0};

TEST(ConfusionMatrix, CountsPairsOfTruthAndAnswer) {
  const auto matrix = confusion(truth, answers, 3);
  EXPECT_EQ(matrix.count(0, 0), 2);
  EXPECT_EQ(matrix.count(0, 1), 1);
  EXPECT_EQ(matrix.count(1, 0), 0);
  EXPECT_EQ(matrix.count(1, 2), 1);
  EXPECT_EQ(matrix.count(2, 0), 1);
  EXPECT_EQ(matrix.total(), 7);
  EXPECT_EQ(matrix.support(0), 3);
}

TEST(ConfusionMatrix, ScoresOfAHandComputedCase) {
  const auto matrix = confusion(truth, answers, 3);
  EXPECT_DOUBLE_EQ(matrix.accuracy(), 4.0 / 7);
  EXPECT_DOUBLE_EQ(matrix.precision(0), 2.0 / 3);
  EXPECT_DOUBLE_EQ(matrix.recall(0), 2.0 / 3);
  EXPECT_DOUBLE_EQ(matrix.f1(0), 2.0 / 3);
  EXPECT_DOUBLE_EQ(matrix.f1(1), 0.5);
  EXPECT_DOUBLE_EQ(matrix.f1(2), 0.5);
  EXPECT_DOUBLE_EQ(matrix.macro_f1(), (2.0 / 3 + 0.5 + 0.5) / 3);
}

TEST(MacroF1, IsOneOfRightAnswersAndZeroOfWrongOnes) {
  EXPECT_DOUBLE_EQ(confusion(truth, truth, 3).macro_f1(), 1.0);
  EXPECT_DOUBLE_EQ(confusion(Labels{0, 1}, Labels{1, 0}, 2).macro_f1(), 0.0);
}

TEST(MacroF1, LeavesOutClassesThatDoNotOccur) {
  EXPECT_DOUBLE_EQ(confusion(truth, answers, 7).macro_f1(), confusion(truth, answers, 3).macro_f1());
}

// sklearn.metrics.f1_score([0, 0, 1], [0, 2, 1], average="macro") is (2/3 + 1 + 0) / 3.
TEST(MacroF1, AClassThatIsOnlyAnsweredCountsAsZero) {
  EXPECT_DOUBLE_EQ(confusion(Labels{0, 0, 1}, Labels{0, 2, 1}, 3).macro_f1(), (2.0 / 3 + 1.0) / 3);
}

TEST(MacroF1, AClassThatIsNeverAnsweredCountsAsZero) {
  EXPECT_DOUBLE_EQ(confusion(Labels{0, 0, 1}, Labels{0, 0, 0}, 2).macro_f1(), (4.0 / 5) / 2);
}

TEST(MacroF1, OfNothingIsZero) {
  EXPECT_EQ(ConfusionMatrix(3).macro_f1(), 0.0);
  EXPECT_EQ(ConfusionMatrix(3).accuracy(), 0.0);
}

// Macro-F1 weighs classes alike, accuracy rows: always answering the majority shows the difference.
TEST(MacroF1, OfTheMajorityClassIsFarBelowItsAccuracy) {
  Labels rare(100, 0);
  rare[3] = 1;
  const auto matrix = confusion(rare, Labels(100, majority_class(rare)), 2);
  EXPECT_DOUBLE_EQ(matrix.accuracy(), 0.99);
  EXPECT_DOUBLE_EQ(matrix.macro_f1(), (2.0 * 99 / (2 * 99 + 1)) / 2);
}

TEST(Confusion, RefusesLabelsBeyondTheClassesAndAnswersOfAnotherNumber) {
  EXPECT_THROW(static_cast<void>(confusion(Labels{0, 3}, Labels{0, 0}, 3)), lora::ShapeError);
  EXPECT_THROW(static_cast<void>(confusion(Labels{0, 0}, Labels{0, 3}, 3)), lora::ShapeError);
  EXPECT_THROW(static_cast<void>(confusion(Labels{0, 0}, Labels{0}, 3)), lora::ShapeError);
}

TEST(MajorityClass, IsTheMostFrequentAndTheSmallestOfEquals) {
  EXPECT_EQ(majority_class(Labels{2, 1, 2, 1, 0}), 1);
  EXPECT_EQ(majority_class(Labels{255, 255, 0}), 255);
}

TEST(MeanAndSpread, OfAHandComputedSample) {
  const std::vector<double> values = {2, 4, 9};
  EXPECT_DOUBLE_EQ(mean_and_spread(values).mean, 5.0);
  EXPECT_DOUBLE_EQ(mean_and_spread(values).spread, std::sqrt((9.0 + 1.0 + 16.0) / 2));
  EXPECT_EQ(mean_and_spread(std::vector<double>{3}).spread, 0.0);
  EXPECT_EQ(mean_and_spread({}).mean, 0.0);
}

}  // namespace
}  // namespace metrics_test
