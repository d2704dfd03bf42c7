// SPDX-License-Identifier: MIT
// A policy for the pendulum of rl_tools, trained by rl_tools, meets other dynamics: its motor is wired the other way
// round and the rod is heavier. Adapters correct it; its own weights stay. adapt_policy() is the whole program.
//
// Include this after rl_tools' headers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "common/checks.hpp"
#include "rl-tools/mlp_lora.hpp"

namespace hosts::pendulum {

namespace rlt = RL_TOOLS_NAMESPACE_WRAPPER ::rl_tools;

using Device = rlt::devices::DEVICE_FACTORY<rlt::devices::DefaultCPUSpecification>;
using Count = Device::index_t;
using Policies = rlt::numeric_types::Policy<float>;
using Random = Device::SPEC::RANDOM::ENGINE<>;
using Matrix = lora::Matrix<float>;

inline constexpr Count batch = 64, observations = 3, hidden = 64;
using Shape = rlt::tensor::Shape<Count, 1, batch, observations>;
using Config = rlt::nn_models::mlp::Configuration<Policies, Count, 1, 3, hidden, rlt::nn::activation_functions::TANH,
                                                  rlt::nn::activation_functions::TANH>;
using Trained =
    rlt::nn_models::mlp::NeuralNetwork<Config, rlt::nn::capability::Gradient<rlt::nn::parameters::Adam>, Shape>;
using Frozen = rlt::nn_models::mlp::NeuralNetwork<Config, rlt::nn::capability::Backward<>, Shape>;
using Optimizer = rlt::nn::optimizers::Adam<rlt::nn::optimizers::adam::Specification<Policies, Count>>;
template <Count rows, Count cols>
using RlMatrix = rlt::Matrix<rlt::matrix::Specification<float, Count, rows, cols, false>>;

struct HeavyRod : rlt::rl::environments::pendulum::DefaultParameters<float> {
  static constexpr float m = 1.2F;
};
template <class Parameters>
using World = rlt::rl::environments::Pendulum<rlt::rl::environments::pendulum::Specification<float, Count, Parameters>>;
using Known = World<rlt::rl::environments::pendulum::DefaultParameters<float>>;
using Changed = World<HeavyRod>;
using State =
    rlt::rl::environments::pendulum::StateMultiTask<rlt::rl::environments::pendulum::StateSpecification<float, Count>>;

/// A controller that knows its world: it brings the energy to that of standing upright, and balances there.
template <class Environment>
float expert(float angle, float speed, bool inverted) {
  using P = typename Environment::Parameters;
  const float gravity = 3 * P::g / (2 * P::l), gain = 3 / (P::m * P::l * P::l) * P::max_torque;
  const float missing = gravity * (1 - std::cos(angle)) - speed * speed / 2;
  const bool near = std::abs(angle) < 0.5F && std::abs(speed) < 3;
  const float action = near ? -((gravity + 16) * std::sin(angle) + 8 * speed) / gain : 0.6F * missing * speed;
  return std::clamp(inverted ? -action : action, -1.0F, 1.0F);
}

/// Angles and speeds all over, more of them near upright, and what the expert does there.
template <class Environment>
struct Lesson {
  Matrix seen{batch, observations}, wanted{batch, 1};

