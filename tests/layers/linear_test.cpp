// LoraLinear against the naive oracle over shapes, options, storage orders and kinds of weight; its errors; its laws.
#include "lora/layers/linear.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/layer_kinds.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::ChainLengths;
using testing::linear_answer;
using testing::LinearCase;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::within_rounding;

struct Shape {
  Index n, d, k, r;
};

// Odd sizes, tails of every vector width and panel, nothing and one of everything, rank above both dimensions.
const std::vector<Shape> shapes = {{0, 5, 7, 2},     {1, 1, 1, 1},    {1, 9, 13, 3},   {2, 3, 2, 8},   {3, 48, 16, 4},
                                   {5, 49, 17, 1},   {7, 47, 15, 0},  {8, 96, 64, 16}, {9, 50, 31, 2}, {13, 97, 33, 5},
                                   {17, 31, 100, 7}, {33, 24, 65, 3}, {50, 130, 70, 9}};

struct Options {
  bool with_bias, rslora, lora_bias;
  double dropout;
  bool fan_in_fan_out;
};

const std::vector<Options> all_options = {{true, false, false, 0.0, false},
                                          {false, false, false, 0.0, true},
                                          {true, true, true, 0.0, true},
                                          {false, false, true, 0.25, false},
                                          {true, true, false, 0.5, true}};

LoraConfig config_of(const Shape& shape, const Options& options) {
  return {.rank = shape.r,
          .alpha = 3,
          .dropout = options.dropout,
          .fan_in_fan_out = options.fan_in_fan_out,
          .use_rslora = options.rslora,
          .lora_bias = options.lora_bias && shape.r > 0,
          .bias = BiasMode::all};
}

template <class Scalar>
LinearCase<Scalar> random_case(const Shape& shape, const Options& options) {
  const auto config = config_of(shape, options);
  LinearCase<Scalar> c;
  c.x = random_matrix<Scalar>(shape.n, shape.k, 1);
  c.w = random_matrix<Scalar>(shape.d, shape.k, 2);
  c.a = random_matrix<Scalar>(shape.r, shape.k, 3);
  c.b = random_matrix<Scalar>(shape.d, shape.r, 4);
  c.dy = random_matrix<Scalar>(shape.n, shape.d, 5);
  if (options.with_bias) c.bias = random_vector<Scalar>(shape.d, 6);
  if (config.lora_bias) c.lora_bias = random_vector<Scalar>(shape.d, 7);
  c.scaling = config.scaling();
  return c;
}

template <class Scalar>
Matrix<Scalar> factors_of(const DropoutMask<Scalar>& mask, Index rows, Index cols) {
  Matrix<Scalar> keep(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) keep(i, j) = mask.keeps(i, j) ? mask.scale : Scalar(0);
  return keep;
}

template <class Kind>
auto layer_for(const LinearCase<typename Kind::Scalar>& c, const LoraConfig& config) {
  auto made = Kind::make(c.w, c.bias, config);
  made.layer->set_factors(c.a, c.b);
  if (config.lora_bias) made.layer->set_lora_bias(c.lora_bias);
  return made;
}

template <class Kind>
class LinearLaws : public ::testing::Test {};

