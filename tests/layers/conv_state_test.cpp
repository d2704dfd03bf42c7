// LoraConv: modes, what may change when, tensors, and its errors.
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "lora/layers/conv.hpp"
#include "lora/layers/tensor.hpp"
#include "lora/optim/adamw.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;

const ConvGeometry<2> grouped{.in_channels = 4, .out_channels = 6, .kernel = {3, 2}, .padding = {1, 0}, .groups = 2};
constexpr ImageExtents<2> extents{5, 6};

LoraConv2d<float> make(const LoraConfig& config = {.rank = 4, .init_lora_weights = InitLoraWeights::random}) {
  return {random_matrix<float>(6, 12, 1), random_vector<float>(6, 2), grouped, config, 3};
}

template <class Raised, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const Raised& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error of this type";
  return {};
}

TEST(ConvShapes, AreThoseOfPeftFilesExceptForAOfGroups) {
  const auto layer = make();
  EXPECT_EQ(layer.lora_A().rows(), 4);
  EXPECT_EQ(layer.lora_A().cols(), 12);  // 4 / 2 channels, 3 x 2 taps
  EXPECT_EQ(layer.lora_B().rows(), 6);
  EXPECT_EQ(layer.lora_B().cols(), 2);  // rank / groups, as PEFT
  EXPECT_EQ(layer.trainable_parameter_count(), 4 * 12 + 6 * 2);
  EXPECT_EQ(layer.parameter_bytes(), 4U * (6 * 12 + 4 * 12 + 6 * 2 + 6));
}

TEST(ConvInitialisation, AIsUniformWithTheBoundOfItsFanInAndBIsZero) {
  const LoraConv1d<double> layer(random_matrix<double>(4, 300, 1),
                                 {.in_channels = 100, .out_channels = 4, .kernel = {3}}, {.rank = 8}, 5);
  EXPECT_TRUE(layer.lora_B().isZero(0));
  const double bound = 1 / std::sqrt(300.0);
  EXPECT_LE(layer.lora_A().cwiseAbs().maxCoeff(), bound);
  EXPECT_GT(layer.lora_A().cwiseAbs().maxCoeff(), 0.99 * bound);
}

TEST(ConvGroups, UpdateEachGroupByItsOwnFactors) {
  const auto layer = make();
  const Matrix<float> delta = layer.delta_weight();
  for (Index g = 0; g < 2; ++g) {
    const Matrix<float> expected =
        layer.scaling() * layer.lora_B().middleRows(3 * g, 3) * layer.lora_A().middleRows(2 * g, 2);
    EXPECT_TRUE(delta.middleRows(3 * g, 3).isApprox(expected, 1e-6F));
  }
}

TEST(ConvModes, AreIdempotentAndTheLastCallCounts) {
  auto layer = make();
  const Matrix<float> w = layer.weight();
  EXPECT_TRUE(layer.eval().eval().merged());
  const Matrix<float> merged = layer.weight();
  EXPECT_FALSE(same_bits(merged, w));
  EXPECT_GE(layer.merge_bytes(), 72U);
  for (int i = 0; i < 5; ++i) {
    layer.train().train().merge().unmerge().eval();
    EXPECT_TRUE(same_bits(layer.weight(), merged));
    EXPECT_TRUE(same_bits(layer.base_weight(), w));
  }
  EXPECT_FALSE(layer.train().merged());
  EXPECT_TRUE(same_bits(layer.weight(), w));
}

TEST(ConvModes, AMergedCopyUnmergesByItself) {
  auto layer = make();
  const Matrix<float> w = layer.weight();
  layer.eval();
  auto copy = layer;
  layer.train();
  EXPECT_TRUE(copy.merged());
  copy.train();
  EXPECT_TRUE(same_bits(copy.weight(), w));
}

