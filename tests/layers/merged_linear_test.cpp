// MergedLinear: as its projections would answer one by one; merging; what it refuses.
#include "lora/layers/merged_linear.hpp"

#include <algorithm>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "lora/layers/linear.hpp"
#include "lora/weight/dense.hpp"
#include "support/bits.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::ChainLengths;
using testing::linear_answer;
using testing::LinearCase;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::within_rounding;

struct Setting {
  Index n, m, k, r;  // m outputs a projection
  std::vector<bool> enable_lora;
  double dropout;
  bool fan_in_fan_out;
};

const std::vector<Setting> settings = {
    {5, 6, 12, 2, {true, false, true}, 0.0, false}, {5, 6, 12, 2, {true, false, true}, 0.0, true},
    {9, 33, 20, 8, {true, true, true}, 0.3, false}, {4, 1, 3, 5, {false, true, true, false}, 0.3, true},
    {17, 50, 65, 3, {false, true}, 0.0, false},     {1, 48, 16, 4, {true}, 0.0, false},
    {0, 4, 5, 2, {true, false}, 0.5, false},        {300, 7, 31, 2, {true, false, true}, 0.0, true}};

// Random tensors of one setting, W0 as out_features x in_features.
template <class Scalar>
struct Case {
  explicit Case(const Setting& given) : setting(given) {
    enabled = std::count(given.enable_lora.begin(), given.enable_lora.end(), true);
    d = given.m * static_cast<Index>(given.enable_lora.size());
    x = random_matrix<Scalar>(given.n, given.k, 1);
    w = random_matrix<Scalar>(d, given.k, 2);
    a = random_matrix<Scalar>(given.r * enabled, given.k, 3);
    b = random_matrix<Scalar>(given.m * enabled, given.r, 4);
    dy = random_matrix<Scalar>(given.n, d, 5);
    bias = random_vector<Scalar>(d, 6);
  }

  [[nodiscard]] LoraConfig config() const {
    return {.rank = setting.r,
            .alpha = 3,
            .dropout = setting.dropout,
            .fan_in_fan_out = setting.fan_in_fan_out,
            .bias = BiasMode::lora_only};
  }
  [[nodiscard]] Matrix<Scalar> stored_weight() const {
    return setting.fan_in_fan_out ? Matrix<Scalar>(w.transpose()) : w;
  }

  // The same layer as one linear layer of rank r E whose B has blocks of zeros.
  [[nodiscard]] LinearCase<Scalar> as_linear(const DropoutMask<Scalar>& mask) const {
    LinearCase<Scalar> c;
    c.x = x, c.w = w, c.a = a, c.dy = dy, c.bias = bias;
    c.b = Matrix<Scalar>::Zero(d, a.rows());
    c.scaling = config().scaling();
    for (Index g = 0, e = 0; g < static_cast<Index>(setting.enable_lora.size()); ++g) {
      if (!setting.enable_lora[static_cast<std::size_t>(g)]) continue;
      c.b.block(g * setting.m, e * setting.r, setting.m, setting.r) = b.middleRows(e * setting.m, setting.m);
      ++e;
    }
    if (!mask.active()) return c;
    c.keep.resize(x.rows(), x.cols());
    for (Index i = 0; i < x.rows(); ++i)
      for (Index j = 0; j < x.cols(); ++j) c.keep(i, j) = mask.keeps(i, j) ? mask.scale : Scalar(0);
    return c;
  }

  Setting setting;
  Index enabled = 0, d = 0;
  Matrix<Scalar> x, w, a, b, dy;
  RowVector<Scalar> bias;
};

// The mask of the last forward(x), drawn anew.
template <class S, class W>
DropoutMask<S> layer_mask(const MergedLinear<S, W>& layer) {
  static DropoutBits bits;
  if (layer.config().dropout == 0) return {};
  SerialExecutor serial;
  bits.draw(layer.config().dropout, layer.seed(), {layer.dropout_step() - 1, 0}, 300, layer.in_features(), serial);
  return bits.template mask<S>(layer.config().dropout);
}

template <class WeightType>
class MergedLinearLaws : public ::testing::Test {
 protected:
  using Layer = MergedLinear<typename WeightType::Scalar, WeightType>;
  using Tensors = Case<typename WeightType::Scalar>;