TYPED_TEST_SUITE(LinearLaws, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(LinearLaws, InferenceAgreesWithTheOracle) {
  using Scalar = typename TypeParam::Scalar;
  for (const auto& shape : shapes) {
    for (const auto& options : all_options) {
      const auto c = random_case<Scalar>(shape, options);
      const auto made = layer_for<TypeParam>(c, config_of(shape, options));
      const Matrix<Scalar> y = made.layer->infer(c.x);
      EXPECT_TRUE(within_rounding(y, linear_answer(c).y, linear_answer(c, true).y,
                                  ChainLengths{shape.n, shape.d, shape.k, shape.r}.y()))
          << shape.n << " " << shape.d << " " << shape.k << " " << shape.r;
    }
  }
}

TYPED_TEST(LinearLaws, TrainingStepAgreesWithTheOracle) {
  using Scalar = typename TypeParam::Scalar;
  for (const auto& shape : shapes) {
    for (const auto& options : all_options) {
      SCOPED_TRACE(::testing::Message() << shape.n << " x " << shape.d << " x " << shape.k << ", rank " << shape.r
                                        << ", dropout " << options.dropout);
      auto c = random_case<Scalar>(shape, options);
      const auto config = config_of(shape, options);
      const auto made = layer_for<TypeParam>(c, config);
      const auto& layer = *made.layer;
      LoraRecord<Scalar> record;
      record.position = {3, 11};
      Workspace workspace;
      Matrix<Scalar> y(shape.n, shape.d);
      Matrix<Scalar> dx(shape.n, shape.k);
      auto gradients = layer.make_gradients();
      layer.forward(c.x, record, y, workspace);
      layer.backward(c.x, record, c.dy, gradients, dx, workspace);
      if (options.dropout > 0 && shape.r > 0) {
        c.keep = factors_of(record.dropout_bits().template mask<Scalar>(config.dropout), shape.n, shape.k);
      }
      const auto exact = linear_answer(c);
      const auto magnitude = linear_answer(c, true);
      const ChainLengths chain{shape.n, shape.d, shape.k, shape.r};
      EXPECT_TRUE(within_rounding(y, exact.y, magnitude.y, chain.y()));
      EXPECT_TRUE(within_rounding(gradients.A, exact.da, magnitude.da, chain.da()));
      EXPECT_TRUE(within_rounding(gradients.B, exact.db, magnitude.db, chain.db()));
      EXPECT_TRUE(within_rounding(dx, exact.dx, magnitude.dx, chain.dx()));
      if (options.with_bias) {
        EXPECT_TRUE(within_rounding(gradients.bias, exact.dbias, magnitude.dbias, chain.dbias()));
      }
      if (config.lora_bias) {
        EXPECT_TRUE(within_rounding(gradients.lora_bias, exact.dlora_bias, magnitude.dlora_bias, chain.dbias()));
      }
    }
  }
}

TYPED_TEST(LinearLaws, ANewLayerIsItsBaseLayerBitForBit) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(50, 33, 1);
  const auto bias = random_vector<Scalar>(50, 2);
  const auto x = random_matrix<Scalar>(9, 33, 3);
  const auto adapted = TypeParam::make(w, bias, {.rank = 5, .alpha = 10});
  const auto frozen = TypeParam::make(w, bias, {.rank = 0});
  EXPECT_TRUE(same_bits(adapted.layer->infer(x), frozen.layer->infer(x)));
  EXPECT_EQ(adapted.layer->delta_weight().cwiseAbs().maxCoeff(), Scalar(0));
}

TYPED_TEST(LinearLaws, MergedAnswersAreUnmergedAnswers) {
  using Scalar = typename TypeParam::Scalar;
  for (const auto& shape : shapes) {
    for (const auto& options : all_options) {
      const auto c = random_case<Scalar>(shape, options);
      const auto made = layer_for<TypeParam>(c, config_of(shape, options));
      made.layer->eval();
      ASSERT_TRUE(made.layer->merged());
      EXPECT_TRUE(within_rounding(made.layer->infer(c.x), linear_answer(c).y, linear_answer(c, true).y,
                                  ChainLengths{shape.n, shape.d, shape.k, shape.r}.y()));
    }
  }
}

TYPED_TEST(LinearLaws, MergingAddsExactlyTheDeltaWeight) {
  using Scalar = typename TypeParam::Scalar;
  for (const bool transposed : {false, true}) {
    const Shape shape{0, 51, 35, 4};
    const Options options{false, false, false, 0.0, transposed};
    const auto c = random_case<Scalar>(shape, options);
    const auto made = layer_for<TypeParam>(c, config_of(shape, options));
    const Matrix<Scalar> w0 = made.layer->weight();
    const Matrix<Scalar> delta = made.layer->delta_weight();
    EXPECT_EQ(delta.rows(), transposed ? 35 : 51);
    made.layer->merge();
    EXPECT_TRUE(same_bits(made.layer->weight(), Matrix<Scalar>(w0 + delta)));
    EXPECT_TRUE(same_bits(made.layer->base_weight(), w0));
    EXPECT_TRUE(within_rounding(
        delta,
        Matrix<testing::Wide>(static_cast<testing::Wide>(c.scaling) *
                              (transposed ? Matrix<Scalar>((c.b * c.a).transpose()) : Matrix<Scalar>(c.b * c.a))
                                  .template cast<testing::Wide>()),
        Matrix<testing::Wide>::Constant(delta.rows(), delta.cols(), 4.0L * 0.75L), 2 * 4 + 8));
  }
}