TEST(ConvMerge, OfWhatIsNotFiniteInAnyGroupLeavesEveryBit) {
  auto layer = make();
  const Matrix<float> w = layer.weight();
  Matrix<float> b = layer.lora_B();
  b(5, 1) = std::numeric_limits<float>::infinity();  // the last group's
  layer.set_factors(layer.lora_A(), b);
  EXPECT_THROW(layer.merge(), StateError);
  EXPECT_THROW(layer.eval(), StateError);
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(layer.training());
  EXPECT_TRUE(same_bits(layer.weight(), w));
  EXPECT_EQ(layer.merge_bytes(), 0U);
}

TEST(ConvMerge, OfDoraIsTheScaledSumAndComesOutBitForBit) {
  auto layer = make({.rank = 4, .use_dora = true, .init_lora_weights = InitLoraWeights::random});
  const Matrix<float> w = layer.weight();
  layer.set_magnitude(random_vector<float>(6, 9, 3.0));
  const auto x = random_matrix<float>(2, 120, 4);
  const Matrix<float> y = layer.infer(x, extents);
  const Matrix<float> sum = w + layer.delta_weight();
  layer.eval();
  for (Index o = 0; o < 6; ++o) {
    EXPECT_TRUE(layer.weight().row(o).isApprox(sum.row(o) * (layer.magnitude()[o] / sum.row(o).norm()), 1e-5F));
  }
  EXPECT_TRUE(layer.infer(x, extents).isApprox(y, 1e-5F));
  layer.train();
  EXPECT_TRUE(same_bits(layer.weight(), w));
}

// A row of zeros has no direction.
TEST(ConvDora, ARowWithoutNormKeepsAFactorOfOneAndNoGradient) {
  Matrix<double> w = random_matrix<double>(2, 3, 1);
  w.row(1).setZero();
  LoraConv1d<double> layer(w, {.out_channels = 2, .kernel = {3}}, {.rank = 1, .use_dora = true}, 1);
  EXPECT_EQ(layer.magnitude()[1], 0.0);
  const Matrix<double> y = layer.forward(random_matrix<double>(2, 5, 2), {5});
  EXPECT_TRUE(y.allFinite());
  layer.accumulate_gradients(random_matrix<double>(2, 6, 3));
  EXPECT_EQ(layer.gradients().magnitude[1], 0.0);
  EXPECT_NE(layer.gradients().magnitude[0], 0.0);
  EXPECT_NE(layer.gradients().B(1, 0), 0.0);
}

TEST(ConvModes, WhatMustNotHappenWhileMergedDoesNot) {
  auto layer = make();
  layer.forward(random_matrix<float>(1, 120, 4), extents);
  auto parameters = layer.parameters();
  layer.merge();
  const Matrix<float> a = layer.lora_A();
  EXPECT_THROW(layer.set_factors(layer.lora_A() * 2, layer.lora_B()), StateError);
  EXPECT_THROW(layer.set_alpha(2), StateError);
  EXPECT_THROW(layer.set_lora_bias(RowVector<float>()), StateError);
  EXPECT_THROW(layer.set_magnitude(RowVector<float>()), StateError);
  EXPECT_THROW(layer.reset_adapter({.rank = 2}, 1), StateError);
  EXPECT_THROW(static_cast<void>(parameters[0].value()), StateError);
  EXPECT_THROW(static_cast<void>(layer.forward(random_matrix<float>(1, 120, 4), extents)), StateError);
  EXPECT_THROW(layer.accumulate_gradients(random_matrix<float>(1, 150, 4)), StateError);
  EXPECT_TRUE(same_bits(layer.lora_A(), a));
}

