// SPDX-License-Identifier: MIT
// Training runs: the loss and the parameters after every step.
#include <string>

#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/layers/linear.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/lora_plus.hpp"
#include "lora/optim/sgd.hpp"

namespace lora::conformance {
namespace training_case {
namespace {

template <class Scalar>
void compare_parameters(GoldenCase& golden, Comparison& comparison, const LoraLinear<Scalar>& layer, Index step) {
  const std::string prefix = "step" + std::to_string(step) + ".";
  const auto close = [&](const std::string& name, const Matrix<Scalar>& ours) {
    comparison.close<Scalar>(prefix + name, ours, golden.matrix<Scalar>(prefix + name + ".weight"));
  };
  close("lora_A", layer.lora_A());
  close("lora_B", layer.lora_B());
  if (layer.config().use_dora) close("lora_magnitude_vector", layer.magnitude());
}

template <class Scalar, class Optimizer>
void train(GoldenCase& golden, Comparison& comparison, Optimizer optimizer, double lora_plus_ratio) {
  const LoraConfig config = layer_config(golden.nested("lora"));
  const RowVector<Scalar> bias = golden.matrix<Scalar>("base.bias");
  LoraLinear<Scalar> layer(golden.matrix<Scalar>("base.weight"), bias, config, 1);
  layer.set_factors(golden.matrix<Scalar>("step0.lora_A.weight"), golden.matrix<Scalar>("step0.lora_B.weight"));
  if (config.use_dora) layer.set_magnitude(golden.matrix<Scalar>("step0.lora_magnitude_vector.weight"));

  lora_plus(layer, lora_plus_ratio);

  const auto x = golden.matrix<Scalar>("x");
  const auto target = golden.matrix<Scalar>("target");
  const auto losses = golden.matrix<Scalar>("losses");
  Matrix<Scalar> ours(1, losses.size());
  for (Index step = 0; step < losses.size(); ++step) {
    const Matrix<Scalar> difference = layer.forward(x) - target;
    const auto count = static_cast<Scalar>(difference.size());
    ours(0, step) = difference.squaredNorm() / count;
    layer.accumulate_gradients(difference * (2 / count));
    optimizer.step(layer);
    layer.zero_grad();
    compare_parameters(golden, comparison, layer, step + 1);
  }
  comparison.close<Scalar>("losses", ours, losses);
}

template <class Scalar>
void check(GoldenCase& golden, Comparison& comparison) {
  if (golden.options().get<std::string>("loss") != "mean squared error over all elements") {
    throw UnknownCase("unknown loss");
  }
  auto options = golden.nested("optimizer");
  const auto name = options.get<std::string>("name");
  const auto rate = options.get<double>("lr");
  if (name == "sgd") {
    const SGD<Scalar> optimizer({.learning_rate = rate,
                                 .momentum = options.get<double>("momentum", 0.0),
                                 .weight_decay = options.get<double>("weight_decay", 0.0)});
    options.finish();
    return train<Scalar>(golden, comparison, optimizer, 1.0);
  }
  if (name != "adamw" && name != "loraplus adamw") throw UnknownCase("unknown optimizer " + name);
  const auto betas = options.get<std::vector<double>>("betas", {0.9, 0.999});
  const AdamW<Scalar> optimizer({.learning_rate = rate,
                                 .beta1 = betas.at(0),
                                 .beta2 = betas.at(1),
                                 .epsilon = options.get<double>("eps", 1e-8),
                                 .weight_decay = options.get<double>("weight_decay", 0.01)});
  const auto ratio = options.get<double>("loraplus_lr_ratio", 1.0);
  options.finish();
  train<Scalar>(golden, comparison, optimizer, ratio);
}

}  // namespace
}  // namespace training_case

void check_training(GoldenCase& golden, Comparison& comparison) {
  with_scalar(golden, [&](auto zero) { training_case::check<decltype(zero)>(golden, comparison); });
}

}  // namespace lora::conformance