  Lesson(bool inverted, std::uint64_t seed) {
    Matrix draws(batch, 3);
    lora::fill_uniform(lora::view_of(draws), 1.0, lora::RandomStream(seed, 0));
    for (lora::Index i = 0; i < draws.rows(); ++i) {
      const bool near = draws(i, 2) > 0.2F;
      const float angle = draws(i, 0) * (near ? 0.6F : std::numbers::pi_v<float>);
      const float speed = draws(i, 1) * (near ? 3.0F : 8.0F);
      seen.row(i) << std::cos(angle), std::sin(angle), speed;
      wanted(i, 0) = expert<Environment>(angle, speed, inverted);
    }
  }
};

template <Count rows, Count cols>
RlMatrix<rows, cols> rl_matrix(const Matrix& values) {
  RlMatrix<rows, cols> copy;
  for (Count i = 0; i < rows; ++i) {
    for (Count j = 0; j < cols; ++j) {
      set(copy, i, j, values(static_cast<lora::Index>(i), static_cast<lora::Index>(j)));
    }
  }
  return copy;
}

/// rl_tools' own training of all weights on what the expert does in the known world.
inline float train(Device& device, Trained& policy, Random& random) {
  Optimizer optimizer;
  typename Trained::template Buffer<> buffers;
  rlt::malloc(device, optimizer);
  rlt::malloc(device, buffers);
  rlt::init(device, optimizer);
  rlt::init_weights(device, policy, random);
  rlt::reset_optimizer_state(device, optimizer, policy);
  float error = 0;
  for (std::uint64_t step = 0; step < 4000; ++step) {
    const Lesson<Known> lesson(false, step);
    auto seen = rl_matrix<batch, observations>(lesson.seen);
    auto wanted = rl_matrix<batch, 1>(lesson.wanted);
    RlMatrix<batch, 1> d_output;
    rlt::zero_gradient(device, policy);
    rlt::forward(device, policy, seen, buffers, random);
    rlt::nn::loss_functions::mse::gradient(device, policy.output_layer.output, wanted, d_output, 1.0F);
    error = rlt::nn::loss_functions::mse::evaluate(device, policy.output_layer.output, wanted, 1.0F);
    rlt::backward(device, policy, seen, d_output, buffers);
    rlt::step(device, optimizer, policy);
  }
  rlt::free(device, buffers);
  rlt::free(device, optimizer);
  return error;
}

/// The mean return of rl_tools' own policy and environment over episodes from drawn states.
template <class Environment>
float mean_return(Device& device, const Frozen& policy, bool inverted, Random& random) {
  constexpr int episodes = 40;
  Environment world;
  typename Environment::Parameters parameters;
  typename Frozen::template Buffer<> buffers;
  rlt::malloc(device, buffers);
  float total = 0;
  for (int episode = 0; episode < episodes; ++episode) {
    State state{}, next{};
    rlt::sample_initial_state(device, world, parameters, static_cast<typename Environment::State&>(state), random);
    state.invert_action = inverted;
    for (Count step = 0; step < Environment::EPISODE_STEP_LIMIT; ++step) {
      RlMatrix<1, observations> seen;
      RlMatrix<1, 1> action;
      rlt::observe(device, world, parameters, static_cast<typename Environment::State&>(state),
                   typename Environment::Observation{}, seen, random);
      rlt::evaluate(device, policy, seen, action, buffers, random);
      rlt::step(device, world, parameters, state, action, next, random);
      total += rlt::reward(device, world, parameters, static_cast<typename Environment::State&>(state), action,
                           static_cast<typename Environment::State&>(next), random);
      state = next;
    }
  }
  rlt::free(device, buffers);
  return total / episodes;
}

template <class Network>
std::vector<float> weights_of(Network& network) {
  std::vector<float> all;
  const auto append = [&](auto& layer) {
    const float* const w = rlt::data(layer.weights.parameters);
    all.insert(all.end(), w, w + layer.OUTPUT_DIM * layer.INPUT_DIM);
  };
  append(network.input_layer);
  for (auto& layer : network.hidden_layers) append(layer);
  append(network.output_layer);
  return all;
}

inline double difference(const Matrix& a, const Matrix& b) {
  return static_cast<double>((a - b).cwiseAbs().maxCoeff() / b.cwiseAbs().maxCoeff());
}

inline Matrix evaluated(Device& device, const Frozen& policy, const Matrix& seen, Random& random) {
  typename Frozen::template Buffer<> buffers;
  rlt::malloc(device, buffers);
  const auto input = rl_matrix<batch, observations>(seen);
  RlMatrix<batch, 1> output;
  rlt::evaluate(device, policy, input, output, buffers, random);
  rlt::free(device, buffers);
  Matrix copy(batch, 1);
  for (Count i = 0; i < batch; ++i) copy(static_cast<lora::Index>(i), 0) = get(output, i, 0);
  return copy;
}

/// dX by rl_tools for the pre-activations that are in the network.
inline Matrix input_gradient(Device& device, Frozen& policy, const Matrix& d_outputs) {
  typename Frozen::template Buffer<> buffers;
  rlt::malloc(device, buffers);
  auto d_output = rl_matrix<batch, 1>(d_outputs);
  RlMatrix<batch, observations> d_input;
  rlt::backward_input(device, policy, d_output, d_input, buffers);
  rlt::free(device, buffers);
  Matrix copy(batch, observations);
  for (Count i = 0; i < batch; ++i) {
    for (Count j = 0; j < observations; ++j) {
      copy(static_cast<lora::Index>(i), static_cast<lora::Index>(j)) = get(d_input, i, j);
    }
  }
  return copy;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Prints what it measures and checks; returns the number of checks that failed.
inline int adapt_policy() {
  Checks check;
  Device device;
  Random random;
  rlt::malloc(device, random);
  rlt::init(device, random, 1);
  Trained trained;
  Frozen policy;
  rlt::malloc(device, trained);
  rlt::malloc(device, policy);
  const float error = train(device, trained, random);
  rlt::copy(device, device, trained, policy);
  const std::vector<float> original = weights_of(policy);

  // Sums of at most 64 terms in another order, in three layers each way, through functions of slope 1 at most.
  const double tolerance = 64 * 6 * static_cast<double>(std::numeric_limits<float>::epsilon());
  MlpLora<Device::SPEC::MATH, Frozen> adapted(policy, {.rank = 4, .alpha = 8}, /*seed=*/3);
  const Lesson<Changed> probe(true, 1U << 20U);
  check.at_most(difference(adapted.forward(probe.seen), evaluated(device, policy, probe.seen, random)), tolerance,
                "outputs with B = 0 against rl_tools::evaluate, relative");
  const Matrix d_outputs = Matrix::Ones(batch, 1);
  check.at_most(difference(adapted.backward(d_outputs), input_gradient(device, policy, d_outputs)), tolerance,
                "dX with B = 0 against rl_tools::backward_input, relative");

  const float known = mean_return<Known>(device, policy, false, random);
  const float before = mean_return<Changed>(device, policy, true, random);
  lora::AdamW<float> optimizer({.learning_rate = 5e-3, .weight_decay = 0});
  constexpr std::uint64_t steps = 2000;
  float adapted_error = 0;
  for (std::uint64_t step = 0; step < steps; ++step) {
    const Lesson<Changed> lesson(true, (1U << 21U) + step);
    const Matrix difference = adapted.forward(lesson.seen) - lesson.wanted;
    adapted_error = difference.squaredNorm() / static_cast<float>(batch);
    adapted.backward(difference * (2 / static_cast<float>(batch)));
    optimizer.set_learning_rate(5e-3 * (1 - static_cast<double>(step) / steps));
    adapted.update(optimizer);
  }
  check(same_bits(weights_of(policy), original), "training wrote to none of the policy's weights");

  const Matrix unmerged = adapted.forward(probe.seen);
  adapted.merge();
  check.at_most(difference(unmerged, evaluated(device, policy, probe.seen, random)), tolerance,
                "rl_tools::evaluate on the merged weights against the adapted policy, relative");
  const float after = mean_return<Changed>(device, policy, true, random);
  adapted.unmerge();
  check(same_bits(weights_of(policy), original), "unmerging restored every bit of the policy's weights");
  check(after - before > 0.8F * (known - before), "most of what the change of dynamics cost is regained");

  std::printf("\nTrained %td of %zu weights; mean squared error of the action: base %.4f, adapted %.4f\n",
              adapted.trainable_parameter_count(), original.size(), static_cast<double>(error),
              static_cast<double>(adapted_error));
  std::printf(
      "\n| mean return, 40 episodes | |\n|---|---:|\n| policy in its own world | %.0f |\n"
      "| policy in the changed world | %.0f |\n| with adapters merged | %.0f |\n\n",
      static_cast<double>(known), static_cast<double>(before), static_cast<double>(after));
  rlt::free(device, policy);
  rlt::free(device, trained);
  return check.failures();
}

}  // namespace hosts::pendulum
