// SPDX-License-Identifier: MIT
// Adapters of an MLP as rl_tools has them, over a stand-in for what examples/hosts/rl-tools uses of it.
#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <vector>

#include "lora/core/random.hpp"
#include "lora/core/types.hpp"
#include "support/bits.hpp"

#define RL_TOOLS_NAMESPACE_WRAPPER

namespace rl_tools {

enum class StandInFunction { identity, tanh };
struct StandInMath {};

struct StandInArray {
  std::vector<float> values;
};
struct StandInParameter {
  StandInArray parameters;
};
inline float* data(StandInArray& array) { return array.values.data(); }

template <class Math, class T, StandInFunction function>
T activation(T x) {
  return function == StandInFunction::tanh ? std::tanh(x) : x;
}
template <class Math, class T, StandInFunction function>
T d_activation_d_x(T x) {
  return function == StandInFunction::tanh ? 1 - std::tanh(x) * std::tanh(x) : 1;
}

/// A dense layer with the capability Backward: weights, and room for the pre-activations of a batch, in padded rows.
template <lora::Index batch, lora::Index inputs, lora::Index outputs, StandInFunction function>
struct StandInDense {
  struct SPEC {
    static constexpr StandInFunction ACTIVATION_FUNCTION = function;
  };
  static constexpr lora::Index INPUT_DIM = inputs, OUTPUT_DIM = outputs;
  struct Sums {
    struct SPEC {
      static constexpr lora::Index ROW_PITCH = outputs + 3, COL_PITCH = 1;
    };
    float* _data;
  };

  explicit StandInDense(std::uint64_t seed)
      : memory(static_cast<std::size_t>(batch * Sums::SPEC::ROW_PITCH)), pre_activations{memory.data()} {
    weights.parameters.values.resize(static_cast<std::size_t>(inputs * outputs));
    biases.parameters.values.resize(static_cast<std::size_t>(outputs));
    lora::fill_uniform(weight(), 0.8, lora::RandomStream(seed, 0));
    lora::fill_uniform(lora::MatrixView<float>{biases.parameters.values.data(), 1, outputs}, 0.8,
                       lora::RandomStream(seed, 1));
  }

  StandInDense(const StandInDense&) = delete;
  StandInDense& operator=(const StandInDense&) = delete;

  [[nodiscard]] lora::MatrixView<float> weight() { return {weights.parameters.values.data(), outputs, inputs}; }
  /// Of a batch, with this layer's weights as they are.
  [[nodiscard]] Eigen::MatrixXd evaluate(const Eigen::MatrixXd& x) {
    const Eigen::VectorXd bias = Eigen::Map<Eigen::VectorXf>(biases.parameters.values.data(), outputs).cast<double>();
    const Eigen::MatrixXd sums = (x * weight().map().template cast<double>().transpose()).rowwise() + bias.transpose();
    return sums.unaryExpr([](double sum) { return activation<StandInMath, double, function>(sum); });
  }

  StandInParameter weights, biases;
  std::vector<float> memory;
  Sums pre_activations;
};

}  // namespace rl_tools

#include "rl-tools/mlp_lora.hpp"

namespace lora::testing::rl_tools_test {
namespace {

using rl_tools::StandInDense;
using rl_tools::StandInFunction;

struct Network {
  struct SPEC {
    static constexpr Index INTERNAL_BATCH_SIZE = 5;
  };
  StandInDense<5, 3, 6, StandInFunction::tanh> input_layer{1};
  std::array<StandInDense<5, 6, 6, StandInFunction::tanh>, 1> hidden_layers{
      StandInDense<5, 6, 6, StandInFunction::tanh>{2}};
  StandInDense<5, 6, 2, StandInFunction::identity> output_layer{3};

