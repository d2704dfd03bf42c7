#include "lora/adapter/adapter.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "lora/core/random.hpp"
#include "lora/kernels/reference.hpp"
#include "support/thread_executor.hpp"

namespace {

using lora::Index;
using lora::LoraAdapter;
using lora::LoraConfig;
using lora::LoraGradients;
using lora::LoraRecord;
using lora::Matrix;
using lora::MatrixView;
using lora::RowVector;
using lora::view_of;
using lora::Workspace;
using Wide = long double;

// A matrix in long double with the sums of magnitudes that error bounds need.
struct Exact {
  Matrix<Wide> value;
  Matrix<Wide> magnitude;

  template <class Derived>
  static Exact of(const Eigen::MatrixBase<Derived>& matrix) {
    return {matrix.template cast<Wide>(), matrix.template cast<Wide>().cwiseAbs()};
  }

  [[nodiscard]] Exact transpose() const { return {value.transpose(), magnitude.transpose()}; }

  // scale * this * other
  [[nodiscard]] Exact times(const Exact& other, Wide scale = 1) const {
    Exact product{Matrix<Wide>::Zero(value.rows(), other.value.cols()),
                  Matrix<Wide>::Zero(value.rows(), other.value.cols())};
    lora::reference::add_product(scale, view_of(value), view_of(other.value), view_of(product.value));
    lora::reference::add_product(std::abs(scale), view_of(magnitude), view_of(other.magnitude),
                                 view_of(product.magnitude));
    return product;
  }

  [[nodiscard]] Exact plus(const Exact& other) const { return {value + other.value, magnitude + other.magnitude}; }
};

// |got - exact| <= gamma_n sum |terms| with gamma_n = n u / (1 - n u), where no term is rounded more than n times,
// whatever the order of summation. Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5.
template <class Derived>
void expect_near(const Eigen::MatrixBase<Derived>& got, const Exact& exact, Index n, const char* what) {
  const Wide n_u = static_cast<Wide>(n) * std::numeric_limits<typename Derived::Scalar>::epsilon() / 2;
  ASSERT_EQ(got.rows(), exact.value.rows()) << what;
  ASSERT_EQ(got.cols(), exact.value.cols()) << what;
  for (Index i = 0; i < got.rows(); ++i) {
    for (Index j = 0; j < got.cols(); ++j) {
      ASSERT_LE(std::abs(static_cast<Wide>(got(i, j)) - exact.value(i, j)), n_u / (1 - n_u) * exact.magnitude(i, j))
          << what << " (" << i << ", " << j << ")";
    }
  }
}

template <class Scalar>
Matrix<Scalar> uniform(Index rows, Index cols, std::uint64_t stream) {
  Matrix<Scalar> matrix(rows, cols);
  lora::fill_uniform(view_of(matrix), 1.0, lora::RandomStream(2024, stream));
  return matrix;
}

struct Case {
  Index rows;
  Index in_features;
  Index out_features;
  Index rank;
  double dropout;
};

// Odd sizes, tails, N = 0 and 1, r = 1 and r > min(k, d).
const Case cases[] = {{1, 1, 1, 1, 0},   {0, 5, 4, 2, 0},      {1, 9, 7, 3, 0},     {5, 17, 33, 4, 0},
                      {33, 40, 8, 8, 0}, {4, 3, 5, 9, 0},      {7, 64, 65, 16, 0},  {1, 9, 7, 3, 0.5},
                      {0, 5, 4, 2, 0.1}, {5, 17, 33, 4, 0.25}, {33, 40, 8, 8, 0.1}, {7, 65, 64, 16, 0.9}};

// One pass of an adapter with B away from zero, and what the formulas say of it.
template <class Scalar>
struct Pass {
  LoraAdapter<Scalar> adapter;
  Matrix<Scalar> x;
  Matrix<Scalar> dy;
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> x_by_columns = x;
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> dy_by_columns = dy;
  bool by_columns = false;
  LoraRecord<Scalar> record;
  Workspace workspace;

  explicit Pass(const Case& c, bool lora_bias = false)
      : adapter("test", c.in_features, c.out_features,
                {.rank = c.rank,
                 .alpha = 3,
                 .dropout = c.dropout,
                 .lora_bias = lora_bias,
                 .init_lora_weights = lora::InitLoraWeights::random},
                77),
        x(uniform<Scalar>(c.rows, c.in_features, 1)),
        dy(uniform<Scalar>(c.rows, c.out_features, 2)) {
    record.position = {5, 3};
  }