TYPED_TEST(LinearLaws, TheAdapterIsLinearInAlpha) {
  using Scalar = typename TypeParam::Scalar;
  const Shape shape{6, 20, 30, 4};
  const Options options{true, false, false, 0.0, false};
  auto c = random_case<Scalar>(shape, options);
  const auto made = layer_for<TypeParam>(c, config_of(shape, options));
  for (const double alpha : {0.0, -2.0, 0.5, 64.0}) {
    made.layer->set_alpha(alpha);
    c.scaling = alpha / 4;
    EXPECT_TRUE(within_rounding(made.layer->infer(c.x), linear_answer(c).y, linear_answer(c, true).y,
                                ChainLengths{6, 20, 30, 4}.y()));
  }
}

TYPED_TEST(LinearLaws, TheFrozenWeightHasNoGradientAndIsNotWritten) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(20, 30, 1);
  auto made = TypeParam::make(w, random_vector<Scalar>(20, 2), {.rank = 4, .alpha = 8, .dropout = 0.1});
  auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(6, 30, 3);
  for (int step = 0; step < 3; ++step) {
    const Matrix<Scalar> dx = layer.backward(layer.forward(x));
    for (const auto& parameter : layer.parameters()) parameter.value() -= Scalar(0.01) * parameter.gradient();
  }
  EXPECT_TRUE(same_bits(layer.weight(), w));
  EXPECT_EQ(layer.parameters().size(), 2U);
  EXPECT_EQ(layer.trainable_parameter_count(), 4 * (20 + 30));
  EXPECT_EQ(layer.gradients().bytes(), 4 * (20 + 30) * sizeof(Scalar));
}

TYPED_TEST(LinearLaws, BackwardAccumulatesUntilZeroGrad) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(8, 10, 1), random_vector<Scalar>(8, 2),
                              {.rank = 3, .bias = BiasMode::lora_only, .init_lora_weights = InitLoraWeights::random});
  auto& layer = *made.layer;
  const auto x = random_matrix<Scalar>(5, 10, 3);
  const auto dy = random_matrix<Scalar>(5, 8, 4);
  (void)layer.forward(x);
  (void)layer.backward(dy);
  const auto once = layer.gradients();
  EXPECT_GT(once.B.norm(), 0);
  layer.accumulate_gradients(dy);
  EXPECT_TRUE(same_bits(layer.gradients().A, Matrix<Scalar>(2 * once.A)));
  EXPECT_TRUE(same_bits(layer.gradients().B, Matrix<Scalar>(2 * once.B)));
  layer.zero_grad();
  EXPECT_EQ(layer.gradients().A.norm() + layer.gradients().B.norm() + layer.gradients().bias.norm(), Scalar(0));
}

TYPED_TEST(LinearLaws, ARowsAnswerDoesNotDependOnItsBatch) {
  using Scalar = typename TypeParam::Scalar;
  auto made = TypeParam::make(random_matrix<Scalar>(60, 70, 1), random_vector<Scalar>(60, 2),
                              {.rank = 3, .init_lora_weights = InitLoraWeights::random});
  const auto x = random_matrix<Scalar>(40, 70, 3);
  const Matrix<Scalar> whole = made.layer->infer(x);
  for (const Index i : {0, 7, 8, 39}) EXPECT_TRUE(same_bits(made.layer->infer(x.row(i)), whole.row(i))) << i;
}

// Inputs: every storage order, maps and blocks, vectors, expressions. Where rows are contiguous the answer is the same
// to the last bit; column by column, U is summed in another order.

