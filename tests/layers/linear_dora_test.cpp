// LoraLinear with DoRA: against the dense formula in long double and central differences, with and without dropout; its
// merging, its counts of memory, its errors. linear_golden_test.cpp compares it with PEFT's numbers.
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "lora/layers/linear.hpp"
#include "lora/optim/adamw.hpp"
#include "support/allocation_counter.hpp"
#include "support/bits.hpp"
#include "support/layer_kinds.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using testing::allocations_of;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using testing::Wide;
using testing::within_rounding;

struct Shape {
  Index n, d, k, r;
};

const std::vector<Shape> shapes = {{0, 5, 7, 2},   {1, 1, 1, 1},   {1, 9, 13, 3},   {2, 3, 2, 8},
                                   {5, 49, 17, 1}, {9, 50, 31, 2}, {13, 97, 33, 5}, {33, 24, 65, 9}};

LoraConfig dora_config(const Shape& shape, double dropout = 0, bool fan_in_fan_out = false) {
  return {.rank = shape.r,
          .alpha = 3,
          .dropout = dropout,
          .fan_in_fan_out = fan_in_fan_out,
          .use_dora = true,
          .bias = BiasMode::lora_only,
          .init_lora_weights = InitLoraWeights::random};
}

// A layer whose magnitude is not the norm, so that m / n is not 1.
template <class Kind>
auto layer_of(const Shape& shape, const LoraConfig& config) {
  using Scalar = typename Kind::Scalar;
  auto made = Kind::make(random_matrix<Scalar>(shape.d, shape.k, 1), random_vector<Scalar>(shape.d, 2), config, 7);
  RowVector<Scalar> magnitude = random_vector<Scalar>(shape.d, 3).array() + Scalar(1.5);
  made.layer->set_magnitude(magnitude);
  return made;
}

// The dense formula: the adapted weight and its norms are built whole.
struct Dense {
  Matrix<Wide> y, dx, da, db, dm;
};

template <class Layer, class Scalar>
Dense dense_dora(const Layer& layer, const Matrix<Scalar>& x_in, const Matrix<Scalar>& dy_in, const Matrix<Wide>& keep,
                 bool sizes = false) {
  using testing::detail::product;
  const auto wide = [&](const auto& m) { return testing::detail::widened(m, sizes); };
  const bool transposed = layer.config().fan_in_fan_out;
  const Matrix<Scalar> stored = layer.weight();
  const Matrix<Scalar> oriented = transposed ? Matrix<Scalar>(stored.transpose()) : stored;
  const Wide s = static_cast<Wide>(layer.config().scaling());
  const Matrix<Wide> true_sum = oriented.template cast<Wide>() +
                                s * (layer.lora_B().template cast<Wide>() * layer.lora_A().template cast<Wide>());
  const Matrix<Wide> x = wide(x_in), w = wide(oriented), a = wide(layer.lora_A()), b = wide(layer.lora_B()),
                     dy = wide(dy_in);
  const Wide minus = sizes ? 1 : -1;
  const Matrix<Wide> dropped = x.cwiseProduct(keep);
  const Matrix<Wide> sum = w + product(b, a, s);
  RowVector<Wide> norms(oriented.rows()), factors(oriented.rows());
  for (Index j = 0; j < norms.size(); ++j) {
    norms[j] = true_sum.row(j).norm();
    factors[j] = std::abs(static_cast<Wide>(layer.magnitude()[j])) / norms[j];
  }
  const Matrix<Wide> z = product(dropped, sum.transpose());
  Dense answer;
  answer.y = product(x + minus * dropped, w.transpose()) + Matrix<Wide>(z.array().rowwise() * factors.array());
  answer.y.rowwise() += RowVector<Wide>(wide(layer.bias()));
  const Matrix<Wide> dz = dy.array().rowwise() * factors.array();
  answer.dm = product(Matrix<Wide>::Ones(1, dy.rows()), dy.cwiseProduct(z)).array() / norms.array();
  answer.db = product(dz.transpose(), product(dropped, a.transpose()), s);
  answer.da = product(product(dz, b, s).transpose(), dropped);
  answer.dx = product(dy, w) + Matrix<Wide>(product(Matrix<Wide>(dz + minus * dy), w).cwiseProduct(keep)) +
              Matrix<Wide>(product(product(dz, b, s), a).cwiseProduct(keep));
  if (sizes) answer.dx += product(dz, w);
  return answer;
}