  // `stored` outlives the layer: its weight may view it.
  static Layer make(const Tensors& c, Matrix<typename WeightType::Scalar>& stored) {
    stored = c.stored_weight();
    const auto view = view_of(stored);
    Layer layer(WeightType(c.setting.fan_in_fan_out ? view.transpose() : view), c.bias, c.setting.enable_lora,
                c.config(), 21);
    layer.set_factors(c.a, c.b);
    return layer;
  }
};

using Weights = ::testing::Types<PackedWeight<float>, PackedWeight<double>, DenseWeight<float>, DenseWeight<double>>;
TYPED_TEST_SUITE(MergedLinearLaws, Weights);

TYPED_TEST(MergedLinearLaws, ATrainingStepAgreesWithTheOracle) {
  using S = typename TypeParam::Scalar;
  for (const auto& setting : settings) {
    SCOPED_TRACE(::testing::Message() << setting.n << " x " << setting.m << " x " << setting.k);
    const Case<S> c(setting);
    Matrix<S> stored;
    const auto layer = TestFixture::make(c, stored);
    LoraRecord<S> record;
    record.position = {4, 2};
    Workspace workspace;
    Matrix<S> y(setting.n, c.d), dx(setting.n, setting.k);
    auto gradients = layer.make_gradients();
    layer.forward(c.x, record, y, workspace);
    layer.backward(c.x, record, c.dy, gradients, dx, workspace);
    const auto oracle =
        c.as_linear(setting.dropout > 0 ? record.dropout_bits().template mask<S>(setting.dropout) : DropoutMask<S>{});
    const auto exact = linear_answer(oracle);
    const auto magnitude = linear_answer(oracle, true);
    const ChainLengths chain{setting.n, c.d, setting.k, c.a.rows()};
    EXPECT_TRUE(within_rounding(y, exact.y, magnitude.y, chain.y()));
    EXPECT_TRUE(within_rounding(gradients.A, exact.da, magnitude.da, chain.da()));
    EXPECT_TRUE(within_rounding(dx, exact.dx, magnitude.dx, chain.dx()));
    EXPECT_TRUE(within_rounding(gradients.bias, exact.dbias, magnitude.dbias, chain.dbias()));
    for (Index g = 0, e = 0; g < static_cast<Index>(setting.enable_lora.size()); ++g) {
      if (!setting.enable_lora[static_cast<std::size_t>(g)]) continue;
      const auto block = [&](const auto& m) -> Matrix<testing::Wide> {
        return m.block(g * setting.m, e * setting.r, setting.m, setting.r);
      };
      EXPECT_TRUE(within_rounding(gradients.B.middleRows(e * setting.m, setting.m), block(exact.db),
                                  block(magnitude.db), chain.db()));
      ++e;
    }
    const auto plain = c.as_linear({});
    EXPECT_TRUE(within_rounding(layer.infer(c.x), linear_answer(plain).y, linear_answer(plain, true).y, chain.y()));
  }
}

// One LoraLinear for each projection, stacked. What no sum crosses agrees bit for bit.
// Of a matrix without elements, a block anywhere else than at its beginning has no address.
template <class M>
M columns_of(const M& matrix, Index first, Index count) {
  if (matrix.size() == 0) return M::Zero(matrix.rows(), matrix.cols() == 0 ? 0 : count);
  return matrix.middleCols(first, count);
}

