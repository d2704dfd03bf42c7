// SPDX-License-Identifier: MIT
// The step that the benchmarks set LoRA's against, bench/support/full_update.hpp, computes what it claims to compute: a
// slow or wrong opponent would flatter.
#include "support/full_update.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <utility>

#include "lora/core/error.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using bench::FullUpdateLinear;
using testing::Oracle;
using testing::random_matrix;
using testing::random_vector;

constexpr AdamWOptions options{
    .learning_rate = 0.125, .beta1 = 0.75, .beta2 = 0.9, .epsilon = 1e-6, .weight_decay = 0.25};

/// Whole numbers from -4 to 4: every sum of their products below 2^24 / 16 terms is exact in any order.
template <class Scalar>
Matrix<Scalar> whole_numbers(Index rows, Index cols, std::uint64_t seed) {
  return (random_matrix<Scalar>(rows, cols, seed, 4.49)).array().round().matrix();
}

/// AdamW by its formula in double, dense, with a bound on what an implementation in `Scalar` may differ by.
class DenseAdamW {
 public:
  explicit DenseAdamW(Matrix<double> value)
      : value_(std::move(value)),
        first_(Matrix<double>::Zero(value_.rows(), value_.cols())),
        magnitude_(first_),
        second_(first_),
        bound_(first_) {}

  void step(const Matrix<double>& gradient) {
    ++time_;
    const double correction1 = 1 - std::pow(options.beta1, time_);
    const double correction2 = 1 - std::pow(options.beta2, time_);
    first_ = options.beta1 * first_ + (1 - options.beta1) * gradient;
    magnitude_ = options.beta1 * magnitude_ + (1 - options.beta1) * gradient.cwiseAbs();
    second_ = options.beta2 * second_ + (1 - options.beta2) * gradient.cwiseAbs2();
    const Matrix<double> denominator = ((second_ / correction2).cwiseSqrt().array() + options.epsilon).matrix();
    value_ *= 1 - options.learning_rate * options.weight_decay;
    value_ -= (options.learning_rate / correction1 * first_.array() / denominator.array()).matrix();

    // In units of the unit round-off. A term of m, (1 - beta1) beta1^(t-i) g, takes at most two roundings when it
    // enters and three in each later step, coefficients included, of the sum of magnitudes; v likewise, halved by the
    // root, with one rounding each for the root, its correction (two), the quotient and epsilon (two); two for the
    // step size, one for the quotient. The value takes two for the decay and one for the difference. Earlier errors
    // shrink with the decay.
    const double roundings = (3 * time_ + 2) + (1.5 * time_ + 1) + 6 + 3 + 1;
    bound_ += 3 * value_.cwiseAbs() +
              (roundings * options.learning_rate / correction1 * magnitude_.array() / denominator.array()).matrix();
  }

  template <class Scalar>
  void expect_near(const Matrix<Scalar>& got, const std::string& what) const {
    constexpr double unit = 1.01 * std::numeric_limits<Scalar>::epsilon() / 2;  // 1.01: products of roundings
    for (Index i = 0; i < got.rows(); ++i) {
      for (Index j = 0; j < got.cols(); ++j) {
        ASSERT_NEAR(static_cast<double>(got(i, j)), value_(i, j), unit * (bound_(i, j) + std::abs(value_(i, j))))
            << what << " at (" << i << ", " << j << "), step " << time_;
      }
    }
  }

 private:
  Matrix<double> value_, first_, magnitude_, second_, bound_;
  int time_ = 0;
};

template <class Scalar>
Matrix<Scalar> weight_of(const FullUpdateLinear<Scalar>& layer) {
  Matrix<Scalar> weight(layer.weight().out_features(), layer.weight().in_features());
  read_back(layer.weight(), view_of(weight));
  return weight;
}

struct Case {
  Index n;
  Index d;
  Index k;
  [[nodiscard]] std::string text(const char* what) const {
    std::string result(what);
    result += " N " + std::to_string(n) + " d " + std::to_string(d) + " k " + std::to_string(k);
    return result;
  }
};

template <class Scalar>
void expect_three_steps(const Case& c) {
  const auto w0 = random_matrix<Scalar>(c.d, c.k, 1);
  const auto bias = random_vector<Scalar>(c.d, 2);
  FullUpdateLinear<Scalar> layer(w0, bias, options);
  DenseAdamW expected(w0.template cast<double>());
  Matrix<Scalar> y(c.n, c.d);
  Matrix<Scalar> dx(c.n, c.k);
  for (std::uint64_t step = 0; step < 3; ++step) {
    const auto x = whole_numbers<Scalar>(c.n, c.k, 10 + step);
    const auto dy = whole_numbers<Scalar>(c.n, c.d, 20 + step);
    const Matrix<Scalar> weight = weight_of(layer);

    layer.forward(x, y);
    Oracle forward(c.n, c.d);
    forward.add_row(bias.data());
    forward.add_product(1.0, view_of(x), view_of(weight).transpose());
    forward.expect_near(view_of(y), c.text("Y"));

    layer.backward_and_update(x, dy, dx);
    Oracle backward(c.n, c.k);
    backward.add_product(1.0, view_of(dy), view_of(weight));
    backward.expect_near(view_of(dx), c.text("dX"));

    const Matrix<double> gradient = dy.transpose().template cast<double>() * x.template cast<double>();
    expected.step(gradient);
    expected.expect_near(weight_of(layer), c.text("W"));
    if (::testing::Test::HasFatalFailure()) return;
  }
}

template <class Scalar>
class FullUpdateTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(FullUpdateTest, Scalars);

TYPED_TEST(FullUpdateTest, ThreeStepsMatchTheDenseFormulas) {
  for (const Index n : {1, 2, 7, 32}) {
    for (const Index d : {16, 48, 64, 112}) expect_three_steps<TypeParam>({n, d, 37});
  }
}

TYPED_TEST(FullUpdateTest, StepsMatchBeyondOneTileOfAPanelAndOneBlockOfTheBatch) {
  expect_three_steps<TypeParam>({5, 64, max_tile_size / kernels::panel_width<TypeParam> + 19});
  expect_three_steps<TypeParam>({kernels::inner_block<TypeParam> + 21, 64, 11});
}

TYPED_TEST(FullUpdateTest, HoldsTwoMomentsOfEveryWeight) {
  const Index d = 64;
  const Index k = 35;
  FullUpdateLinear<TypeParam> layer(random_matrix<TypeParam>(d, k, 1), random_vector<TypeParam>(d, 2), options);
  EXPECT_EQ(layer.parameter_count(), d * k);
  EXPECT_EQ(layer.moment_bytes(), 0U);
  Matrix<TypeParam> dx(3, k);
  layer.backward_and_update(random_matrix<TypeParam>(3, k, 3), random_matrix<TypeParam>(3, d, 4), dx);
  EXPECT_EQ(layer.moment_bytes(), static_cast<std::size_t>(2 * d * k) * sizeof(TypeParam));
}

TYPED_TEST(FullUpdateTest, RefusesPanelsWithPadding) {
  const auto make = [](Index d) {
    return FullUpdateLinear<TypeParam>(random_matrix<TypeParam>(d, 5, 1), random_vector<TypeParam>(d, 2), options);
  };
  EXPECT_NO_THROW(make(kernels::width_unit<TypeParam>));
  EXPECT_THROW(make(kernels::width_unit<TypeParam> - 1), ConfigError);
}

}  // namespace
}  // namespace lora