TEST(ConvTraining, TwoStepsLowerALossAndTheDropoutStepAdvances) {
  auto layer = make({.rank = 2, .alpha = 4, .dropout = 0.1, .use_dora = true, .bias = BiasMode::all});
  const auto x = random_matrix<float>(4, 120, 4);
  const auto target = random_matrix<float>(4, 150, 5);
  AdamW<float> optimizer({.learning_rate = 0.02});
  const float before = (layer.infer(x, extents) - target).squaredNorm();
  for (int step = 0; step < 20; ++step) {
    const Matrix<float> difference = layer.forward(x, extents) - target;
    layer.accumulate_gradients(difference);
    optimizer.step(layer.parameters());
    layer.zero_grad();
  }
  EXPECT_LT((layer.infer(x, extents) - target).squaredNorm(), 0.97F * before);
  EXPECT_EQ(layer.dropout_step(), 20U);
}

TEST(ConvTraining, ResettingTheAdapterStartsAnew) {
  auto layer = make();
  layer.forward(random_matrix<float>(1, 120, 4), extents);
  layer.reset_adapter({.rank = 2, .use_dora = true}, 9);
  EXPECT_EQ(layer.rank(), 2);
  EXPECT_EQ(layer.magnitude().size(), 6);
  EXPECT_THROW(layer.accumulate_gradients(random_matrix<float>(1, 150, 4)), StateError);
  const LoraConv2d<float> fresh(random_matrix<float>(6, 12, 1), grouped, {.rank = 2, .use_dora = true}, 9);
  EXPECT_TRUE(same_bits(layer.lora_A(), fresh.lora_A()));
  EXPECT_THROW(layer.reset_adapter({.rank = 3}, 9), ConfigError);
  EXPECT_EQ(layer.rank(), 2);
}

TEST(ConvTensors, AreReadAndAnsweredAsTheMatricesTheyAre) {
  auto layer = make({.rank = 4, .dropout = 0.2, .init_lora_weights = InitLoraWeights::random});
  auto other = layer;
  using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;
  const auto matrix = random_matrix<float>(3, 120, 4);
  Tensor x(3, 4, 5, 6);
  std::copy(matrix.data(), matrix.data() + matrix.size(), x.data());
  const auto rows = [](const Tensor& t, Index n) { return Eigen::Map<const Matrix<float>>(t.data(), n, t.size() / n); };
  const Tensor y = layer.forward(x);
  EXPECT_EQ(y.dimension(1), 6);
  EXPECT_EQ(y.dimension(2), 5);
  EXPECT_EQ(y.dimension(3), 5);
  EXPECT_TRUE(same_bits(rows(y, 3), other.forward(matrix, extents)));
  const Tensor dx = layer.backward(y);
  EXPECT_EQ(dx.dimension(3), 6);
  EXPECT_TRUE(same_bits(rows(dx, 3), other.backward(Matrix<float>(rows(y, 3)))));
  EXPECT_TRUE(same_bits(rows(layer.infer(x), 3), layer.infer(matrix, extents)));
  const Eigen::TensorMap<const Tensor> mapped(x.data(), x.dimensions());
  EXPECT_TRUE(same_bits(rows(layer.infer(mapped), 3), layer.infer(matrix, extents)));

  Workspace workspace;
  ConvRecord<float, 2> record;
  auto gradients = layer.make_gradients();
  Tensor out(3, 6, 5, 5), dx_out(3, 4, 5, 6);
  layer.infer(x, out, workspace);
  layer.forward(x, record, out, workspace);
  layer.backward(x, record, out, gradients, dx_out, workspace);
  Tensor turned(3, 6, 5, 5);
  Tensor wrong(3, 4, 6, 5);
  EXPECT_EQ(message_of<ShapeError>([&] { layer.backward(wrong, record, turned, gradients, workspace); }),
            "LoraConv::backward: x: expected 3 x 4 x 5 x 6, got 3 x 4 x 6 x 5");
  EXPECT_EQ(message_of<ShapeError>([&] { layer.infer(x, wrong, workspace); }),
            "LoraConv::infer: y: expected 3 x 6 x 5 x 5, got 3 x 4 x 6 x 5");
}