  // X and dY as the adapter gets them, in either storage order.
  [[nodiscard]] MatrixView<const Scalar> x_view() const { return by_columns ? view_of(x_by_columns) : view_of(x); }
  [[nodiscard]] MatrixView<const Scalar> dy_view() const { return by_columns ? view_of(dy_by_columns) : view_of(dy); }

  [[nodiscard]] Wide exact_scale() const { return 3 / static_cast<Wide>(adapter.rank()); }

  // drop(X), with the mask applied by hand.
  [[nodiscard]] Exact dropped_x() const {
    const auto p = static_cast<Wide>(adapter.config().dropout);
    Exact dropped = Exact::of(x);
    if (p > 0) {
      const auto mask = record.dropout_bits().template mask<Scalar>(adapter.config().dropout);
      for (Index i = 0; i < x.rows(); ++i)
        for (Index j = 0; j < x.cols(); ++j) dropped.value(i, j) *= mask.keeps(i, j) ? 1 / (1 - p) : 0;
      dropped.magnitude = dropped.value.cwiseAbs();
    }
    return dropped;
  }

  [[nodiscard]] LoraGradients<Scalar> gradients_of_ones() const {
    return {Matrix<Scalar>::Ones(adapter.rank(), x.cols()), Matrix<Scalar>::Ones(dy.cols(), adapter.rank()),
            RowVector<Scalar>::Ones(adapter.lora_bias().size()), RowVector<Scalar>(), RowVector<Scalar>()};
  }
};

template <class Scalar, class Body>
void for_each_case(bool lora_bias, const Body& body) {
  for (const Case& c : cases) {
    for (const bool by_columns : {false, true}) {
      Pass<Scalar> pass(c, lora_bias);
      pass.by_columns = by_columns;
      body(c, pass);
    }
  }
}

// Roundings besides those of a sum: the scaling s, 1 / (1 - p), their product, its use, s B, and a final addition.
constexpr Index extra_roundings = 8;

template <class Scalar>
class Adapter : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Adapter, Scalars);

TYPED_TEST(Adapter, StartsAsTheConfigurationSays) {
  const LoraConfig config{.rank = 3, .alpha = 6};
  const LoraAdapter<TypeParam> adapter("test", 9, 7, config, 42);
  Matrix<TypeParam> a(3, 9);
  Matrix<TypeParam> b(7, 3);
  lora::initialize_factors(config.init_lora_weights, 42, view_of(a), view_of(b));
  EXPECT_EQ(adapter.A(), a);
  EXPECT_EQ(adapter.B(), b);
  EXPECT_EQ(adapter.rank(), 3);
  EXPECT_EQ(adapter.scaling(), TypeParam(2));
  EXPECT_EQ(adapter.seed(), 42U);
  EXPECT_EQ(adapter.lora_bias().size(), 0);
}

TYPED_TEST(Adapter, LoraBiasStartsAtZero) {
  const LoraAdapter<TypeParam> adapter("test", 9, 7, {.rank = 3, .lora_bias = true}, 42);
  EXPECT_EQ(adapter.lora_bias(), (RowVector<TypeParam>::Zero(7)));
}

TYPED_TEST(Adapter, RefusesAConfigurationOutOfRangeInTheCallersName) {
  try {
    const LoraAdapter<TypeParam> adapter("LoraLinear", 9, 7, {.rank = -2}, 42);
    FAIL() << "accepted";
  } catch (const lora::ConfigError& error) {
    EXPECT_STREQ(error.what(), "LoraLinear: rank: expected 0 or more, got -2");
  }
}

TYPED_TEST(Adapter, SetAlphaChangesTheScalingOrNothing) {
  LoraAdapter<TypeParam> adapter("test", 9, 7, {.rank = 4, .alpha = 8}, 42);
  adapter.set_alpha("set_alpha", 2);
  EXPECT_EQ(adapter.scaling(), TypeParam(0.5));
  EXPECT_EQ(adapter.config().alpha, 2);
  for (const double alpha : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(adapter.set_alpha("set_alpha", alpha), lora::ConfigError);
  }
  EXPECT_EQ(adapter.config().alpha, 2);
}

