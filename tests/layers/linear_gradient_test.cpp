// Hand-written gradients against central differences of a scalar loss, in double.
#include <cmath>
#include <gtest/gtest.h>

#include "lora/layers/linear.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;

constexpr Index n = 4, d = 5, k = 7, r = 3;

// L = sum over (i, j) of g(i, j) * tanh(y(i, j)), whose gradient with respect to y is g * (1 - tanh^2 y).
struct Loss {
  Matrix<double> g = random_matrix<double>(n, d, 90);
  [[nodiscard]] double value(const Matrix<double>& y) const { return g.cwiseProduct(y.array().tanh().matrix()).sum(); }
  [[nodiscard]] Matrix<double> gradient(const Matrix<double>& y) const {
    return (g.array() * (1.0 - y.array().tanh().square())).matrix();
  }
};

struct Setting {
  const char* name;
  double dropout;
  bool fan_in_fan_out;
  bool rslora;
};

class LinearGradient : public ::testing::TestWithParam<Setting> {
 protected:
  LinearGradient()
      : layer(GetParam().fan_in_fan_out ? random_matrix<double>(k, d, 1) : random_matrix<double>(d, k, 1),
              random_vector<double>(d, 2),
              {.rank = r,
               .alpha = 2,
               .dropout = GetParam().dropout,
               .fan_in_fan_out = GetParam().fan_in_fan_out,
               .use_rslora = GetParam().rslora,
               .lora_bias = true,
               .bias = BiasMode::lora_only,
               .init_lora_weights = InitLoraWeights::random},
              3) {
    layer.set_lora_bias(random_vector<double>(d, 4));
  }

  // The loss with the same dropout mask at every call.
  double value() const {
    LoraRecord<double> record;
    record.position = {5, 0};
    Workspace workspace;
    Matrix<double> y(n, d);
    layer.forward(x, record, y, workspace);
    return loss.value(y);
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

  LoraLinear<double> layer;
  Matrix<double> x = random_matrix<double>(n, k, 5);
  Loss loss;
};

TEST_P(LinearGradient, AgreesWithCentralDifferences) {
  LoraRecord<double> record;
  record.position = {5, 0};
  Workspace workspace;
  Matrix<double> y(n, d);
  Matrix<double> dx(n, k);
  layer.forward(x, record, y, workspace);
  auto gradients = layer.make_gradients();
  layer.backward(x, record, loss.gradient(y), gradients, dx, workspace);
  for (const auto& parameter : layer.parameters()) {
    SCOPED_TRACE(parameter.name());
    switch (parameter.role()) {
      case ParameterRole::lora_A:
        expect_central_differences(parameter.value(), gradients.A);
        break;
      case ParameterRole::lora_B:
        expect_central_differences(parameter.value(), gradients.B);
        break;
      case ParameterRole::lora_bias:
        expect_central_differences(parameter.value(), gradients.lora_bias);
        break;
      case ParameterRole::bias:
        expect_central_differences(parameter.value(), gradients.bias);
        break;
      default:
        FAIL() << "unexpected parameter";
    }
  }
  SCOPED_TRACE("x");
  expect_central_differences(x, dx);
}

INSTANTIATE_TEST_SUITE_P(Options, LinearGradient,
                         ::testing::Values(Setting{"Plain", 0.0, false, false}, Setting{"Transposed", 0.0, true, false},
                                           Setting{"RankStabilised", 0.0, false, true},
                                           Setting{"Dropout", 0.4, false, false},
                                           Setting{"TransposedDropout", 0.4, true, true}),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace lora