template <class Kind>
class LinearDora : public ::testing::Test {};
TYPED_TEST_SUITE(LinearDora, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(LinearDora, TrainingAndInferenceAgreeWithTheDenseFormula) {
  using Scalar = typename TypeParam::Scalar;
  for (const auto& shape : shapes) {
    for (const double dropout : {0.0, 0.3}) {
      SCOPED_TRACE(::testing::Message() << shape.n << " x " << shape.d << " x " << shape.k << ", " << dropout);
      const auto config = dora_config(shape, dropout, shape.d % 2 == 0);
      const auto made = layer_of<TypeParam>(shape, config);
      const auto& layer = *made.layer;
      const auto x = random_matrix<Scalar>(shape.n, shape.k, 4);
      const auto dy = random_matrix<Scalar>(shape.n, shape.d, 5);
      LoraRecord<Scalar> record;
      record.position = {3, 11};
      Workspace workspace;
      Matrix<Scalar> y(shape.n, shape.d), dx(shape.n, shape.k);
      auto gradients = layer.make_gradients();
      layer.forward(x, record, y, workspace);
      layer.backward(x, record, dy, gradients, dx, workspace);
      Matrix<Wide> keep = Matrix<Wide>::Ones(shape.n, shape.k);
      if (dropout > 0) {
        const auto mask = record.dropout_bits().template mask<Scalar>(dropout);
        for (Index i = 0; i < shape.n; ++i)
          for (Index j = 0; j < shape.k; ++j) keep(i, j) = mask.keeps(i, j) ? static_cast<Wide>(mask.scale) : 0;
      }
      const auto exact = dense_dora(layer, x, dy, keep);
      const auto size = dense_dora(layer, x, dy, keep, true);
      // The longest chain of a plain layer, the chain of the norm with its Gram matrix, and the multiplications.
      const testing::ChainLengths chain{shape.n, shape.d, shape.k, shape.r};
      const Index norm = 2 * shape.k + 2 * shape.r + 16;
      EXPECT_TRUE(within_rounding(y, exact.y, size.y, chain.y() + norm));
      EXPECT_TRUE(within_rounding(gradients.A, exact.da, size.da, chain.da() + norm));
      EXPECT_TRUE(within_rounding(gradients.B, exact.db, size.db, chain.db() + norm));
      EXPECT_TRUE(within_rounding(gradients.magnitude, exact.dm, size.dm, chain.y() + shape.n + norm));
      EXPECT_TRUE(within_rounding(dx, exact.dx, size.dx, chain.dx() + norm));
      const Matrix<Wide> ones = Matrix<Wide>::Ones(shape.n, shape.k);
      EXPECT_TRUE(within_rounding(layer.infer(x), dense_dora(layer, x, dy, ones).y,
                                  dense_dora(layer, x, dy, ones, true).y, chain.y() + norm));
    }
  }
}

TYPED_TEST(LinearDora, StartsWithTheNormsOfTheRowsSoThatItIsItsBaseLayer) {
  using Scalar = typename TypeParam::Scalar;
  const auto w = random_matrix<Scalar>(50, 33, 1);
  const auto x = random_matrix<Scalar>(9, 33, 3);
  const auto adapted = TypeParam::make(w, {}, {.rank = 5, .use_dora = true});
  const auto frozen = TypeParam::make(w, {}, {.rank = 0});
  for (Index j = 0; j < 50; ++j) {
    EXPECT_NEAR(adapted.layer->magnitude()[j], w.row(j).norm(), 8 * std::numeric_limits<Scalar>::epsilon() * 6) << j;
  }
  EXPECT_TRUE(same_bits(adapted.layer->infer(x), frozen.layer->infer(x)));
}

TYPED_TEST(LinearDora, MergingGivesEveryRowItsMagnitudeAndUnmergingEveryBit) {
  using Scalar = typename TypeParam::Scalar;
  for (const bool transposed : {false, true}) {
    const Shape shape{6, 51, 35, 4};
    const auto made = layer_of<TypeParam>(shape, dora_config(shape, 0, transposed));
    auto& layer = *made.layer;
    const Matrix<Scalar> w0 = layer.weight();
    const auto x = random_matrix<Scalar>(6, 35, 4);
    const Matrix<Scalar> y = layer.infer(x);
    for (int cycle = 0; cycle < 100; ++cycle) {
      layer.eval();
      const Matrix<Scalar> merged = transposed ? Matrix<Scalar>(layer.weight().transpose()) : layer.weight();
      for (Index j = 0; j < 51; ++j) {
        // A relative error of the norm, and a rounding for each element.
        ASSERT_NEAR(merged.row(j).norm() / layer.magnitude()[j], 1, 128 * std::numeric_limits<Scalar>::epsilon());
      }
      ASSERT_LE((layer.infer(x) - y).cwiseAbs().maxCoeff(),
                64 * std::numeric_limits<Scalar>::epsilon() * layer.magnitude().maxCoeff() * x.norm());
      ASSERT_TRUE(same_bits(layer.base_weight(), w0));
      layer.train();
      ASSERT_TRUE(same_bits(layer.weight(), w0));
      EXPECT_EQ(layer.merge_bytes(), 0U);
      layer.set_factors(layer.lora_A(), Matrix<Scalar>(layer.lora_B() * Scalar(1)));
    }
  }
}

// The norm changes with B, but its change has no part in the gradient: only the direct formula is differentiated.
TEST(LinearDoraGradient, AgreesWithCentralDifferencesWhileTheNormIsConstant) {
  constexpr Index n = 4, d = 5, k = 7, r = 3;
  for (const double dropout : {0.0, 0.4}) {
    LoraLinear<double> layer(random_matrix<double>(d, k, 1), random_vector<double>(d, 2),
                             dora_config({n, d, k, r}, dropout), 3);
    layer.set_magnitude(random_vector<double>(d, 3).array() + 1.5);
    Matrix<double> x = random_matrix<double>(n, k, 5);
    const Matrix<double> g = random_matrix<double>(n, d, 6);
    LoraRecord<double> record;
    record.position = {5, 0};
    Workspace workspace;
    Matrix<double> y(n, d), dx(n, k);
    layer.forward(x, record, y, workspace);
    auto gradients = layer.make_gradients();
    layer.backward(x, record, (g.array() * (1.0 - y.array().tanh().square())).matrix(), gradients, dx, workspace);
    const RowVector<double> norms = Eigen::Map<const RowVector<double>>(record.row_norms(), d);
    Matrix<double> keep = Matrix<double>::Ones(n, k);
    const auto mask = record.dropout_bits().mask<double>(dropout);
    for (Index i = 0; dropout > 0 && i < n; ++i)
      for (Index j = 0; j < k; ++j) keep(i, j) = mask.keeps(i, j) ? mask.scale : 0.0;
    const auto value = [&] {
      const Matrix<double> dropped = x.cwiseProduct(keep);
      const Matrix<double> base = dropped * layer.weight().transpose();
      const Matrix<double> lora = layer.scaling() * dropped * layer.lora_A().transpose() * layer.lora_B().transpose();
      const RowVector<double> factor = layer.magnitude().array() / norms.array();
      Matrix<double> out = x * layer.weight().transpose();  // PEFT's order: result + (m/n - 1) base + m/n lora
      out.array() += base.array().rowwise() * (factor.array() - 1) + lora.array().rowwise() * factor.array();
      out.rowwise() += layer.bias();
      return g.cwiseProduct(out.array().tanh().matrix()).sum();
    };
    const auto expect_central_differences = [&](auto&& target, const Matrix<double>& gradient) {
      constexpr double h = 6e-6;  // epsilon^(1/3), where the errors h^2 and epsilon / h meet
      const double scale = gradient.cwiseAbs().maxCoeff();
      ASSERT_GT(scale, 1e-3);
      for (Index i = 0; i < target.rows(); ++i) {
        for (Index j = 0; j < target.cols(); ++j) {
          const double kept = target(i, j);
          target(i, j) = kept + h;
          const double above = value();
          target(i, j) = kept - h;
          const double below = value();
          target(i, j) = kept;
          EXPECT_NEAR(gradient(i, j), (above - below) / (2 * h), 1e-6 * scale) << i << ", " << j;
        }
      }
    };
    const auto parameters = layer.parameters();
    ASSERT_EQ(parameters.size(), 4U);
    EXPECT_EQ(parameters[2].name(), "lora_magnitude_vector.weight");
    EXPECT_EQ(parameters[2].role(), ParameterRole::magnitude);
    EXPECT_EQ(parameters[2].rows(), 1);
    expect_central_differences(parameters[0].value(), gradients.A);
    expect_central_differences(parameters[1].value(), gradients.B);
    expect_central_differences(parameters[2].value(), gradients.magnitude);
    expect_central_differences(parameters[3].value(), gradients.bias);
    expect_central_differences(x, dx);
  }
}

TEST(LinearDoraState, InferenceFollowsEveryStepOfTheOptimizer) {
  LoraLinear<double> layer(random_matrix<double>(9, 13, 1), {.rank = 3, .merge_weights = false, .use_dora = true}, 3);
  AdamW<double> optimizer({.learning_rate = 0.05});
  const auto x = random_matrix<double>(6, 13, 4);
  for (int step = 0; step < 5; ++step) {
    (void)layer.backward(layer.train().forward(x));
    optimizer.step(layer.parameters());
    layer.zero_grad();
    const Matrix<double> trained = layer.forward(x);
    EXPECT_LT((layer.eval().forward(x) - trained).norm(), 1e-14 * trained.norm());
    EXPECT_LT((layer.merge().infer(x) - trained).norm(), 1e-13 * trained.norm());
    layer.unmerge();
  }
}

TEST(LinearDoraState, GradientsOfTheMagnitudeAccumulateUntilZeroGrad) {
  LoraLinear<float> layer(random_matrix<float>(9, 13, 1), dora_config({5, 9, 13, 3}), 3);
  const auto dy = random_matrix<float>(5, 9, 5);
  (void)layer.forward(random_matrix<float>(5, 13, 4));
  (void)layer.backward(dy);
  const auto once = layer.gradients();
  EXPECT_GT(once.magnitude.norm(), 0);
  layer.accumulate_gradients(dy);
  EXPECT_TRUE(same_bits(layer.gradients().magnitude, RowVector<float>(2 * once.magnitude)));
  layer.zero_grad();
  EXPECT_EQ(layer.gradients().magnitude.norm(), 0.0F);
}

// A row without direction: PEFT divides 0 by 0 there.
TEST(LinearDoraState, ARowOfZerosIsZeroAndCanLearn) {
  Matrix<float> w = random_matrix<float>(4, 6, 1);
  w.row(2).setZero();
  for (const double dropout : {0.0, 0.5}) {
    LoraLinear<float> layer(w, {.rank = 2, .dropout = dropout, .use_dora = true}, 3);
    EXPECT_EQ(layer.magnitude()[2], 0.0F);
    const auto x = random_matrix<float>(5, 6, 4);
    const Matrix<float> y = layer.forward(x);
    EXPECT_TRUE(y.allFinite());
    EXPECT_EQ(y.col(2).norm(), 0.0F);
    const Matrix<float> dx = layer.backward(Matrix<float>::Ones(5, 4));
    EXPECT_TRUE(dx.allFinite() && layer.gradients().A.allFinite());
    EXPECT_TRUE(layer.gradients().magnitude.allFinite());
    EXPECT_GT(layer.gradients().B.row(2).norm(), 0.0F);
    AdamW<float>({.learning_rate = 0.1F}).step(layer.parameters());
    layer.zero_grad();
    (void)layer.forward(x);
    (void)layer.backward(Matrix<float>::Ones(5, 4));
    EXPECT_NE(layer.gradients().magnitude[2], 0.0F);
    EXPECT_TRUE(layer.merge().weight().allFinite());
    EXPECT_TRUE(same_bits(layer.unmerge().weight(), w));
  }
}

TEST(LinearDoraCounts, ASteadyStepAllocatesNothing) {
  for (const double dropout : {0.0, 0.1}) {
    LoraLinear<float> layer(random_matrix<float>(200, 300, 1), random_vector<float>(200, 2),
                            dora_config({65, 200, 300, 8}, dropout), 3);
    AdamW<float> optimizer;
    const auto x = random_matrix<float>(65, 300, 3);
    const auto dy = random_matrix<float>(65, 200, 4);
    Matrix<float> y(65, 200), dx(65, 300);
    Workspace workspace;
    const auto parameters = layer.parameters();
    const auto step = [&](Index rows) {
      layer.forward(x.topRows(rows), y.topRows(rows));
      layer.backward(dy.topRows(rows), dx.topRows(rows));
      layer.accumulate_gradients(dy.topRows(rows));
      optimizer.step(parameters);
      layer.zero_grad();
      layer.infer(x.topRows(rows), y.topRows(rows), workspace);
    };
    step(65);
    EXPECT_EQ(allocations_of([&] {
                step(65);
                step(17);
                step(65);
              }),
              0);
  }
}

TEST(LinearDoraCounts, TheRecordHoldsZAndTheNormsOnlyWithDora) {
  constexpr Index n = 64, k = 256, d = 128, r = 8;
  for (const bool use_dora : {false, true}) {
    LoraLinear<float> layer(random_matrix<float>(d, k, 1), {.rank = r, .use_dora = use_dora}, 1);
    Matrix<float> y(n, d);
    LoraRecord<float> record;
    Workspace workspace;
    layer.forward(random_matrix<float>(n, k, 2), record, y, workspace);
    EXPECT_EQ(record.bytes(), static_cast<std::size_t>(4 * (n * r + (use_dora ? (n + 1) * d : 0))));
    EXPECT_EQ(layer.trainable_parameter_count(), r * (d + k) + (use_dora ? d : 0));
  }
}

TEST(LinearDoraThreads, ResultsHaveTheSameBitsForAnyNumberOfWorkers) {
  constexpr Index n = 21, d = 150, k = 90;
  const auto x = random_matrix<float>(n, k, 3);
  const auto dy = random_matrix<float>(n, d, 4);
  for (const double dropout : {0.0, 0.3}) {
    const LoraLinear<float> layer(random_matrix<float>(d, k, 1), random_vector<float>(d, 2),
                                  dora_config({n, d, k, 4}, dropout), 1);
    struct Answer {
      Matrix<float> y, dx, inferred;
      LoraGradients<float> gradients;
    };
    const auto run = [&](int workers) {
      testing::ThreadExecutor executor(workers);
      Workspace workspace(executor);
      Answer answer{Matrix<float>(n, d), Matrix<float>(n, k), Matrix<float>(n, d), layer.make_gradients()};
      LoraRecord<float> record;
      layer.forward(x, record, answer.y, workspace);
      layer.backward(x, record, dy, answer.gradients, answer.dx, workspace);
      layer.infer(x, answer.inferred, workspace);
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
      EXPECT_TRUE(same_bits(many.gradients.magnitude, one.gradients.magnitude));
    }
  }
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

TEST(LinearDoraErrors, SayWhatIsWrongAndChangeNothing) {
  LoraLinear<float> layer(random_matrix<float>(9, 13, 1), {.rank = 3, .use_dora = true}, 1);
  const RowVector<float> magnitude = layer.magnitude();
  EXPECT_EQ(message_of<ShapeError>([&] { layer.set_magnitude(random_vector<float>(8, 1)); }),
            "LoraLinear::set_magnitude: magnitude: expected 1 x 9, got 1 x 8");
  layer.merge();
  EXPECT_THROW(layer.set_magnitude(random_vector<float>(9, 1)), StateError);
  EXPECT_THROW((void)layer.parameters()[2].value(), StateError);
  layer.unmerge();
  EXPECT_TRUE(same_bits(layer.magnitude(), magnitude));
  LoraLinear<float> plain(random_matrix<float>(9, 13, 1), {.rank = 3}, 1);
  EXPECT_EQ(plain.magnitude().size(), 0);
  EXPECT_THROW(plain.set_magnitude(random_vector<float>(9, 1)), ShapeError);
}

TEST(LinearDoraErrors, ARecordWithoutZIsRefused) {
  const auto w = random_matrix<float>(9, 13, 1);
  const LoraLinear<float> plain(w, {.rank = 3}, 1);
  const LoraLinear<float> dora(w, {.rank = 3, .use_dora = true}, 1);
  const auto x = random_matrix<float>(5, 13, 2);
  Matrix<float> y(5, 9);
  LoraRecord<float> record;
  Workspace workspace;
  auto gradients = dora.make_gradients();
  auto plain_gradients = plain.make_gradients();
  plain.forward(x, record, y, workspace);
  EXPECT_THROW(dora.backward(x, record, y, gradients, workspace), ShapeError);
  dora.forward(x, record, y, workspace);
  EXPECT_THROW(plain.backward(x, record, y, plain_gradients, workspace), ShapeError);
  EXPECT_THROW(dora.backward(x, record, y, plain_gradients, workspace), ShapeError);
}

TEST(LinearDoraErrors, AMagnitudeThatIsNotFiniteCannotBeMerged) {
  const auto w = random_matrix<float>(9, 13, 1);
  LoraLinear<float> layer(w, {.rank = 3, .use_dora = true}, 1);
  RowVector<float> magnitude = layer.magnitude();
  magnitude[4] = std::numeric_limits<float>::infinity();
  layer.set_magnitude(magnitude);
  EXPECT_THROW(layer.eval(), StateError);
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(same_bits(layer.weight(), w));
}

}  // namespace
}  // namespace lora
