// SPDX-License-Identifier: MIT
// Twelve steps of training as PyTorch and PEFT made them, parameter by parameter.
#include <gtest/gtest.h>
#include <string>

#include "lora/optim/adamw.hpp"
#include "lora/optim/lora_plus.hpp"
#include "lora/optim/sgd.hpp"
#include "support/golden.hpp"

namespace {

using lora::Matrix;
using lora::Parameter;
using lora::ParameterRole;
using lora::testing::Golden;
using lora::testing::golden_path;
using nlohmann::json;

// The vectors' own statement of agreement in float64, relative to the norm of what is compared.
constexpr double golden_agreement = 1e-12;

constexpr int step_count = 12;

/// y = x W^T + b + s (x A^T) B^T with the mean squared error over all elements, in plain Eigen.
struct Regression {
  Matrix<double> x;       // N x k
  Matrix<double> target;  // N x d
  Matrix<double> base;    // N x d, x W^T + b, which no step changes
  double scale;
  lora::Trainable<double> a;  // r x k
  lora::Trainable<double> b;  // d x r

  explicit Regression(const Golden& golden)
      : x(golden.matrix("x")),
        target(golden.matrix("target")),
        base((x * golden.matrix("base.weight").transpose()).rowwise() + golden.matrix("base.bias").row(0)),
        scale(golden.description().at("lora").at("lora_alpha").get<double>() /
              golden.description().at("lora").at("r").get<double>()) {
    a.value = golden.matrix("step0.lora_A.weight");
    b.value = golden.matrix("step0.lora_B.weight");
  }

  /// Returns the loss and sets both gradients.
  double differentiate() {
    const Matrix<double> down = x * a.value.transpose();
    const Matrix<double> error = base + scale * down * b.value.transpose() - target;
    const Matrix<double> output_gradient = error * (2.0 / static_cast<double>(error.size()));
    b.gradient = scale * output_gradient.transpose() * down;
    a.gradient = scale * (output_gradient * b.value).transpose() * x;
    return error.squaredNorm() / static_cast<double>(error.size());
  }

  [[nodiscard]] std::vector<Parameter<double>> parameters() {
    return {a.parameter("lora_A.weight", ParameterRole::lora_A), b.parameter("lora_B.weight", ParameterRole::lora_B)};
  }
};

void expect_agreement(const Matrix<double>& ours, const Matrix<double>& theirs, const std::string& what) {
  ASSERT_EQ(ours.rows(), theirs.rows()) << what;
  ASSERT_EQ(ours.cols(), theirs.cols()) << what;
  EXPECT_LE((ours - theirs).norm(), golden_agreement * theirs.norm()) << what;
}

template <class Optimizer>
void replay(const Golden& golden, Optimizer optimizer, double lora_plus_ratio = 1.0) {
  Regression regression(golden);
  auto parameters = regression.parameters();
  lora::lora_plus(parameters, lora_plus_ratio);
  const Matrix<double> losses = golden.matrix("losses");
  ASSERT_EQ(losses.size(), step_count);
  for (int step = 1; step <= step_count; ++step) {
    EXPECT_NEAR(regression.differentiate(), losses(0, step - 1), golden_agreement * losses(0, step - 1)) << step;
    optimizer.step(parameters);
    const std::string prefix = "step" + std::to_string(step) + ".";
    expect_agreement(regression.a.value, golden.matrix(prefix + "lora_A.weight"), prefix + "lora_A");
    expect_agreement(regression.b.value, golden.matrix(prefix + "lora_B.weight"), prefix + "lora_B");
  }
}

lora::SGD<double> sgd_of(const json& options) {
  return lora::SGD<double>({.learning_rate = options.at("lr"),
                            .momentum = options.value("momentum", 0.0),
                            .weight_decay = options.value("weight_decay", 0.0)});
}

lora::AdamW<double> adamw_of(const json& options) {
  return lora::AdamW<double>({.learning_rate = options.at("lr"),
                              .beta1 = options.at("betas").at(0),
                              .beta2 = options.at("betas").at(1),
                              .epsilon = options.at("eps"),
                              .weight_decay = options.at("weight_decay")});
}

TEST(GoldenTraining, PlainSgd) {
  const Golden golden = Golden::load(golden_path("train_sgd"));
  replay(golden, sgd_of(golden.description().at("optimizer")));
}

TEST(GoldenTraining, SgdWithMomentumAndWeightDecay) {
  const Golden golden = Golden::load(golden_path("train_sgd_momentum"));
  replay(golden, sgd_of(golden.description().at("optimizer")));
}

TEST(GoldenTraining, AdamW) {
  const Golden golden = Golden::load(golden_path("train_adamw"));
  replay(golden, adamw_of(golden.description().at("optimizer")));
}

TEST(GoldenTraining, LoraPlusWithAdamW) {
  const Golden golden = Golden::load(golden_path("train_loraplus_adamw"));
  const json& options = golden.description().at("optimizer");
  replay(golden, adamw_of(options), options.at("loraplus_lr_ratio").get<double>());
}

}  // namespace
