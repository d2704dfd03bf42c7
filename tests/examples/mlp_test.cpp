// SPDX-License-Identifier: MIT
// The network's hand-written backward pass against finite differences of its loss, over both kinds of layer.
#include "common/mlp.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <utility>
#include <vector>

#include "common/softmax_loss.hpp"
#include "lora/core/random.hpp"
#include "lora/layers/linear.hpp"

namespace mlp_test {
namespace {

using examples::DenseLayer;
using examples::Mlp;
using examples::Pass;
using lora::Index;
using MatrixD = lora::Matrix<double>;

const std::vector<Index> widths = {7, 6, 5, 3};

Mlp<DenseLayer<double>> dense_network() { return examples::random_mlp<double>(widths, 11); }

/// B starts random, else the gradient of A would be zero.
Mlp<lora::LoraLinear<double>> lora_network() {
  std::vector<lora::LoraLinear<double>> layers;
  const auto base = dense_network();
  for (const auto& layer : base.layers()) {
    const lora::LoraConfig config{.rank = 2, .alpha = 3, .init_lora_weights = lora::InitLoraWeights::random};
    layers.emplace_back(layer.weight(), layer.bias(), config, 5 + layers.size());
  }
  return Mlp<lora::LoraLinear<double>>(std::move(layers));
}

struct Problem {
  MatrixD x{9, 7};
  std::vector<std::uint8_t> labels = {0, 1, 2, 0, 1, 2, 2, 1, 0};
  Problem() { lora::fill_uniform(lora::view_of(x), 1.0, lora::RandomStream(3, 0)); }
};

template <class Layer>
double loss_of(const Mlp<Layer>& network, const Problem& problem) {
  Pass<Layer> pass;
  MatrixD gradient(problem.x.rows(), widths.back());
  return examples::softmax_cross_entropy(network.infer(problem.x, pass), problem.labels, gradient);
}

template <class Layer>
void compute_gradients(Mlp<Layer>& network, const Problem& problem) {
  Pass<Layer> pass;
  network.zero_grad();
  const auto& logits = network.forward(problem.x, pass);
  static_cast<void>(examples::softmax_cross_entropy(logits, problem.labels, network.logits_gradient(pass)));
  network.backward(problem.x, pass);
}

template <class Layer>
void expect_gradients_of_finite_differences(Mlp<Layer> network) {
  const Problem problem;
  compute_gradients(network, problem);
  const double step = std::cbrt(std::numeric_limits<double>::epsilon());  // balances truncation and rounding
  for (const auto& parameter : network.parameters()) {
    const MatrixD gradient = parameter.gradient();
    MatrixD numeric(gradient.rows(), gradient.cols());
    for (Index i = 0; i < gradient.size(); ++i) {
      double& value = parameter.value().data()[i];
      const double kept = value;
      value = kept + step;
      const double above = loss_of(network, problem);
      value = kept - step;
      numeric.data()[i] = (above - loss_of(network, problem)) / (2 * step);
      value = kept;
    }
    EXPECT_GT(gradient.norm(), 0.0) << parameter.name();
    EXPECT_LE((gradient - numeric).norm(), 1e-6 * gradient.norm()) << parameter.name();
  }
}

TEST(Mlp, HasTheGradientsOfFiniteDifferencesWithDenseLayers) {
  expect_gradients_of_finite_differences(dense_network());
}
TEST(Mlp, HasTheGradientsOfFiniteDifferencesWithLoraLayers) { expect_gradients_of_finite_differences(lora_network()); }

TEST(Mlp, AppliesReluBetweenLayersAndNotAfterTheLast) {
  auto network = dense_network();
  const Problem problem;
  Pass<DenseLayer<double>> pass;
  const MatrixD logits = network.infer(problem.x, pass);
  MatrixD expected = problem.x;
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    const auto& layer = network.layers()[l];
    expected = ((expected * layer.weight().transpose()).rowwise() + layer.bias()).eval();
    if (l + 1 < network.layers().size()) expected = expected.cwiseMax(0.0).eval();
  }
  EXPECT_LT(logits.minCoeff(), 0.0);
  // Three layers, each a sum of at most 8 terms of order 1.
  EXPECT_LE((logits - expected).cwiseAbs().maxCoeff(), 3 * 8 * std::numeric_limits<double>::epsilon());
}

TEST(Mlp, NamesItsParametersByLayer) {
  auto dense = dense_network();
  EXPECT_EQ(dense.parameters().front().name(), "fc1.weight");
  EXPECT_EQ(dense.parameters().back().name(), "fc3.bias");
  auto adapted = lora_network();
  EXPECT_EQ(adapted.parameters().front().name(), "fc1.lora_A.weight");
  EXPECT_EQ(adapted.parameters().size(), 6U);
}

TEST(Mlp, GradientsDoNotAccumulateOverBatches) {
  const Problem problem;
  const auto check = [&](auto network) {
    compute_gradients(network, problem);
    const MatrixD once = network.parameters().front().gradient();
    compute_gradients(network, problem);
    EXPECT_EQ(once, MatrixD(network.parameters().front().gradient()));
  };
  check(dense_network());
  check(lora_network());
}

TEST(Mlp, LoraLayersStartAsTheirBase) {
  const Problem problem;
  std::vector<lora::LoraLinear<double>> layers;
  const auto base = dense_network();
  for (const auto& layer : base.layers()) {
    layers.emplace_back(layer.weight(), layer.bias(), lora::LoraConfig{.rank = 4}, 1);
  }
  EXPECT_DOUBLE_EQ(loss_of(Mlp<lora::LoraLinear<double>>(std::move(layers)), problem),
                   loss_of(dense_network(), problem));
}

TEST(LogitsOf, AnswersEveryImageInOrderWhateverTheChunks) {
  examples::ImageSet set{1, 2, {}, {}};
  for (int i = 0; i < 1203; ++i) {
    set.pixels.push_back(static_cast<std::uint8_t>(i % 251));
    set.pixels.push_back(static_cast<std::uint8_t>(i % 13));
    set.labels.push_back(0);
  }
  const auto network = examples::random_mlp<float>({2, 3, 2}, 1);
  const auto all = examples::logits_of(network, set);
  EXPECT_EQ(all.rows(), 1203);
  EXPECT_EQ(lora::Matrix<float>(all.middleRows(1100, 50)), examples::logits_of(network, set.slice(1100, 50)));
}

}  // namespace
}  // namespace mlp_test