TEST(LoraLinearInput, StorageOrderMapsBlocksAndExpressionsGiveTheSameAnswer) {
  const auto w = random_matrix<float>(9, 13, 1);
  LoraLinear<float> layer(w, {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 5);
  const auto x = random_matrix<float>(6, 13, 2);
  const auto expected = layer.infer(x);
  const LinearCase<float> c{x, w, layer.lora_A(), layer.lora_B(), Matrix<float>::Zero(6, 9), {}, {}, layer.scaling(),
                            {}};
  const auto exact = linear_answer(c).y;
  const auto size = linear_answer(c, true).y;
  const Index terms = ChainLengths{6, 9, 13, 3}.y();
  const Eigen::MatrixXf columns = x;
  EXPECT_TRUE(within_rounding(layer.infer(columns), exact, size, terms));
  Matrix<float> framed = Matrix<float>::Constant(8, 20, 7.0F);
  framed.block(1, 3, 6, 13) = x;
  EXPECT_TRUE(same_bits(layer.infer(framed.block(1, 3, 6, 13)), expected));
  const Eigen::MatrixXf framed_columns = framed;
  EXPECT_TRUE(within_rounding(layer.infer(framed_columns.block(1, 3, 6, 13)), exact, size, terms));
  EXPECT_TRUE(same_bits(layer.infer(Eigen::Map<const Matrix<float>>(x.data(), 6, 13)), expected));
  EXPECT_TRUE(same_bits(layer.infer(x.transpose().eval().transpose()), expected));
  EXPECT_TRUE(same_bits(layer.infer(x * 1.0F), expected));
}

TEST(LoraLinearInput, VectorsAreOneSampleAndAnswerAsTheyCame) {
  const auto w = random_matrix<double>(9, 13, 1);
  LoraLinear<double> layer(w, {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 5);
  const auto x = random_matrix<double>(4, 13, 2);
  const Matrix<double> expected = layer.infer(x);
  const Eigen::VectorXd column = x.row(2);
  const Eigen::VectorXd answer = layer.infer(column);
  EXPECT_TRUE(same_bits(answer.transpose(), expected.row(2)));
  const Eigen::Matrix<double, 13, 1> fixed = column;
  EXPECT_TRUE(same_bits(layer.infer(fixed).transpose(), expected.row(2)));
  EXPECT_TRUE(same_bits(layer.infer(x.row(2)), expected.row(2)));
  (void)layer.forward(column);
  const Eigen::VectorXd dx = layer.backward(answer);
  EXPECT_EQ(dx.size(), 13);
}

TEST(LoraLinearInput, TheWeightComesFromAnyEigenObject) {
  const auto w = random_matrix<float>(9, 13, 1);
  const auto x = random_matrix<float>(4, 13, 2);
  const auto expected = LoraLinear<float>(w, {.rank = 0}, 1).infer(x);
  const Eigen::MatrixXf columns = w;
  Matrix<float> framed = Matrix<float>::Zero(12, 20);
  framed.block(2, 5, 9, 13) = w;
  EXPECT_TRUE(same_bits(LoraLinear<float>(columns, {.rank = 0}, 1).infer(x), expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(framed.block(2, 5, 9, 13), {.rank = 0}, 1).infer(x), expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(Eigen::Map<const Matrix<float>>(w.data(), 9, 13), {.rank = 0}, 1).infer(x),
                        expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(w + Matrix<float>::Zero(9, 13), {.rank = 0}, 1).infer(x), expected));
  const Matrix<float> stored = w.transpose();
  EXPECT_TRUE(same_bits(LoraLinear<float>(stored, {.rank = 0, .fan_in_fan_out = true}, 1).infer(x), expected));
  EXPECT_TRUE(same_bits(LoraLinear<float>(w.transpose(), {.rank = 0, .fan_in_fan_out = true}, 1).infer(x), expected));
}

// A square weight gives no error when its orientation is mistaken, so the orientation itself is tested.
TEST(LoraLinearInput, ASquareWeightWithFanInFanOutIsTransposedOnce) {
  const auto w = random_matrix<double>(6, 6, 1);
  const auto x = random_matrix<double>(3, 6, 2);
  LoraLinear<double> layer(w, {.rank = 2, .fan_in_fan_out = true, .init_lora_weights = InitLoraWeights::random}, 3);
  EXPECT_TRUE(same_bits(layer.weight(), w));
  const Matrix<double> by_hand = x * (w + layer.delta_weight());
  EXPECT_LT((layer.infer(x) - by_hand).norm(), 64 * 2.2e-16 * by_hand.norm());
  layer.eval();
  EXPECT_LT((layer.infer(x) - by_hand).norm(), 64 * 2.2e-16 * by_hand.norm());
}

TEST(LoraLinear, RankZeroIsAPlainFrozenLayer) {
  const auto w = random_matrix<float>(9, 13, 1);
  LoraLinear<float> layer(w, random_vector<float>(9, 2), {.rank = 0, .bias = BiasMode::lora_only}, 1);
  EXPECT_TRUE(layer.parameters().empty());
  const auto x = random_matrix<float>(4, 13, 2);
  const Matrix<float> y = layer.forward(x);
  const Matrix<float> dx = layer.backward(y);
  EXPECT_LT((dx - y * w).norm(), 32 * 1.2e-7F * y.norm() * w.norm());
  layer.eval();
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  EXPECT_TRUE(same_bits(layer.train().weight(), w));
}

TEST(LoraLinear, RankZeroStillTrainsItsBiasWhenAllBiasesTrain) {
  LoraLinear<float> layer(random_matrix<float>(9, 13, 1), random_vector<float>(9, 2),
                          {.rank = 0, .bias = BiasMode::all}, 1);
  ASSERT_EQ(layer.parameters().size(), 1U);
  EXPECT_EQ(layer.parameters()[0].name(), "bias");
}

TEST(LoraLinear, ParametersCarryNamesRolesAndShapes) {
  LoraLinear<float> layer(random_matrix<float>(9, 13, 1), random_vector<float>(9, 2),
                          {.rank = 3, .lora_bias = true, .bias = BiasMode::lora_only}, 1);
  const auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), 4U);
  const std::vector<std::string> names = {"lora_A.weight", "lora_B.weight", "lora_B.bias", "bias"};
  const std::vector<ParameterRole> roles = {ParameterRole::lora_A, ParameterRole::lora_B, ParameterRole::lora_bias,
                                            ParameterRole::bias};
  Index count = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(parameters[i].name(), names[i]);
    EXPECT_EQ(parameters[i].role(), roles[i]);
    count += parameters[i].size();
  }
  EXPECT_EQ(parameters[0].rows(), 3);
  EXPECT_EQ(parameters[1].cols(), 3);
  EXPECT_EQ(count, layer.trainable_parameter_count());
}

