// A tied embedding's gradients against central differences of a loss written down densely, in double.
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/embedding.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::random_vector;

constexpr Index v = 8, d = 5, r = 3;

// h = W_eff[ids]; L = sum of g (.) tanh(tanh(h) W_eff^T), W_eff = (W + s A^T B^T) diag(m / n) with n constant.
struct TiedModel {
  Matrix<double> table = random_matrix<double>(v, d, 1);
  Matrix<double> a = random_matrix<double>(r, v, 2);
  Matrix<double> b = random_matrix<double>(d, r, 3);
  RowVector<double> m = random_vector<double>(d, 4).array() + 1.5;
  RowVector<double> n;
  double scaling = 0.5;
  std::vector<int> ids = {3, 0, 7, 3, 3, 5};
  Matrix<double> g = random_matrix<double>(6, v, 6);

  [[nodiscard]] Matrix<double> adapted() const { return table + scaling * a.transpose() * b.transpose(); }
  [[nodiscard]] double loss() const {
    const Matrix<double> effective = adapted() * (m.array() / n.array()).matrix().asDiagonal();
    Matrix<double> h(6, d);
    for (Index i = 0; i < 6; ++i) h.row(i) = effective.row(ids[static_cast<std::size_t>(i)]);
    const Matrix<double> logits = h.array().tanh().matrix() * effective.transpose();
    return g.cwiseProduct(logits.array().tanh().matrix()).sum();
  }

  // (L(t + h) - L(t - h)) / 2h has an error of order h^2 + epsilon / h, least near h = epsilon^(1/3).
  template <class Target>
  void expect_central_differences(Target& target, const Matrix<double>& gradient) const {
    constexpr double h = 6e-6;
    const double size = gradient.cwiseAbs().maxCoeff();
    ASSERT_GT(size, 1e-3);
    for (Index i = 0; i < target.rows(); ++i) {
      for (Index j = 0; j < target.cols(); ++j) {
        const double kept = target(i, j);
        target(i, j) = kept + h;
        const double above = loss();
        target(i, j) = kept - h;
        const double below = loss();
        target(i, j) = kept;
        EXPECT_NEAR(gradient(i, j), (above - below) / (2 * h), 1e-6 * size) << i << ", " << j;
      }
    }
  }
};

class EmbeddingGradient : public ::testing::TestWithParam<bool> {};

TEST_P(EmbeddingGradient, OfBothUsesTogetherAgreesWithCentralDifferences) {
  const bool dora = GetParam();
  TiedModel model;
  model.n = model.adapted().colwise().norm();
  if (!dora) model.m = model.n;
  LoraEmbedding<double> layer(model.table, {.rank = r, .alpha = 1.5, .use_dora = dora}, 1);
  layer.set_factors(model.a, model.b);
  if (dora) layer.set_magnitude(model.m);

  const Matrix<double> hidden = layer.forward(model.ids).array().tanh();
  const Matrix<double> logits = layer.project_forward(hidden);
  EXPECT_NEAR(model.g.cwiseProduct(logits.array().tanh().matrix()).sum(), model.loss(), 1e-13);
  const Matrix<double> dhidden =
      layer.project_backward(Matrix<double>(model.g.array() * (1.0 - logits.array().tanh().square())));
  layer.backward(Matrix<double>(dhidden.array() * (1.0 - hidden.array().square())));

  model.expect_central_differences(model.a, layer.gradients().A);
  model.expect_central_differences(model.b, layer.gradients().B);
  if (dora) model.expect_central_differences(model.m, layer.gradients().magnitude);
}

INSTANTIATE_TEST_SUITE_P(Kinds, EmbeddingGradient, ::testing::Bool(),
                         [](const auto& tested) { return std::string(tested.param ? "Dora" : "Plain"); });

}  // namespace
}  // namespace lora