TYPED_TEST(MergedLinearLaws, EqualsSeparateLayersStacked) {
  using S = typename TypeParam::Scalar;
  for (const auto& setting : settings) {
    const Case<S> c(setting);
    Matrix<S> stored;
    auto layer = TestFixture::make(c, stored);
    const Matrix<S> y = layer.forward(c.x);
    const Matrix<S> dx = layer.backward(c.dy);
    Matrix<S> sum_dx = Matrix<S>::Zero(setting.n, setting.k);
    const auto oracle = linear_answer(c.as_linear(layer_mask(layer)), true);
    const ChainLengths chain{setting.n, c.d, setting.k, c.a.rows()};
    for (Index g = 0, e = 0; g < static_cast<Index>(setting.enable_lora.size()); ++g) {
      const bool enabled = setting.enable_lora[static_cast<std::size_t>(g)];
      LoraConfig config = c.config();
      config.fan_in_fan_out = false;
      if (!enabled) config.rank = 0;
      const Matrix<S> rows = c.w.middleRows(g * setting.m, setting.m);
      const RowVector<S> bias = columns_of(c.bias, g * setting.m, setting.m);
      const Matrix<S> dy = columns_of(c.dy, g * setting.m, setting.m);
      LoraLinear<S> one(rows, bias, config, 21);
      if (enabled) {
        one.set_factors(c.a.middleRows(e * setting.r, setting.r), c.b.middleRows(e * setting.m, setting.m));
      }
      const Matrix<S> own_y = one.forward(c.x);
      sum_dx += Matrix<S>(one.backward(dy));
      const Matrix<S> y_g = columns_of(y, g * setting.m, setting.m);
      if (!enabled) {
        EXPECT_TRUE(same_bits(y_g, own_y));
        continue;
      }
      EXPECT_TRUE(within_rounding(y_g, Matrix<testing::Wide>(own_y.template cast<testing::Wide>()),
                                  columns_of(oracle.y, g * setting.m, setting.m), 2 * chain.y()));
      EXPECT_TRUE(same_bits(layer.gradients().A.middleRows(e * setting.r, setting.r), one.gradients().A));
      EXPECT_TRUE(same_bits(layer.gradients().B.middleRows(e * setting.m, setting.m), one.gradients().B));
      ++e;
    }
    EXPECT_TRUE(
        within_rounding(dx, Matrix<testing::Wide>(sum_dx.template cast<testing::Wide>()), oracle.dx, 2 * chain.dx()));
  }
}

TYPED_TEST(MergedLinearLaws, OnlyEnabledOutputsChangeWhateverTheFactorsHold) {
  using S = typename TypeParam::Scalar;
  const Setting setting{6, 10, 12, 3, {false, true, false, true}, 0.0, false};
  const Case<S> c(setting);
  const LoraLinear<S> base(c.w, c.bias, {.rank = 0}, 1);
  const Matrix<S> expected = base.infer(c.x);
  for (const S factor : {S(1), S(1e30), std::numeric_limits<S>::infinity()}) {
    Matrix<S> stored;
    auto layer = TestFixture::make(c, stored);
    layer.set_factors(factor * c.a, c.b);
    const Matrix<S> y = layer.infer(c.x);
    const Matrix<S> trained = layer.forward(c.x);
    for (const Index first : {0, 20}) {
      EXPECT_TRUE(same_bits(y.middleCols(first, 10), expected.middleCols(first, 10)));
      EXPECT_TRUE(same_bits(trained.middleCols(first, 10), expected.middleCols(first, 10)));
    }
    EXPECT_FALSE(same_bits(y.middleCols(10, 10), expected.middleCols(10, 10)));
  }
}

TYPED_TEST(MergedLinearLaws, ANewLayerIsItsBaseLayerBitForBit) {
  using S = typename TypeParam::Scalar;
  Matrix<S> w = random_matrix<S>(30, 17, 1);
  const auto x = random_matrix<S>(9, 17, 3);
  const MergedLinear<S, TypeParam> layer(TypeParam(view_of(w)), {true, false, true}, {.rank = 5, .alpha = 10}, 1);
  EXPECT_TRUE(same_bits(layer.infer(x), LoraLinear<S>(w, {.rank = 0}, 1).infer(x)));
  EXPECT_EQ(layer.delta_weight().cwiseAbs().maxCoeff(), S(0));
}

