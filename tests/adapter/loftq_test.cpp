// SPDX-License-Identifier: MIT
// Starts that are computed with the encoding of the frozen weight.
#include "lora/adapter/loftq.hpp"

#include <Eigen/SVD>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "lora/layers/linear.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace loftq_test {
namespace {

using testing::random_matrix;

template <class Format>
Matrix<double> values_of(const QuantizedWeight<Format>& weight) {
  Matrix<float> values(weight.out_features(), weight.in_features());
  read_back(weight, view_of(values));
  return values.cast<double>();
}

/// |W - (Q + s B A)|
template <class Format>
double error_of(const Matrix<float>& w, const QuantizedStart<Format>& start, double scaling) {
  const Matrix<double> product = start.factors.B.template cast<double>() * start.factors.A.template cast<double>();
  return (w.cast<double>() - values_of(start.weight) - scaling * product).norm();
}

/// |W - Q| without its `rank` largest parts.
template <class Format>
double error_of_svd_once(const Matrix<float>& w, Index rank) {
  const Matrix<double> rest = w.cast<double>() - values_of(QuantizedWeight<Format>::quantize(view_of(w)));
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd{Eigen::MatrixXd(rest)};
  const Eigen::VectorXd singular = svd.singularValues();
  return singular.tail(singular.size() - rank).norm();
}

template <class Format>
class QuantizedStarts : public ::testing::Test {
 protected:
  static constexpr Index d = 40;
  static constexpr Index k = 64;
  const Matrix<float> w = random_matrix<float>(d, k, 1);
  static LoraConfig config(Index rank, double alpha) { return {.rank = rank, .alpha = alpha}; }
};
using Encodable = ::testing::Types<formats::BF16, formats::Q4_0, formats::Q5_1, formats::Q8_0, formats::NF4<64>>;
TYPED_TEST_SUITE(QuantizedStarts, Encodable);

TYPED_TEST(QuantizedStarts, OneIterationOfLoftqIsEncodingAndOneSvd) {
  for (const double alpha : {4.0, 32.0}) {
    const auto config = this->config(4, alpha);
    const auto start = loftq_factors<TypeParam>(view_of(this->w), config);
    EXPECT_EQ(values_of(start.weight), values_of(QuantizedWeight<TypeParam>::quantize(view_of(this->w))));
    const double once = error_of_svd_once<TypeParam>(this->w, 4);
    EXPECT_NEAR(error_of(this->w, start, config.scaling()), once, 1e-5 * once);
    EXPECT_NEAR(start.error, once, 1e-5 * once);
    // sqrt(S / s) in each
    const Eigen::VectorXf of_a = start.factors.A.rowwise().norm();
    const Eigen::VectorXf of_b = start.factors.B.colwise().norm();
    EXPECT_LE((of_a - of_b).norm(), 1e-5F * of_a.norm());
  }
}

TYPED_TEST(QuantizedStarts, MoreIterationsOfLoftqAreNeverWorse) {
  const auto config = this->config(8, 16);
  double last = std::numeric_limits<double>::infinity();
  for (const Index iterations : {1, 2, 3, 5}) {
    const auto start = loftq_factors<TypeParam>(view_of(this->w), config, iterations);
    EXPECT_NEAR(start.error, error_of(this->w, start, config.scaling()), 1e-9);
    EXPECT_LE(start.error, last);
    last = start.error;
  }
  if (TypeParam::name == "NF4") {
    EXPECT_LT(last, 0.99 * error_of_svd_once<TypeParam>(this->w, 8));
  }
}

TYPED_TEST(QuantizedStarts, FactorsOfFullRankLeaveNoError) {
  const auto config = this->config(this->d, 10);
  const auto start = loftq_factors<TypeParam>(view_of(this->w), config, 2);
  EXPECT_LE(error_of(this->w, start, config.scaling()), 1e-5);
  const auto pissa = pissa_quantized<TypeParam>(view_of(this->w), config);
  EXPECT_LE(error_of(this->w, pissa, config.scaling()), 1e-4);
}

TYPED_TEST(QuantizedStarts, OfZerosAreZero) {
  const Matrix<float> zero = Matrix<float>::Zero(this->d, this->k);
  for (const auto& start : {loftq_factors<TypeParam>(view_of(zero), this->config(3, 3), 3),
                            pissa_quantized<TypeParam>(view_of(zero), this->config(3, 3))}) {
    EXPECT_TRUE(values_of(start.weight).isZero(0));
    EXPECT_TRUE(start.factors.A.isZero(0));
    EXPECT_TRUE(start.factors.B.isZero(0));
    EXPECT_EQ(start.error, 0.0);
  }
}

TYPED_TEST(QuantizedStarts, PissaEncodesTheRestAlone) {
  // A weight with a few large parts: encoding these too costs most of the precision.
  const Matrix<float> strong =
      random_matrix<float>(this->d, 3, 5) * random_matrix<float>(3, this->k, 6) * 20.0F + this->w;
  const auto config = this->config(4, 8);
  const auto start = pissa_quantized<TypeParam>(view_of(strong), config);
  const Matrix<float> product = start.factors.B * start.factors.A * static_cast<float>(config.scaling());
  const Matrix<float> rest = strong - product;
  EXPECT_LE((values_of(start.weight) - rest.cast<double>()).norm(), start.error + 1e-3);
  EXPECT_NEAR(start.error, error_of(strong, start, config.scaling()), 1e-9);
  const Matrix<double> whole = values_of(QuantizedWeight<TypeParam>::quantize(view_of(strong)));
  EXPECT_LT(start.error, 0.6 * (strong.cast<double>() - whole).norm());
}

TYPED_TEST(QuantizedStarts, OloraEncodesWhatItsFactorsLeave) {
  const auto config = this->config(4, 8);
  const auto start = olora_quantized<TypeParam>(view_of(this->w), config);
  EXPECT_TRUE((start.factors.B.transpose() * start.factors.B).isIdentity(1e-5F));
  const auto expected = olora_factors(view_of(this->w), 4);
  EXPECT_LE((start.factors.A - expected.A).norm(), 1e-4F * expected.A.norm());
  const Matrix<float> product = start.factors.B * start.factors.A * static_cast<float>(config.scaling());
  const Matrix<double> rest = (this->w - product).template cast<double>();
  EXPECT_NEAR(start.error, error_of(this->w, start, config.scaling()), 1e-9);
  EXPECT_NEAR((values_of(start.weight) - rest).norm(), start.error, 1e-4);
}

TYPED_TEST(QuantizedStarts, ALayerMadeOfThemAnswersNearTheWholeWeight) {
  const auto config = this->config(8, 16);
  const auto x = random_matrix<float>(5, this->k, 7);
  for (auto& start :
       {loftq_factors<TypeParam>(view_of(this->w), config, 2), pissa_quantized<TypeParam>(view_of(this->w), config),
        olora_quantized<TypeParam>(view_of(this->w), config)}) {
    LoraLinear<float, QuantizedWeight<TypeParam>> layer(start.weight, config, 1);
    layer.set_factors(start.factors.A, start.factors.B);
    const Matrix<float> exact = x * this->w.transpose();
    EXPECT_LE(static_cast<double>((layer.infer(x) - exact).norm()),
              (start.error + 1e-4) * static_cast<double>(x.norm()));
  }
}

TYPED_TEST(QuantizedStarts, RefuseWhatCannotBeComputed) {
  const auto loftq = [&](const Matrix<float>& of, const LoraConfig& config, Index iterations) {
    static_cast<void>(loftq_factors<TypeParam>(view_of(of), config, iterations));
  };
  EXPECT_THROW(loftq(this->w, this->config(0, 1), 1), ConfigError);
  EXPECT_THROW(loftq(this->w, this->config(41, 1), 1), ConfigError);
  EXPECT_THROW(loftq(this->w, this->config(4, 0), 1), ConfigError);
  EXPECT_THROW(loftq(this->w, this->config(4, -1), 1), ConfigError);
  EXPECT_THROW(loftq(this->w, this->config(4, 4), 0), ConfigError);
  Matrix<float> bad = this->w;
  bad(3, 5) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(loftq(bad, this->config(4, 4), 1), ConfigError);
  EXPECT_THROW(static_cast<void>(pissa_quantized<TypeParam>(view_of(bad), this->config(4, 4))), ConfigError);
  EXPECT_THROW(static_cast<void>(olora_quantized<TypeParam>(view_of(bad), this->config(4, 4))), ConfigError);
  if (TypeParam::block_size > 1) {
    EXPECT_THROW(loftq(this->w.leftCols(50), this->config(4, 4), 1), ShapeError);
  }
}

}  // namespace
}  // namespace loftq_test
}  // namespace lora
