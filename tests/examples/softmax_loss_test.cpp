// SPDX-License-Identifier: MIT
// Cross-entropy against its definition.
#include "common/softmax_loss.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <vector>

namespace softmax_loss_test {
namespace {

using examples::accuracy;
using examples::softmax_cross_entropy;
using MatrixD = lora::Matrix<double>;

const MatrixD logits = (MatrixD(3, 4) << 0.5, -1.25, 2.0, 0.0, 3.0, 1.0, -2.0, 0.25, -0.5, 0.75, 0.125, 1.5).finished();
const std::vector<std::uint8_t> labels = {2, 1, 3};

TEST(SoftmaxCrossEntropy, IsTheMeanOfMinusLogProbability) {
  MatrixD gradient(3, 4);
  const double loss = softmax_cross_entropy(logits, labels, gradient);
  double expected = 0;
  for (int i = 0; i < 3; ++i) {
    expected -=
        std::log(std::exp(logits(i, labels[static_cast<std::size_t>(i)])) / logits.row(i).array().exp().sum()) / 3;
  }
  // 3 rows of 4 terms each, all of order 1.
  EXPECT_NEAR(loss, expected, 3 * 4 * std::numeric_limits<double>::epsilon() * 4);
}

TEST(SoftmaxCrossEntropy, HasTheGradientOfFiniteDifferences) {
  MatrixD gradient(3, 4);
  MatrixD unused(3, 4);
  static_cast<void>(softmax_cross_entropy(logits, labels, gradient));
  const double step = std::cbrt(std::numeric_limits<double>::epsilon());  // balances truncation and rounding
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 4; ++j) {
      MatrixD moved = logits;
      moved(i, j) += step;
      const double above = softmax_cross_entropy(moved, labels, unused);
      moved(i, j) -= 2 * step;
      const double below = softmax_cross_entropy(moved, labels, unused);
      EXPECT_NEAR(gradient(i, j), (above - below) / (2 * step), step * step * 4) << i << ' ' << j;
    }
  }
}

TEST(SoftmaxCrossEntropy, SurvivesLargeLogits) {
  lora::Matrix<float> large(2, 2);
  large << 3e4F, -3e4F, -3e38F, 3e38F;
  lora::Matrix<float> gradient(2, 2);
  EXPECT_EQ(softmax_cross_entropy(large, std::vector<std::uint8_t>{0, 1}, gradient), 0.0);
  EXPECT_TRUE((gradient.array() == 0.0F).all());
}

TEST(SoftmaxCrossEntropy, RefusesOtherShapes) {
  MatrixD gradient(3, 3);
  EXPECT_THROW(static_cast<void>(softmax_cross_entropy(logits, labels, gradient)), lora::ShapeError);
}

TEST(Accuracy, CountsRowsWhoseLargestLogitIsTheLabels) { EXPECT_DOUBLE_EQ(accuracy(logits, labels), 2.0 / 3.0); }

}  // namespace
}  // namespace softmax_loss_test