TYPED_TEST(MergedLinearLaws, MergingAddsTheDeltaToEnabledRowsAloneAndIsUndoneBitForBit) {
  using S = typename TypeParam::Scalar;
  for (const auto& setting : settings) {
    const Case<S> c(setting);
    Matrix<S> stored;
    auto layer = TestFixture::make(c, stored);
    const Matrix<S> w0 = c.stored_weight();
    const Matrix<S> delta = layer.delta_weight();
    const auto outputs = [&](const Matrix<S>& m, Index g) -> Matrix<S> {
      return setting.fan_in_fan_out ? Matrix<S>(m.middleCols(g * setting.m, setting.m))
                                    : Matrix<S>(m.middleRows(g * setting.m, setting.m));
    };
    const auto plain = c.as_linear({});
    for (int cycle = 0; cycle < 3; ++cycle) {
      layer.eval();
      EXPECT_TRUE(same_bits(layer.weight(), Matrix<S>(w0 + delta)));
      EXPECT_TRUE(same_bits(layer.base_weight(), w0));
      EXPECT_TRUE(within_rounding(layer.infer(c.x), linear_answer(plain).y, linear_answer(plain, true).y,
                                  ChainLengths{setting.n, c.d, setting.k, c.a.rows()}.y()));
      for (std::size_t g = 0; g < setting.enable_lora.size(); ++g) {
        if (setting.enable_lora[g]) continue;
        EXPECT_TRUE(same_bits(outputs(layer.weight(), static_cast<Index>(g)), outputs(w0, static_cast<Index>(g))));
      }
      layer.train();
      EXPECT_TRUE(same_bits(layer.weight(), w0));
    }
    EXPECT_EQ(layer.merge_bytes(), 0U);
  }
}

TYPED_TEST(MergedLinearLaws, ResultsHaveTheSameBitsForAnyNumberOfWorkers) {
  using S = typename TypeParam::Scalar;
  const Case<S> c({21, 70, 90, 4, {true, false, true}, 0.3, false});
  Matrix<S> stored;
  const auto layer = TestFixture::make(c, stored);
  struct Answer {
    Matrix<S> y, dx, inferred;
    LoraGradients<S> gradients;
  };
  const auto run = [&](int workers) {
    testing::ThreadExecutor executor(workers);
    Workspace workspace(executor);
    Answer answer{Matrix<S>(21, c.d), Matrix<S>(21, 90), Matrix<S>(21, c.d), layer.make_gradients()};
    LoraRecord<S> record;
    layer.forward(c.x, record, answer.y, workspace);
    layer.backward(c.x, record, c.dy, answer.gradients, answer.dx, workspace);
    layer.infer(c.x, answer.inferred, workspace);
    return answer;
  };
  const auto one = run(1);
  for (const int workers : {2, 3, 7}) {
    const auto many = run(workers);
    EXPECT_TRUE(same_bits(many.y, one.y));
    EXPECT_TRUE(same_bits(many.dx, one.dx));
    EXPECT_TRUE(same_bits(many.inferred, one.inferred));
    EXPECT_TRUE(same_bits(many.gradients.A, one.gradients.A));
    EXPECT_TRUE(same_bits(many.gradients.B, one.gradients.B));
  }
}

TEST(MergedLinear, RankZeroIsAPlainFrozenLayer) {
  const auto w = random_matrix<float>(9, 13, 1);
  MergedLinear<float> layer(w, random_vector<float>(9, 2), {true, false, true}, {.rank = 0}, 1);
  EXPECT_TRUE(layer.parameters().empty());
  const auto x = random_matrix<float>(4, 13, 2);
  const Matrix<float> y = layer.forward(x);
  const Matrix<float> dx = layer.backward(y);
  EXPECT_LT((dx - y * w).norm(), 32 * 1.2e-7F * y.norm() * w.norm());
  layer.eval();
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  EXPECT_TRUE(same_bits(layer.train().weight(), w));
}

TEST(MergedLinear, ParametersCarryLoralibsNames) {
  MergedLinear<float> layer(random_matrix<float>(9, 13, 1), random_vector<float>(9, 2), {true, false, true},
                            {.rank = 2, .bias = BiasMode::lora_only}, 1);
  const auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), 3U);
  EXPECT_EQ(parameters[0].name(), "lora_A");
  EXPECT_EQ(parameters[0].rows(), 4);
  EXPECT_EQ(parameters[1].name(), "lora_B");
  EXPECT_EQ(parameters[1].rows(), 6);
  EXPECT_EQ(parameters[1].cols(), 2);
  EXPECT_EQ(parameters[2].role(), ParameterRole::bias);
  EXPECT_EQ(layer.trainable_parameter_count(), 4 * 13 + 6 * 2 + 9);
  EXPECT_EQ(layer.parameter_bytes(), layer.frozen_weight().bytes() + (4 * 13 + 6 * 2 + 9) * sizeof(float));
  layer.eval();
  EXPECT_THROW((void)parameters[0].value(), StateError);
}

