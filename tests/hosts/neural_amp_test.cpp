// SPDX-License-Identifier: MIT
// Adapters of an LSTM as NeuralAmpModelerCore has them: their gradients against finite differences, and changing them
// while the model plays.
#include <atomic>
#include <cmath>
#include <cstddef>
#include <gtest/gtest.h>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "lora/core/random.hpp"
#include "neural_amp/live_adapters.hpp"
#include "neural_amp/lstm_training.hpp"
#include "support/allocation_counter.hpp"
#include "support/bits.hpp"

namespace lora::testing::neural_amp_test {
namespace {

using MatrixD = Eigen::MatrixXd;

template <class Target>
Target random(Index rows, Index cols, std::uint64_t seed) {
  Matrix<float> values(rows, cols);
  fill_uniform(view_of(values), 0.8, RandomStream(seed, 0));
  return values;
}

/// Two cells of three units, one channel.
nam::lstm::LSTM small_model() {
  nam::lstm::LSTM model;
  model._layers.emplace_back(random<Eigen::MatrixXf>(12, 4, 1), random<Eigen::MatrixXf>(12, 1, 2));
  model._layers.emplace_back(random<Eigen::MatrixXf>(12, 6, 3), random<Eigen::MatrixXf>(12, 1, 4));
  model._head_weight = random<Eigen::MatrixXf>(1, 3, 5);
  model._head_bias = random<Eigen::MatrixXf>(1, 1, 6);
  return model;
}

std::vector<Eigen::MatrixXf> weights_of(nam::lstm::LSTM& model) {
  std::vector<Eigen::MatrixXf> weights;
  for (auto& cell : model._layers) weights.push_back(hosts::nam_access::weight_of(cell));
  return weights;
}

void expect_same(const std::vector<Eigen::MatrixXf>& now, const std::vector<Eigen::MatrixXf>& original) {
  for (std::size_t l = 0; l < original.size(); ++l) EXPECT_TRUE(same_bits(now[l], original[l])) << "cell " << l;
}

void set_random_factors(hosts::LstmTraining& training) {
  std::uint64_t seed = 20;
  for (auto& layer : training.layers()) {
    layer.set_factors(random<Matrix<float>>(layer.rank(), layer.in_features(), seed),
                      random<Matrix<float>>(layer.out_features(), layer.rank(), seed + 1));
    seed += 2;
  }
}

Matrix<float> played(nam::lstm::LSTM model, const Matrix<float>& signal) {
  Matrix<float> outputs(1, signal.cols());
  for (Index t = 0; t < signal.cols(); ++t) outputs(0, t) = model.process(signal(0, t));
  return outputs;
}

/// The weighted sum of the outputs in double, by the formulas of an LSTM, with weights W0 + s B A.
double loss(nam::lstm::LSTM& model, const std::vector<MatrixD>& weights, const Matrix<float>& signals,
            const Matrix<float>& direction) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  double sum = 0;
  for (Index row = 0; row < signals.rows(); ++row) {
    std::vector<Eigen::VectorXd> output(2, Eigen::VectorXd::Zero(3)), memory = output;
    for (Index t = 0; t < signals.cols(); ++t) {
      Eigen::VectorXd input = Eigen::VectorXd::Constant(1, static_cast<double>(signals(row, t)));
      for (std::size_t l = 0; l < 2; ++l) {
        Eigen::VectorXd inputs(input.size() + 3);
        inputs << input, output[l];
        const Eigen::VectorXd z =
            weights[l] * inputs + hosts::nam_access::bias_of(model._layers[l]).template cast<double>();
        for (Index h = 0; h < 3; ++h) {
          memory[l](h) = sigmoid(z(3 + h)) * memory[l](h) + sigmoid(z(h)) * std::tanh(z(6 + h));
          output[l](h) = sigmoid(z(9 + h)) * std::tanh(memory[l](h));
        }
        input = output[l];
      }
      const double y = (model._head_weight.cast<double>() * input + model._head_bias.cast<double>())(0);
      sum += y * static_cast<double>(direction(row, t));
    }
  }
  return sum;
}

TEST(LstmTraining, OutputsAreThoseOfTheModelWithTheAdaptersAdded) {
  nam::lstm::LSTM model = small_model();
  const auto original = weights_of(model);
  const Matrix<float> signal = random<Matrix<float>>(1, 9, 7);
  hosts::LstmTraining training(model, {.rank = 2, .alpha = 4}, 11);
  EXPECT_TRUE(training.forward(signal).isApprox(played(model, signal), 1e-6F));
  set_random_factors(training);
  const Matrix<float> adapted = training.forward(signal);
  EXPECT_FALSE(adapted.isApprox(played(model, signal), 1e-2F));
  nam::lstm::LSTM sum = model;
  for (std::size_t l = 0; l < 2; ++l) {
    const auto& layer = training.layers()[l];
    hosts::nam_access::weight_of(sum._layers[l]) += layer.scaling() * layer.lora_B() * layer.lora_A();
  }
  EXPECT_TRUE(adapted.isApprox(played(sum, signal), 1e-5F));
  expect_same(weights_of(model), original);
}

// Central differences in double of step h err by h^2 and by the rounding of the loss over h, some 1e-9; the rest is
// what float leaves after 6 samples of two cells.
TEST(LstmTraining, GradientsAreThoseOfFiniteDifferences) {
  nam::lstm::LSTM model = small_model();
  hosts::LstmTraining training(model, {.rank = 2, .alpha = 4}, 11);
  set_random_factors(training);
  const Matrix<float> signals = random<Matrix<float>>(3, 6, 8), direction = random<Matrix<float>>(3, 6, 9);
  static_cast<void>(training.forward(signals));
  training.backward(direction);

  const auto factors = [&](std::size_t l, int which) -> MatrixD {
    const auto& layer = training.layers()[l];
    if (which == 0) return layer.lora_A().template cast<double>();
    return layer.lora_B().template cast<double>();
  };
  const double scale = 2;  // alpha / rank
  const auto loss_with = [&](std::size_t changed, int which, Index element, double change) {
    std::vector<MatrixD> weights;
    for (std::size_t l = 0; l < 2; ++l) {
      MatrixD a = factors(l, 0), b = factors(l, 1);
      if (l == changed) (which == 0 ? a : b).data()[element] += change;
      weights.push_back(hosts::nam_access::weight_of(model._layers[l]).template cast<double>() + scale * b * a);
    }
    return loss(model, weights, signals, direction);
  };
  constexpr double step = 1e-5;
  for (std::size_t l = 0; l < 2; ++l) {
    for (const int which : {0, 1}) {
      const auto gradients = training.layers()[l].gradients();
      const MatrixD gradient =
          which == 0 ? MatrixD(gradients.A.template cast<double>()) : MatrixD(gradients.B.template cast<double>());
      for (Index i = 0; i < gradient.size(); ++i) {
        const double expected = (loss_with(l, which, i, step) - loss_with(l, which, i, -step)) / (2 * step);
        EXPECT_NEAR(gradient.data()[i], expected, 2e-5) << "cell " << l << (which == 0 ? " A " : " B ") << i;
      }
      EXPECT_GT(gradient.cwiseAbs().maxCoeff(), 0.01);
    }
  }
}

TEST(LstmTraining, ReducesTheError) {
  nam::lstm::LSTM model = small_model();
  hosts::LstmTraining training(model, {.rank = 2, .alpha = 4}, 11);
  const Matrix<float> signals = random<Matrix<float>>(4, 12, 8);
  const Matrix<float> targets = 0.3F * signals;
  AdamW<float> optimizer({.learning_rate = 2e-2, .weight_decay = 0});
  const float before = training.train(signals, targets, optimizer);
  float after = before;
  for (int step = 0; step < 60; ++step) after = training.train(signals, targets, optimizer);
  EXPECT_LT(after, before / 2);
}

TEST(LstmTraining, AModelOfSeveralChannelsIsRefused) {
  nam::lstm::LSTM model = small_model();
  model.channels = 2;
  EXPECT_THROW(hosts::LstmTraining(model, {.rank = 2}, 11), ShapeError);
}

TEST(LiveAdapters, AreTakenBetweenBlocksWithoutAllocation) {
  nam::lstm::LSTM model = small_model();
  const Matrix<float> signal = random<Matrix<float>>(1, 9, 7);
  const Matrix<float> own = played(model, signal);
  const auto original = weights_of(model);
  hosts::LstmTraining training(model, {.rank = 2, .alpha = 4}, 11);
  set_random_factors(training);
  const Matrix<float> adapted = training.forward(signal);

  hosts::LiveAdapters live(model);
  live.add("loud", training.layers());
  EXPECT_FALSE(live.between_blocks());
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(live.select("loud"));
    EXPECT_FALSE(live.select(std::nullopt)) << "the last offer is not taken yet";
    EXPECT_TRUE(played(model, signal).isApprox(own, 1e-6F)) << "an offer changes nothing";
    EXPECT_EQ(allocations_of([&] { EXPECT_TRUE(live.between_blocks()); }), 0);
    EXPECT_FALSE(live.between_blocks());
    EXPECT_TRUE(played(model, signal).isApprox(adapted, 1e-5F));

    ASSERT_TRUE(live.select(std::nullopt));
    EXPECT_TRUE(live.between_blocks());
    EXPECT_TRUE(played(model, signal).isApprox(own, 1e-6F));
  }
  expect_same(weights_of(model), original);
}

TEST(LiveAdapters, ChangeWhileAnotherThreadPlays) {
  nam::lstm::LSTM model = small_model();
  const auto original = weights_of(model);
  hosts::LstmTraining training(model, {.rank = 2, .alpha = 4}, 11);
  set_random_factors(training);
  hosts::LiveAdapters live(model);
  live.add("loud", training.layers());
  std::atomic<bool> stop{false};
  int taken = 0;
  std::thread audio([&] {
    while (!stop.load()) {
      if (live.between_blocks()) ++taken;
      for (int sample = 0; sample < 8; ++sample) static_cast<void>(model.process(0.1F));
    }
    if (live.between_blocks()) ++taken;
  });
  constexpr int changes = 40;  // an even number: the last one selects the model's own weights
  for (int change = 0; change < changes; ++change) {
    const auto name = change % 2 == 0 ? std::optional<std::string_view>("loud") : std::nullopt;
    while (!live.select(name)) std::this_thread::yield();
  }
  stop.store(true);
  audio.join();
  EXPECT_EQ(taken, changes);
  expect_same(weights_of(model), original);
}

}  // namespace
}  // namespace lora::testing::neural_amp_test