  Network() = default;
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  [[nodiscard]] Eigen::MatrixXd evaluate(const Eigen::MatrixXd& x) {
    return output_layer.evaluate(hidden_layers[0].evaluate(input_layer.evaluate(x)));
  }
  [[nodiscard]] std::vector<float> weights() {
    std::vector<float> all = input_layer.weights.parameters.values;
    for (const auto* more : {&hidden_layers[0].weights, &output_layer.weights}) {
      all.insert(all.end(), more->parameters.values.begin(), more->parameters.values.end());
    }
    return all;
  }
};

using Adapted = hosts::MlpLora<rl_tools::StandInMath, Network>;

Matrix<float> random(Index rows, Index cols, std::uint64_t seed) {
  Matrix<float> values(rows, cols);
  fill_uniform(view_of(values), 1.0, RandomStream(seed, 0));
  return values;
}

/// Half the mean squared error against twice the network's own answer, before each step.
std::vector<float> train(Adapted& adapted, const Matrix<float>& x, const Matrix<float>& targets, int steps) {
  AdamW<float> optimizer({.learning_rate = 2e-2, .weight_decay = 0});
  std::vector<float> errors;
  for (int step = 0; step < steps; ++step) {
    const Matrix<float> error = adapted.forward(x) - targets;
    errors.push_back(error.squaredNorm());
    adapted.backward(error);
    adapted.update(optimizer);
  }
  return errors;
}

double difference(const Matrix<float>& a, const Eigen::MatrixXd& b) {
  return (a.cast<double>() - b).cwiseAbs().maxCoeff();
}

TEST(MlpLora, OutputsAreTheNetworksWhileBIsZero) {
  Network network;
  Adapted adapted(network, {.rank = 2, .alpha = 4}, 7);
  const Matrix<float> x = random(5, 3, 4);
  EXPECT_LT(difference(adapted.forward(x), network.evaluate(x.cast<double>())), 1e-6);
  EXPECT_EQ(adapted.trainable_parameter_count(), 2 * (3 + 6) + 2 * (6 + 6) + 2 * (6 + 2));
}

TEST(MlpLora, PreActivationsAreWrittenWhereTheNetworkHasThem) {
  Network network;
  Adapted adapted(network, {.rank = 2, .alpha = 4}, 7);
  const Matrix<float> outputs = adapted.forward(random(5, 3, 4));
  const auto& sums = network.output_layer.pre_activations;  // identity follows
  for (Index i = 0; i < 5; ++i) {
    for (Index j = 0; j < 2; ++j) EXPECT_EQ(sums._data[i * 5 + j], outputs(i, j));
    for (Index j = 2; j < 5; ++j) EXPECT_EQ(sums._data[i * 5 + j], 0.0F) << "the padding stays";
  }
}

TEST(MlpLora, TrainsAndMergesIntoTheNetworksWeights) {
  Network network;
  const std::vector<float> original = network.weights();
  Adapted adapted(network, {.rank = 2, .alpha = 4}, 7);
  const Matrix<float> x = random(5, 3, 4);
  const Matrix<float> targets = 2 * network.evaluate(x.cast<double>()).cast<float>();
  const auto errors = train(adapted, x, targets, 100);
  EXPECT_LT(errors.back(), errors.front() / 10);
  EXPECT_EQ(network.weights(), original);

  const Matrix<float> unmerged = adapted.forward(x);
  adapted.merge();
  EXPECT_NE(network.weights(), original);
  EXPECT_LT(difference(unmerged, network.evaluate(x.cast<double>())), 1e-5);
  adapted.unmerge();
  const auto restored = network.weights();
  for (std::size_t i = 0; i < original.size(); ++i) EXPECT_EQ(bits_of(restored[i]), bits_of(original[i])) << i;
}

// Central differences in double through the merged network: they err by some 1e-9, and the weights that float keeps of
// the merged sums by 6e-8 each, as the gradient's own sums do; three layers of six terms stay below 2e-5.
TEST(MlpLora, TheGradientOfItsInputsIsThatOfFiniteDifferences) {
  Network network;
  Adapted adapted(network, {.rank = 2, .alpha = 4}, 7);
  Matrix<float> x = random(5, 3, 4);
  static_cast<void>(train(adapted, x, random(5, 2, 5), 30));
  const Matrix<float> direction = random(5, 2, 6);
  static_cast<void>(adapted.forward(x));
  const Matrix<float> gradient = adapted.backward(direction);
  adapted.merge();
  constexpr double step = 1e-5;
  for (Index i = 0; i < x.size(); ++i) {
    const auto loss = [&](double change) {
      Eigen::MatrixXd moved = x.cast<double>();
      moved(i / 3, i % 3) += change;
      return network.evaluate(moved).cwiseProduct(direction.cast<double>()).sum();
    };
    EXPECT_NEAR(gradient(i / 3, i % 3), (loss(step) - loss(-step)) / (2 * step), 2e-5) << i;
  }
  EXPECT_GT(gradient.cwiseAbs().maxCoeff(), 0.1F);
}

}  // namespace
}  // namespace lora::testing::rl_tools_test