TEST(LoraLinear, CopiesAreIndependentAndMovesKeepEverything) {
  LoraLinear<double> layer(random_matrix<double>(9, 13, 1), {.rank = 3, .init_lora_weights = InitLoraWeights::random},
                           1);
  const auto x = random_matrix<double>(4, 13, 2);
  const Matrix<double> w0 = layer.weight();
  layer.eval();
  const Matrix<double> y = layer.infer(x);
  LoraLinear<double> copy = layer;
  copy.train();
  EXPECT_TRUE(same_bits(copy.weight(), w0));
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  LoraLinear<double> moved = std::move(layer);
  EXPECT_TRUE(same_bits(moved.infer(x), y));
  EXPECT_TRUE(same_bits(moved.train().weight(), w0));
}

TEST(LoraLinear, TheSameSeedGivesTheSameLayer) {
  const auto w = random_matrix<float>(9, 13, 1);
  const LoraLinear<float> one(w, {.rank = 3}, 7);
  const LoraLinear<float> two(w, {.rank = 3}, 7);
  const LoraLinear<float> other(w, {.rank = 3}, 8);
  EXPECT_TRUE(same_bits(one.lora_A(), two.lora_A()));
  EXPECT_FALSE(same_bits(one.lora_A(), other.lora_A()));
}

// Errors: what they are, what they say, and that nothing changed.

template <class ErrorType, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error";
}

