// Hand-written gradients of a convolution against central differences of a scalar loss, in double.
#include <cmath>
#include <gtest/gtest.h>
#include <string>

#include "lora/layers/conv.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;

struct Setting {
  const char* name;
  double dropout;
  bool lora_bias;
  ConvGeometry<2> geometry;
};

class ConvGradient : public ::testing::TestWithParam<Setting> {
 protected:
  static constexpr ImageExtents<2> extents{5, 4};

  ConvGradient()
      : layer(random_matrix<double>(geometry().out_channels, geometry().fan_in(), 1),
              random_vector<double>(geometry().out_channels, 2), geometry(),
              {.rank = 2,
               .alpha = 3,
               .dropout = GetParam().dropout,
               .lora_bias = GetParam().lora_bias,
               .bias = BiasMode::lora_only,
               .init_lora_weights = InitLoraWeights::random},
              3) {}

  static const ConvGeometry<2>& geometry() { return GetParam().geometry; }

  // The loss sum of g * tanh(y), with the same dropout mask at every call.
  double value() const {
    ConvRecord<double, 2> record;
    record.position = {5, 0};
    Workspace workspace;
    Matrix<double> y(g.rows(), g.cols());
    layer.forward(x, extents, record, y, workspace);
    return g.cwiseProduct(y.array().tanh().matrix()).sum();
  }

  // (L(v + h) - L(v - h)) / 2h has an error of order h^2 + epsilon / h, least near h = epsilon^(1/3).
  template <class Target>
  void expect_central_differences(Target&& target, const Matrix<double>& gradient) const {
    constexpr double h = 6e-6;
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
  }

  LoraConv2d<double> layer;
  Matrix<double> x = random_matrix<double>(2, geometry().in_channels * 20, 5);
  Matrix<double> g =
      random_matrix<double>(2, detail::saturated_product(geometry().out_channels, layer.output_extents(extents)), 90);
};

TEST_P(ConvGradient, AgreesWithCentralDifferences) {
  ConvRecord<double, 2> record;
  record.position = {5, 0};
  Workspace workspace;
  Matrix<double> y(g.rows(), g.cols());
  Matrix<double> dx(x.rows(), x.cols());
  layer.forward(x, extents, record, y, workspace);
  auto gradients = layer.make_gradients();
  const Matrix<double> dy = (g.array() * (1.0 - y.array().tanh().square())).matrix();
  layer.backward(x, record, dy, gradients, dx, workspace);
  std::size_t checked = 0;
  for (const auto& parameter : layer.parameters()) {
    SCOPED_TRACE(parameter.name());
    ++checked;
    if (parameter.role() == ParameterRole::lora_A) expect_central_differences(parameter.value(), gradients.A);
    if (parameter.role() == ParameterRole::lora_B) expect_central_differences(parameter.value(), gradients.B);
    if (parameter.role() == ParameterRole::bias) expect_central_differences(parameter.value(), gradients.bias);
    if (parameter.role() == ParameterRole::lora_bias) {
      expect_central_differences(parameter.value(), gradients.lora_bias);
    }
  }
  EXPECT_EQ(checked, GetParam().lora_bias ? 4U : 3U);
  SCOPED_TRACE("x");
  expect_central_differences(x, dx);
}

INSTANTIATE_TEST_SUITE_P(
    Options, ConvGradient,
    ::testing::Values(
        Setting{"Plain", 0.0, true, {.in_channels = 2, .out_channels = 3, .kernel = {3, 2}, .padding = {1, 1}}},
        Setting{"StridedDilated",
                0.0,
                false,
                {.in_channels = 2, .out_channels = 3, .kernel = {2, 2}, .stride = {2, 1}, .dilation = {2, 3}}},
        Setting{"GroupsAndDropout",
                0.4,
                true,
                {.in_channels = 4, .out_channels = 2, .kernel = {2, 3}, .padding = {0, 1}, .groups = 2}},
        Setting{"OneTap", 0.3, false, {.in_channels = 3, .out_channels = 4}}),
    [](const auto& tested) { return std::string(tested.param.name); });

// With DoRA the norms are constants of the backward pass, so differences agree for what does not move them: x, the
// magnitude and the bias.
TEST(ConvGradientOfDora, AgreesWithCentralDifferencesOfWhatDoesNotMoveTheNorms) {
  constexpr ImageExtents<1> extents{9};
  LoraConv1d<double> layer(random_matrix<double>(3, 6, 1), random_vector<double>(3, 2),
                           {.in_channels = 2, .out_channels = 3, .kernel = {3}, .padding = {1}},
                           {.rank = 2,
                            .dropout = 0.3,
                            .use_dora = true,
                            .bias = BiasMode::all,
                            .init_lora_weights = InitLoraWeights::random},
                           3);
  auto x = random_matrix<double>(2, 18, 4);
  const auto g = random_matrix<double>(2, 27, 5);
  ConvRecord<double, 1> record;
  Workspace workspace;
  Matrix<double> y(2, 27), dx(2, 18);
  const auto value = [&] {
    layer.forward(x, extents, record, y, workspace);
    return g.cwiseProduct(y).sum();
  };
  value();
  auto gradients = layer.make_gradients();
  layer.backward(x, record, g, gradients, dx, workspace);
  const auto check = [&](auto&& target, const auto& gradient) {  // y is linear in each of them: no error of order h^2
    for (Index i = 0; i < target.rows(); ++i) {
      for (Index j = 0; j < target.cols(); ++j) {
        const double kept = target(i, j);
        target(i, j) = kept + 0.5;
        const double above = value();
        target(i, j) = kept - 0.5;
        EXPECT_NEAR(gradient(i, j), above - value(), 1e-12 * gradient.cwiseAbs().maxCoeff());
        target(i, j) = kept;
      }
    }
  };
  check(x, dx);
  auto parameters = layer.parameters();
  check(parameters[2].value(), gradients.magnitude);
  check(parameters[3].value(), gradients.bias);
}

}  // namespace
}  // namespace lora