// A finite alpha that is infinite in the layer's scalar makes every answer NaN: 0 * inf.
TYPED_TEST(Adapter, ScalingIsFiniteInTheScalarOrTheConfigurationIsRefused) {
  try {
    const LoraAdapter<TypeParam> adapter("test", 9, 7, {.rank = 1, .alpha = 1e300}, 42);
    EXPECT_TRUE(std::isfinite(adapter.scaling()));
  } catch (const lora::ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("alpha"), std::string::npos);
  }
}

TYPED_TEST(Adapter, UpdateIsTheFactorsThemselves) {
  const Pass<TypeParam> pass({1, 9, 7, 3, 0});
  const auto update = pass.adapter.update();
  EXPECT_EQ(update.a.data, pass.adapter.A().data());
  EXPECT_EQ(update.b.data, pass.adapter.B().data());
  EXPECT_EQ(update.a.map(), pass.adapter.A());
  EXPECT_EQ(update.b.map(), pass.adapter.B());
  EXPECT_EQ(update.scale, pass.adapter.scaling());
}

// Y = s X A^T B^T
TYPED_TEST(Adapter, InferenceIsTheScaledProductOfTheFactors) {
  for_each_case<TypeParam>(false, [](const Case& c, Pass<TypeParam>& pass) {
    const auto term = pass.adapter.infer(pass.x_view(), pass.workspace);
    ASSERT_EQ(term.rank(), c.rank);
    ASSERT_TRUE(term.up.row_major());
    const Exact a = Exact::of(pass.adapter.A());
    const Exact b = Exact::of(pass.adapter.B());
    const Exact u = Exact::of(pass.x).times(a.transpose());
    expect_near(term.down.map(), u, c.in_features + extra_roundings, "U");
    const Matrix<Wide> y = Exact::of(term.down.map()).times(Exact::of(term.up.map())).value;
    expect_near(y.template cast<TypeParam>(), u.times(b.transpose(), pass.exact_scale()),
                c.in_features + extra_roundings, "Y");
  });
}

// Y = s drop(X) A^T B^T
TYPED_TEST(Adapter, ForwardIsTheScaledProductOfTheDroppedInput) {
  for_each_case<TypeParam>(false, [](const Case& c, Pass<TypeParam>& pass) {
    const auto term = pass.adapter.forward(pass.x_view(), pass.record, pass.workspace);
    const Exact u = pass.dropped_x().times(Exact::of(pass.adapter.A()).transpose());
    expect_near(term.down.map(), u, c.in_features + extra_roundings, "U");
    EXPECT_EQ(term.down.data, pass.record.down_projection().data);
    EXPECT_EQ(pass.record.rows(), c.rows);
    const Matrix<Wide> y = Exact::of(term.down.map()).times(Exact::of(term.up.map())).value;
    expect_near(y.template cast<TypeParam>(), u.times(Exact::of(pass.adapter.B()).transpose(), pass.exact_scale()),
                c.in_features + extra_roundings, "Y");
  });
}

TYPED_TEST(Adapter, TheMaskOfAPassIsThatOfItsPosition) {
  Pass<TypeParam> pass({9, 40, 6, 2, 0.3});
  (void)pass.adapter.forward(pass.x_view(), pass.record, pass.workspace);
  lora::DropoutBits bits;
  lora::SerialExecutor executor;
  bits.draw(0.3, 77, {5, 3}, 9, 40, executor);
  const auto expected = bits.mask<TypeParam>(0.3);
  const auto mask = pass.adapter.mask(pass.record);
  EXPECT_EQ(mask.scale, expected.scale);
  for (Index i = 0; i < 9; ++i)
    for (Index j = 0; j < 40; ++j) EXPECT_EQ(mask.keeps(i, j), expected.keeps(i, j));
}

TYPED_TEST(Adapter, WithoutDropoutTrainingIsInference) {
  Pass<TypeParam> pass({9, 40, 6, 2, 0});
  const Matrix<TypeParam> trained = pass.adapter.forward(pass.x_view(), pass.record, pass.workspace).down.map();
  const Matrix<TypeParam> inferred = pass.adapter.infer(pass.x_view(), pass.workspace).down.map();
  EXPECT_EQ(trained, inferred);
  EXPECT_FALSE(pass.adapter.mask(pass.record).active());
  EXPECT_EQ(pass.record.bytes(), 9 * 2 * sizeof(TypeParam));
}