TEST(MergedLinear, BackwardAccumulatesUntilZeroGrad) {
  MergedLinear<double> layer(random_matrix<double>(8, 10, 1), {true, true},
                             {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 1);
  (void)layer.forward(random_matrix<double>(5, 10, 3));
  const auto dy = random_matrix<double>(5, 8, 4);
  layer.accumulate_gradients(dy);
  const auto once = layer.gradients();
  EXPECT_GT(once.B.norm(), 0);
  (void)layer.backward(dy);
  EXPECT_TRUE(same_bits(layer.gradients().A, Matrix<double>(2 * once.A)));
  EXPECT_TRUE(same_bits(layer.gradients().B, Matrix<double>(2 * once.B)));
  layer.zero_grad();
  EXPECT_EQ(layer.gradients().A.norm() + layer.gradients().B.norm(), 0.0);
}

TEST(MergedLinear, CopiesAreIndependent) {
  MergedLinear<double> layer(random_matrix<double>(9, 13, 1), {true, false, true},
                             {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 1);
  const auto x = random_matrix<double>(4, 13, 2);
  const Matrix<double> w0 = layer.weight();
  layer.eval();
  const Matrix<double> y = layer.infer(x);
  auto copy = layer;
  copy.train();
  EXPECT_TRUE(same_bits(copy.weight(), w0));
  EXPECT_TRUE(same_bits(layer.infer(x), y));
  EXPECT_TRUE(same_bits(copy.infer(x).middleCols(3, 3), y.middleCols(3, 3)));
}

TEST(MergedLinear, ResettingTheAdapterIsMakingTheLayerAnew) {
  const auto w = random_matrix<double>(9, 13, 1);
  MergedLinear<double> layer(w, {true, false, true}, {.rank = 3, .init_lora_weights = InitLoraWeights::random}, 1);
  (void)layer.forward(random_matrix<double>(4, 13, 2));
  layer.accumulate_gradients(random_matrix<double>(4, 9, 3));
  EXPECT_THROW(layer.reset_adapter({.rank = -1}, 5), ConfigError);
  EXPECT_THROW(layer.reset_adapter({.rank = 2, .fan_in_fan_out = true}, 5), ConfigError);
  EXPECT_EQ(layer.rank(), 3);
  layer.reset_adapter({.rank = 2, .alpha = 1}, 5);
  const MergedLinear<double> anew(w, {true, false, true}, {.rank = 2, .alpha = 1}, 5);
  EXPECT_TRUE(same_bits(layer.lora_A(), anew.lora_A()));
  EXPECT_EQ(layer.scaling(), 0.5);
  EXPECT_EQ(layer.gradients().A.rows(), 4);
  EXPECT_EQ(layer.gradients().A.norm(), 0.0);
  EXPECT_THROW((void)layer.backward(random_matrix<double>(4, 9, 3)), StateError);
  layer.merge();
  EXPECT_THROW(layer.reset_adapter({.rank = 2}, 5), StateError);
}

template <class ErrorType, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error";
}

TEST(MergedLinearErrors, SayOperationArgumentExpectedAndGot) {
  const auto w = random_matrix<float>(9, 13, 1);
  const std::vector<bool> enable = {true, false, true};
  MergedLinear<float> layer(w, enable, {.rank = 2}, 1);
  EXPECT_EQ(message_of<ConfigError>([&] {
              MergedLinear<float>(w, {true, false}, {.rank = 2}, 1);
            }),
            "MergedLinear: enable_lora: expected a number of projections that divides out_features, 9, got 2");
  EXPECT_EQ(message_of<ConfigError>([&] {
              MergedLinear<float>(w, {false, false, false}, {.rank = 2}, 1);
            }),
            "MergedLinear: enable_lora: expected at least one enabled projection with rank 1 or more, got none");
  EXPECT_EQ(message_of<ShapeError>([&] { MergedLinear<float>(w, random_vector<float>(13, 1), enable, {}, 1); }),
            "MergedLinear: bias: expected 9 elements, got 13");
  EXPECT_EQ(message_of<ShapeError>([&] { MergedLinear<float>(Matrix<float>(0, 5), enable, {}, 1); }),
            "MergedLinear: weight: expected at least 1 x 1, got 0 x 5");
  EXPECT_EQ(message_of<ShapeError>([&] { (void)layer.infer(random_matrix<float>(5, 9, 1)); }),
            "MergedLinear::infer: x: expected N x 13, got 5 x 9");
  EXPECT_EQ(message_of<StateError>([&] { (void)layer.backward(random_matrix<float>(5, 9, 1)); }),
            "MergedLinear::backward: layer: expected a forward(x) in training mode before, got none");
  EXPECT_EQ(message_of<ShapeError>([&] { layer.set_factors(layer.lora_A(), random_matrix<float>(9, 2, 1)); }),
            "MergedLinear::set_factors: B: expected 6 x 2, got 9 x 2");
  Matrix<float> square = random_matrix<float>(13, 13, 2);
  Workspace workspace;
  MergedLinear<float> same(random_matrix<float>(13, 13, 1), {true}, {.rank = 2}, 1);
  EXPECT_EQ(message_of<ShapeError>([&] { same.infer(square, square, workspace); }),
            "MergedLinear::infer: y: expected memory apart from x, got overlapping memory");
}

TEST(MergedLinearErrors, WhileMergedTrainingAndChangesAreRefused) {
  MergedLinear<float> layer(random_matrix<float>(9, 13, 1), {true, false, true}, {.rank = 2}, 1);
  const auto x = random_matrix<float>(5, 13, 2);
  const Matrix<float> y = layer.forward(x);
  layer.merge();
  EXPECT_THROW((void)layer.forward(x), StateError);
  EXPECT_THROW((void)layer.backward(y), StateError);
  EXPECT_THROW(layer.set_alpha(3), StateError);
  EXPECT_THROW(layer.set_factors(layer.lora_A(), layer.lora_B()), StateError);
  layer.unmerge();
  layer.set_alpha(3);
  EXPECT_EQ(layer.scaling(), 1.5F);
}

TEST(MergedLinearErrors, AnUpdateThatIsNotFiniteIsNotMerged) {
  const auto w = random_matrix<float>(9, 13, 1);
  MergedLinear<float> layer(w, {true, false, true}, {.rank = 2}, 1);
  Matrix<float> a = layer.lora_A();
  a(3, 12) = std::numeric_limits<float>::quiet_NaN();
  layer.set_factors(a, Matrix<float>::Ones(6, 2));
  EXPECT_THROW(layer.eval(), StateError);
  EXPECT_TRUE(layer.training());
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(same_bits(layer.weight(), w));
}

TEST(MergedLinearErrors, AWrongGradientOrRecordLeavesTheGradientsAsTheyWere) {
  const auto w = random_matrix<float>(9, 13, 1);
  const MergedLinear<float> layer(w, {true, false, true}, {.rank = 2}, 1);
  const MergedLinear<float> other(w, {true, true, true}, {.rank = 2}, 1);
  const auto x = random_matrix<float>(5, 13, 2);
  Matrix<float> y(5, 9);
  LoraRecord<float> record;
  Workspace workspace;
  auto gradients = layer.make_gradients();
  EXPECT_THROW(layer.backward(x, record, y, gradients, workspace), StateError);
  other.forward(x, record, y, workspace);
  EXPECT_THROW(layer.backward(x, record, y, gradients, workspace), ShapeError);
  layer.forward(x, record, y, workspace);
  EXPECT_THROW(layer.backward(x, record, y.leftCols(8).eval(), gradients, workspace), ShapeError);
  Matrix<float> wrong_dx(5, 12);
  EXPECT_THROW(layer.backward(x, record, y, gradients, wrong_dx, workspace), ShapeError);
  EXPECT_EQ(gradients.A.norm() + gradients.B.norm(), 0.0F);
}

}  // namespace
}  // namespace lora
