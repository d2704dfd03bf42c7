// The gradients of a layer of several projections against central differences of a scalar loss, in double.
#include <gtest/gtest.h>
#include <string>

#include "lora/layers/merged_linear.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;

constexpr Index n = 4, d = 9, k = 7, r = 2;

struct Setting {
  const char* name;
  double dropout;
  bool fan_in_fan_out;
};

class MergedLinearGradient : public ::testing::TestWithParam<Setting> {
 protected:
  MergedLinearGradient()
      : layer(GetParam().fan_in_fan_out ? random_matrix<double>(k, d, 1) : random_matrix<double>(d, k, 1),
              random_vector<double>(d, 2), {true, false, true},
              {.rank = r,
               .alpha = 3,
               .dropout = GetParam().dropout,
               .fan_in_fan_out = GetParam().fan_in_fan_out,
               .bias = BiasMode::all,
               .init_lora_weights = InitLoraWeights::random},
              3) {}

  // L = sum over (i, j) of g(i, j) * tanh(y(i, j)), with the same dropout mask at every call.
  double value() const {
    LoraRecord<double> record;
    record.position = {5, 0};
    Workspace workspace;
    Matrix<double> y(n, d);
    layer.forward(x, record, y, workspace);
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

  MergedLinear<double> layer;
  Matrix<double> x = random_matrix<double>(n, k, 5);
  Matrix<double> g = random_matrix<double>(n, d, 90);
};

TEST_P(MergedLinearGradient, AgreesWithCentralDifferences) {
  LoraRecord<double> record;
  record.position = {5, 0};
  Workspace workspace;
  Matrix<double> y(n, d);
  Matrix<double> dx(n, k);
  layer.forward(x, record, y, workspace);
  const Matrix<double> dy = (g.array() * (1.0 - y.array().tanh().square())).matrix();
  auto gradients = layer.make_gradients();
  layer.backward(x, record, dy, gradients, dx, workspace);
  auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), 3U);
  expect_central_differences(parameters[0].value(), gradients.A);
  expect_central_differences(parameters[1].value(), gradients.B);
  expect_central_differences(parameters[2].value(), gradients.bias);
  expect_central_differences(x, dx);
}

INSTANTIATE_TEST_SUITE_P(Options, MergedLinearGradient,
                         ::testing::Values(Setting{"Plain", 0.0, false}, Setting{"Transposed", 0.0, true},
                                           Setting{"Dropout", 0.4, false}),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace lora