// V = s dY B; dA += V^T drop(X); dB += s dY^T U
TYPED_TEST(Adapter, BackwardAddsTheGradientsOfTheFactors) {
  for_each_case<TypeParam>(false, [](const Case& c, Pass<TypeParam>& pass) {
    (void)pass.adapter.forward(pass.x_view(), pass.record, pass.workspace);
    auto gradients = pass.gradients_of_ones();
    const Exact ones_a = Exact::of(gradients.A);
    const Exact ones_b = Exact::of(gradients.B);
    const auto v = pass.adapter.backward(pass.x_view(), pass.record, pass.dy_view(), gradients, pass.workspace);
    const Exact x = pass.dropped_x();
    const Exact dy = Exact::of(pass.dy);
    const Exact exact_v = dy.times(Exact::of(pass.adapter.B()), pass.exact_scale());
    const Exact exact_u = x.times(Exact::of(pass.adapter.A()).transpose());
    expect_near(v.map(), exact_v, c.out_features + extra_roundings, "V");
    expect_near(gradients.A, ones_a.plus(exact_v.transpose().times(x)), c.out_features + c.rows + 2 * extra_roundings,
                "dA");
    expect_near(gradients.B, ones_b.plus(dy.transpose().times(exact_u, pass.exact_scale())),
                c.in_features + c.rows + 2 * extra_roundings, "dB");
  });
}

TYPED_TEST(Adapter, BackwardAddsTheGradientOfTheLoraBias) {
  for_each_case<TypeParam>(true, [](const Case& c, Pass<TypeParam>& pass) {
    (void)pass.adapter.forward(pass.x_view(), pass.record, pass.workspace);
    auto gradients = pass.gradients_of_ones();
    const Exact ones = Exact::of(gradients.lora_bias);
    (void)pass.adapter.backward(pass.x_view(), pass.record, pass.dy_view(), gradients, pass.workspace);
    const Exact row_of_ones = Exact::of(Matrix<TypeParam>::Ones(1, c.rows));
    expect_near(gradients.lora_bias, ones.plus(row_of_ones.times(Exact::of(pass.dy), pass.exact_scale())),
                c.rows + extra_roundings, "dlora_bias");
  });
}

TYPED_TEST(Adapter, ResultsDoNotDependOnTheNumberOfWorkers) {
  const Case c{37, 70, 45, 5, 0.2};
  Pass<TypeParam> serial(c);
  auto expected = serial.gradients_of_ones();
  (void)serial.adapter.forward(serial.x_view(), serial.record, serial.workspace);
  (void)serial.adapter.backward(serial.x_view(), serial.record, serial.dy_view(), expected, serial.workspace);
  for (const int workers : {2, 3, 8}) {
    lora::testing::ThreadExecutor executor(workers);
    Pass<TypeParam> pass(c);
    pass.workspace = Workspace(executor);
    auto gradients = pass.gradients_of_ones();
    (void)pass.adapter.forward(pass.x_view(), pass.record, pass.workspace);
    (void)pass.adapter.backward(pass.x_view(), pass.record, pass.dy_view(), gradients, pass.workspace);
    EXPECT_EQ(pass.record.down_projection().map(), serial.record.down_projection().map()) << workers;
    EXPECT_EQ(gradients.A, expected.A) << workers;
    EXPECT_EQ(gradients.B, expected.B) << workers;
  }
}

TYPED_TEST(Adapter, RankZeroContributesNothing) {
  const LoraAdapter<TypeParam> adapter("test", 9, 7, {.rank = 0, .dropout = 0.5}, 42);
  const auto x = uniform<TypeParam>(3, 9, 1);
  LoraRecord<TypeParam> record;
  Workspace workspace;
  EXPECT_EQ(adapter.infer(view_of(x), workspace).rank(), 0);
  EXPECT_EQ(adapter.forward(view_of(x), record, workspace).rank(), 0);
  EXPECT_EQ(adapter.scaling(), 0);
  EXPECT_EQ(record.rows(), 3);
  EXPECT_EQ(record.bytes(), 0U);
  EXPECT_EQ(workspace.bytes(), 0U);
  EXPECT_FALSE(adapter.mask(record).active());
}

}  // namespace