TEST(ConvErrors, NameTheArgumentAndBothSizes) {
  const auto layer = make();
  EXPECT_EQ(message_of<ShapeError>([&] { static_cast<void>(layer.infer(random_matrix<float>(2, 119, 1), extents)); }),
            "LoraConv::infer: x: expected N x 120, got 2 x 119");
  EXPECT_EQ(message_of<ShapeError>([&] {
              static_cast<void>(layer.infer(random_matrix<float>(2, 4, 1), {1, 1}));
            }),
            "LoraConv::infer: extents: expected at least 3 x 2, which the kernel spans, got 1 x 1, padded to 3 x 1");
  Matrix<float> y(2, 149);
  Workspace workspace;
  EXPECT_EQ(message_of<ShapeError>([&] { layer.infer(random_matrix<float>(2, 120, 1), extents, y, workspace); }),
            "LoraConv::infer: y: expected 2 x 150, got 2 x 149");
  Matrix<float> shared(2, 150);
  EXPECT_THROW(layer.infer(shared.leftCols(120), extents, shared, workspace), ShapeError);
  EXPECT_EQ(message_of<ShapeError>([&] { LoraConv2d<float>(random_matrix<float>(6, 13, 1), grouped, {.rank = 4}, 1); }),
            "LoraConv: weight: expected 6 x 12, got 6 x 13");
  EXPECT_EQ(message_of<ShapeError>([&] {
              LoraConv2d<float>(random_matrix<float>(6, 12, 1), random_vector<float>(5, 1), grouped, {.rank = 4}, 1);
            }),
            "LoraConv: bias: expected 6 elements, got 5");
}

TEST(ConvErrors, OptionsThatAConvolutionDoesNotHave) {
  const auto w = random_matrix<float>(6, 12, 1);
  const auto with = [&](const LoraConfig& config) {
    return message_of<ConfigError>([&] { LoraConv2d<float>(w, grouped, config, 1); });
  };
  EXPECT_EQ(with({.rank = 3}), "LoraConv: rank: expected a multiple of 2 groups, got 3");
  EXPECT_EQ(with({.rank = 4, .fan_in_fan_out = true}),
            "LoraConv: fan_in_fan_out: expected false for a convolution, got true");
  EXPECT_NE(with({.rank = 4, .init_lora_weights = InitLoraWeights::pissa}).find("init_lora_weights"),
            std::string::npos);
  EXPECT_NE(with({.rank = -2}).find("rank"), std::string::npos);
}

TEST(ConvErrors, BackwardRefusesWhatItsForwardHasNotMadeAndChangesNothing) {
  const auto layer = make({.rank = 4, .dropout = 0.5});
  const auto x = random_matrix<float>(2, 120, 1);
  const auto dy = random_matrix<float>(2, 150, 2);
  Matrix<float> y(2, 150), dx(2, 120);
  Workspace workspace;
  ConvRecord<float, 2> record;
  auto gradients = layer.make_gradients();
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), StateError);
  const auto other = make({.rank = 2, .dropout = 0.5});
  other.forward(x, extents, record, y, workspace);
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), ShapeError);
  const auto dry = make({.rank = 4});
  dry.forward(x, extents, record, y, workspace);
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), ShapeError);
  layer.forward(x, extents, record, y, workspace);
  EXPECT_THROW(layer.backward(x.topRows(1), record, dy, gradients, workspace), ShapeError);
  EXPECT_THROW(layer.backward(x, record, dy.leftCols(149), gradients, workspace), ShapeError);
  auto wrong = gradients;
  wrong.B.resize(6, 4);
  EXPECT_THROW(layer.backward(x, record, dy, wrong, workspace), ShapeError);
  Matrix<float> both = Matrix<float>::Zero(2, 150);
  EXPECT_THROW(layer.backward(x, record, both, gradients, both.leftCols(120), workspace), ShapeError);
  EXPECT_TRUE(gradients.A.isZero(0));
  layer.backward(x, record, dy, gradients, dx, workspace);
  EXPECT_THROW(make().accumulate_gradients(dy), StateError);
}

}  // namespace
}  // namespace lora
