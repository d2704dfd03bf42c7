// Hand-written gradients of two active adapters against central differences of a scalar loss, in double.
#include <gtest/gtest.h>

#include "layers/multi_linear_kinds.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_config;
using testing::random_matrix;
using testing::random_vector;

constexpr Index n = 4, d = 5, k = 7;

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
  double dropout_a;
  double dropout_b;
};

class MultiLinearGradient : public ::testing::TestWithParam<Setting> {
 protected:
  MultiLinearGradient() : layer(random_matrix<double>(d, k, 1), random_vector<double>(d, 2)) {
    LoraConfig a = random_config(3, GetParam().dropout_a);
    a.lora_bias = true;
    LoraConfig b = random_config(2, GetParam().dropout_b);
    b.bias = BiasMode::all;
    layer.add_adapter("a", a, 1);
    layer.add_adapter("idle", random_config(4), 2);
    layer.add_adapter("b", b, 3);
    layer.set_scale("b", -0.7);
    layer.set_lora_bias("a", random_vector<double>(d, 4));
    layer.set_adapters({"b", "a"});
  }

  // The loss with the same dropout masks at every call.
  double value() const {
    MultiLoraRecord<double> record;
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
        EXPECT_NEAR(gradient(i, j), (above - below) / (2 * h), 1e-8 * scale) << i << ", " << j;
      }
    }
  }

  MultiLoraLinear<double> layer;
  Matrix<double> x = random_matrix<double>(n, k, 5);
  Loss loss;
};

TEST_P(MultiLinearGradient, OfEveryParameterAndOfXAgreesWithCentralDifferences) {
  MultiLoraRecord<double> record;
  record.position = {5, 0};
  Workspace workspace;
  Matrix<double> y(n, d);
  Matrix<double> dx(n, k);
  layer.forward(x, record, y, workspace);
  auto gradients = layer.make_gradients();
  layer.backward(x, record, loss.gradient(y), gradients, dx, workspace);
  const auto& b = gradients.adapters[0];
  const auto& a = gradients.adapters[1];
  const std::vector<Matrix<double>> expected = {b.A, b.B, b.bias, a.A, a.B, a.lora_bias};
  const auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), expected.size());
  for (std::size_t p = 0; p < expected.size(); ++p) {
    SCOPED_TRACE(parameters[p].name());
    expect_central_differences(parameters[p].value(), expected[p]);
  }
  SCOPED_TRACE("x");
  expect_central_differences(x, dx);
}

TEST_P(MultiLinearGradient, AccumulateAndDoNotNeedDx) {
  MultiLoraRecord<double> record;
  Workspace workspace;
  Matrix<double> y(n, d);
  layer.forward(x, record, y, workspace);
  auto once = layer.make_gradients();
  layer.backward(x, record, y, once, workspace);
  auto twice = layer.make_gradients();
  Matrix<double> dx(n, k);
  layer.backward(x, record, y, twice, dx, workspace);
  layer.backward(x, record, y, twice, workspace);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(twice.adapters[i].A.isApprox(2 * once.adapters[i].A, 1e-15));
    EXPECT_TRUE(twice.adapters[i].B.isApprox(2 * once.adapters[i].B, 1e-15));
  }
  EXPECT_TRUE(twice.adapters[0].bias.isApprox(2 * once.adapters[0].bias, 1e-15));
  EXPECT_TRUE(twice.adapters[1].lora_bias.isApprox(2 * once.adapters[1].lora_bias, 1e-15));
}

INSTANTIATE_TEST_SUITE_P(Options, MultiLinearGradient,
                         ::testing::Values(Setting{"Plain", 0.0, 0.0}, Setting{"BothDrop", 0.4, 0.3},
                                           Setting{"OneDrops", 0.0, 0.4}),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace lora
