// SPDX-License-Identifier: MIT
// Layer norm and attention: their values against loops that follow the formulas, and their gradients against finite
// differences, in double.
#include <cmath>
#include <gtest/gtest.h>
#include <vector>

#include "lora/core/random.hpp"
#include "lora/core/view.hpp"
#include "sentence_encoder/attention.hpp"
#include "sentence_encoder/layer_norm.hpp"
#include "support/thread_executor.hpp"

namespace examples::sentence_encoder::layer_pieces_test {
namespace {

using Matrix = lora::Matrix<double>;
using Row = lora::RowVector<double>;

Matrix random(Index rows, Index cols, std::uint64_t seed) {
  Matrix values(rows, cols);
  lora::fill_uniform(lora::view_of(values), 1.0, lora::RandomStream(seed, 0));
  return values;
}

// d loss / d values by central differences; with a step of 1e-6 and losses of size 1 they err by about 1e-10.
template <class Values, class Loss>
Matrix numeric_gradient(Values& values, const Loss& loss) {
  constexpr double step = 1e-6;
  Matrix gradient(values.rows(), values.cols());
  for (Index i = 0; i < values.size(); ++i) {
    const double kept = values.data()[i];
    values.data()[i] = kept + step;
    const double above = loss();
    values.data()[i] = kept - step;
    gradient.data()[i] = (above - loss()) / (2 * step);
    values.data()[i] = kept;
  }
  return gradient;
}

double greatest(const Matrix& difference) { return difference.cwiseAbs().maxCoeff(); }

TEST(LayerNorm, IsItsFormula) {
  const Matrix x = random(3, 5, 1);
  const Row scale = random(1, 5, 2);
  const Row shift = random(1, 5, 3);
  NormRecord<double> record;
  Matrix y;
  LayerNorm<double>({scale, shift}).forward(x, record, y);
  for (Index i = 0; i < x.rows(); ++i) {
    double mean = 0;
    double variance = 0;
    for (Index j = 0; j < 5; ++j) mean += x(i, j) / 5;
    for (Index j = 0; j < 5; ++j) variance += (x(i, j) - mean) * (x(i, j) - mean) / 5;
    for (Index j = 0; j < 5; ++j) {
      EXPECT_NEAR(y(i, j), scale[j] * (x(i, j) - mean) / std::sqrt(variance + 1e-6) + shift[j], 1e-12);
    }
  }
}

TEST(LayerNorm, GivesTheShiftForEqualNumbers) {
  NormRecord<float> record;
  lora::Matrix<float> y;
  const lora::RowVector<float> shift = lora::RowVector<float>::LinSpaced(4, 1, 4);
  const LayerNorm<float> norm({lora::RowVector<float>::Ones(4), shift});
  norm.forward(lora::Matrix<float>::Constant(2, 4, 3.0F), record, y);
  EXPECT_EQ(y.row(0), shift);
}

TEST(LayerNorm, GradientsMeetFiniteDifferences) {
  Matrix x = random(3, 7, 1);
  const Matrix direction = random(3, 7, 4);
  LayerNorm<double> norm({random(1, 7, 2), random(1, 7, 3)});
  NormRecord<double> record;
  Matrix y;
  const auto loss = [&] {
    norm.forward(x, record, y);
    return y.cwiseProduct(direction).sum();
  };
  const Matrix scale = numeric_gradient(norm.scale().value, loss);
  const Matrix shift = numeric_gradient(norm.shift().value, loss);
  const Matrix input = numeric_gradient(x, loss);
  static_cast<void>(loss());
  norm.parameter_gradients(x, record, direction);
  Matrix dy = direction;
  Matrix dx = Matrix::Constant(3, 7, 2.0);  // backward adds
  norm.backward(x, record, dy, dx);
  EXPECT_LE(greatest(norm.scale().gradient - scale), 1e-8);
  EXPECT_LE(greatest(norm.shift().gradient - shift), 1e-8);
  EXPECT_LE(greatest(dx - Matrix::Constant(3, 7, 2.0) - input), 1e-8);
}

// Two heads of width 3, texts of 3, 0, 1 and 5 tokens.
class AttentionTest : public ::testing::Test {
 protected:
  static constexpr Index heads = 2;
  static constexpr Index width = 3;

  const PackedTexts texts = pack(std::vector<TokenIds>{{1, 1, 1}, {}, {1}, {1, 1, 1, 1, 1}});
  const Attention<double> attention{heads};
  Matrix qkv = random(9, 3 * heads * width, 5);
  AttentionRecord<double> record;
  lora::testing::ThreadExecutor threads{2};

  Matrix context() {
    Matrix result(9, heads * width);
    attention.forward(texts, qkv, record, result, threads);
    return result;
  }
};

TEST_F(AttentionTest, IsItsFormulaWithinEachText) {
  const Matrix result = context();
  for (Index text = 0; text < texts.texts(); ++text) {
    const Index first = texts.start(text);
    for (Index i = first; i < first + texts.length(text); ++i) {
      for (Index h = 0; h < heads; ++h) {
        Row sum = Row::Zero(width);
        double total = 0;
        for (Index j = first; j < first + texts.length(text); ++j) {
          const double score = qkv.row(i).segment(h * width, width).dot(qkv.row(j).segment((heads + h) * width, width));
          const double weight = std::exp(score / std::sqrt(3.0));
          sum += weight * qkv.row(j).segment((2 * heads + h) * width, width);
          total += weight;
        }
        EXPECT_LE(greatest(result.row(i).segment(h * width, width) - sum / total), 1e-12);
      }
    }
  }
}

TEST_F(AttentionTest, DoesNotOverflow) {
  qkv *= 1000.0;
  EXPECT_TRUE(context().allFinite());
}

TEST_F(AttentionTest, GradientMeetsFiniteDifferences) {
  const Matrix direction = random(9, heads * width, 6);
  const Matrix numeric = numeric_gradient(qkv, [&] { return context().cwiseProduct(direction).sum(); });
  static_cast<void>(context());
  Matrix gradient(qkv.rows(), qkv.cols());
  attention.backward(texts, qkv, record, direction, gradient, threads);
  EXPECT_LE(greatest(gradient - numeric), 1e-8);
}

TEST(PackedTexts, CutsALongText) {
  PackedTexts texts;
  texts.add(TokenIds(200, 7));
  texts.add(TokenIds{});
  texts.add(TokenIds{1, 2});
  EXPECT_EQ(texts.texts(), 3);
  EXPECT_EQ(texts.length(0), longest_text);
  EXPECT_EQ(texts.length(1), 0);
  EXPECT_EQ(texts.start(2), longest_text);
  EXPECT_EQ(texts.tokens(), longest_text + 2);
  texts.clear();
  EXPECT_EQ(texts.texts(), 0);
  EXPECT_EQ(texts.tokens(), 0);
}

}  // namespace
}  // namespace examples::sentence_encoder::layer_pieces_test