TEST(LoraLinearErrors, SayOperationArgumentExpectedAndGot) {
  const auto w = random_matrix<float>(9, 13, 1);
  LoraLinear<float> layer(w, {.rank = 3}, 1);
  EXPECT_EQ(message_of<ShapeError>([&] { (void)layer.infer(random_matrix<float>(5, 9, 1)); }),
            "LoraLinear::infer: x: expected N x 13, got 5 x 9");
  Matrix<float> y(5, 8);
  Workspace workspace;
  EXPECT_EQ(message_of<ShapeError>([&] { layer.infer(random_matrix<float>(5, 13, 1), y, workspace); }),
            "LoraLinear::infer: y: expected 5 x 9, got 5 x 8");
  EXPECT_EQ(message_of<StateError>([&] { (void)layer.backward(random_matrix<float>(5, 9, 1)); }),
            "LoraLinear::backward: layer: expected a forward(x) in training mode before, got none");
  EXPECT_EQ(message_of<ShapeError>([&] { LoraLinear<float>(w, random_vector<float>(13, 1), {}, 1); }),
            "LoraLinear: bias: expected 9 elements, got 13");
  EXPECT_EQ(message_of<ShapeError>([&] { layer.set_factors(random_matrix<float>(3, 12, 1), layer.lora_B()); }),
            "LoraLinear::set_factors: A: expected 3 x 13, got 3 x 12");
  EXPECT_EQ(message_of<ConfigError>([&] { LoraLinear<float>(w, {.rank = -1}, 1); }),
            "LoraLinear: rank: expected 0 or more, got -1");
  EXPECT_EQ(message_of<ShapeError>([&] { LoraLinear<float>(Matrix<float>(0, 5), {}, 1); }),
            "LoraLinear: weight: expected at least 1 x 1, got 0 x 5");
}

TEST(LoraLinearErrors, AWrongGradientLeavesTheGradientsAsTheyWere) {
  LoraLinear<float> layer(random_matrix<float>(9, 13, 1), {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 1);
  (void)layer.forward(random_matrix<float>(5, 13, 2));
  EXPECT_THROW((void)layer.backward(random_matrix<float>(4, 9, 3)), ShapeError);
  Matrix<float> wrong_dx(5, 12);
  EXPECT_THROW(layer.backward(random_matrix<float>(5, 9, 3), wrong_dx), ShapeError);
  EXPECT_EQ(layer.gradients().A.norm() + layer.gradients().B.norm(), 0.0F);
}

TEST(LoraLinearErrors, OverlappingInputAndOutputAreRefused) {
  LoraLinear<float> layer(random_matrix<float>(13, 13, 1), {.rank = 3}, 1);
  Matrix<float> x = random_matrix<float>(5, 13, 2);
  Workspace workspace;
  EXPECT_THROW(layer.infer(x, x, workspace), ShapeError);
}

TEST(LoraLinearErrors, ARecordOfAnotherLayerIsRefused) {
  const auto w = random_matrix<float>(9, 13, 1);
  const LoraLinear<float> one(w, {.rank = 3}, 1);
  const LoraLinear<float> two(w, {.rank = 2}, 1);
  const auto x = random_matrix<float>(5, 13, 2);
  Matrix<float> y(5, 9);
  LoraRecord<float> record;
  Workspace workspace;
  auto gradients = two.make_gradients();
  EXPECT_THROW(two.backward(x, record, y, gradients, workspace), StateError);
  one.forward(x, record, y, workspace);
  EXPECT_THROW(two.backward(x, record, y, gradients, workspace), ShapeError);
}

TEST(LoraLinearErrors, AReadOnlyWeightRefusesToMergeAndStaysUsable) {
  const Matrix<float> w = random_matrix<float>(9, 13, 1);
  LoraLinear<float, DenseWeight<float>> layer(w, {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 1);
  const auto x = random_matrix<float>(5, 13, 2);
  const Matrix<float> y = layer.infer(x);
  EXPECT_THROW(layer.eval(), StateError);
  EXPECT_TRUE(layer.training());
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(same_bits(layer.infer(x), y));
}

}  // namespace
}  // namespace lora
