// LoraLinear against the numbers PEFT computed, through the public interface.
#include <algorithm>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/linear.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/lora_plus.hpp"
#include "lora/optim/sgd.hpp"
#include "support/golden.hpp"

namespace lora {
namespace {

using testing::Golden;

std::vector<std::string> cases_named(const std::string& prefix) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(LORA_GOLDEN_DIR)) {
    const std::string name = entry.path().stem().string();
    if (name.starts_with(prefix) && entry.path().extension() == ".safetensors") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> linear_cases() {
  auto names = cases_named("linear");
  const auto transposed = cases_named("conv1d_gpt2");
  names.insert(names.end(), transposed.begin(), transposed.end());
  return names;
}

LoraConfig config_of(const nlohmann::json& lora) {
  return {.rank = lora.at("r"),
          .alpha = lora.at("lora_alpha"),
          .dropout = lora.value("lora_dropout", 0.0),
          .fan_in_fan_out = lora.value("fan_in_fan_out", false),
          .use_rslora = lora.value("use_rslora", false),
          .use_dora = lora.value("use_dora", false),
          .lora_bias = lora.value("lora_bias", false)};
}

// Relative to the largest element: both sides round sums of up to 64 products of numbers of that size.
template <class Scalar>
void expect_close(const Matrix<Scalar>& ours, const Matrix<Scalar>& theirs, const std::string& what) {
  ASSERT_EQ(ours.rows(), theirs.rows()) << what;
  ASSERT_EQ(ours.cols(), theirs.cols()) << what;
  const Scalar tolerance = std::is_same_v<Scalar, double> ? Scalar(1e-12) : Scalar(1e-5);
  EXPECT_LE((ours - theirs).cwiseAbs().maxCoeff(), tolerance * std::max(Scalar(1), theirs.cwiseAbs().maxCoeff()))
      << what;
}

template <class Scalar>
LoraLinear<Scalar> layer_of(const Golden& golden, const LoraConfig& config, const std::string& factors) {
  const auto weight = golden.matrix<Scalar>("base.weight");
  const bool with_bias = golden.contains("base.bias");
  auto layer = with_bias ? LoraLinear<Scalar>(weight, RowVector<Scalar>(golden.matrix<Scalar>("base.bias")), config, 1)
                         : LoraLinear<Scalar>(weight, config, 1);
  layer.set_factors(golden.matrix<Scalar>(factors + "lora_A.weight"), golden.matrix<Scalar>(factors + "lora_B.weight"));
  if (config.lora_bias) layer.set_lora_bias(golden.matrix<Scalar>(factors + "lora_B.bias"));
  if (config.use_dora) layer.set_magnitude(golden.matrix<Scalar>(factors + "lora_magnitude_vector.weight"));
  return layer;
}

template <class Scalar>
void check_linear_case(const Golden& golden) {
  const auto config = config_of(golden.description().at("lora"));
  auto layer = layer_of<Scalar>(golden, config, "param.");
  const auto x = golden.matrix<Scalar>("x");
  const Matrix<Scalar> y = layer.forward(x);
  const Matrix<Scalar> dx = layer.backward(golden.matrix<Scalar>("grad_y"));
  expect_close<Scalar>(y, golden.matrix<Scalar>("y"), "y");
  expect_close<Scalar>(dx, golden.matrix<Scalar>("grad_x"), "grad_x");
  expect_close<Scalar>(layer.gradients().A, golden.matrix<Scalar>("grad.lora_A.weight"), "grad A");
  expect_close<Scalar>(layer.gradients().B, golden.matrix<Scalar>("grad.lora_B.weight"), "grad B");
  if (config.lora_bias) {
    expect_close<Scalar>(layer.gradients().lora_bias, golden.matrix<Scalar>("grad.lora_B.bias"), "grad lora_bias");
  }
  if (config.use_dora) {
    expect_close<Scalar>(layer.gradients().magnitude, golden.matrix<Scalar>("grad.lora_magnitude_vector.weight"),
                         "grad magnitude");
  }
  expect_close<Scalar>(layer.delta_weight(), golden.matrix<Scalar>("delta"), "delta");
  layer.eval();
  expect_close<Scalar>(layer.weight(), golden.matrix<Scalar>("merged_weight"), "merged_weight");
  expect_close<Scalar>(layer.infer(x), golden.matrix<Scalar>("y_merged"), "y_merged");
}

class LinearGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(LinearGolden, AgreesWithPeft) {
  const auto golden = Golden::load(testing::golden_path(GetParam()));
  if (golden.description().at("dtype") == "float64") {
    check_linear_case<double>(golden);
  } else {
    check_linear_case<float>(golden);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, LinearGolden, ::testing::ValuesIn(linear_cases()),
                         [](const auto& tested) { return tested.param; });

TEST(LinearGolden, EveryCaseIsThere) { EXPECT_EQ(linear_cases().size(), 42U); }

template <class Optimizer>
void check_training(const Golden& golden, Optimizer optimizer, double lora_plus_ratio) {
  const auto config = config_of(golden.description().at("lora"));
  auto layer = layer_of<double>(golden, config, "step0.");
  const auto x = golden.matrix<double>("x");
  const auto target = golden.matrix<double>("target");
  const auto losses = golden.matrix<double>("losses");
  for (Index step = 1; step <= losses.size(); ++step) {
    const Matrix<double> difference = layer.forward(x) - target;
    const auto count = static_cast<double>(difference.size());
    EXPECT_NEAR(difference.squaredNorm() / count, losses(0, step - 1), 1e-12 * std::max(1.0, losses(0, 0)));
    layer.accumulate_gradients(difference * (2.0 / count));
    auto parameters = layer.parameters();
    if (lora_plus_ratio != 1.0) lora_plus(parameters, lora_plus_ratio);
    optimizer.step(parameters);
    layer.zero_grad();
    const std::string prefix = "step" + std::to_string(step) + ".";
    expect_close<double>(layer.lora_A(), golden.matrix<double>(prefix + "lora_A.weight"), prefix + "A");
    expect_close<double>(layer.lora_B(), golden.matrix<double>(prefix + "lora_B.weight"), prefix + "B");
    if (config.use_dora) {
      expect_close<double>(layer.magnitude(), golden.matrix<double>(prefix + "lora_magnitude_vector.weight"),
                           prefix + "magnitude");
    }
  }
}

class TrainingGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(TrainingGolden, EveryStepAgreesWithPeft) {
  const auto golden = Golden::load(testing::golden_path(GetParam()));
  const auto& options = golden.description().at("optimizer");
  const double rate = options.at("lr");
  if (options.at("name") == "sgd") {
    check_training(golden,
                   SGD<double>({.learning_rate = rate,
                                .momentum = options.value("momentum", 0.0),
                                .weight_decay = options.value("weight_decay", 0.0)}),
                   1.0);
  } else {
    check_training(golden,
                   AdamW<double>({.learning_rate = rate,
                                  .beta1 = options.at("betas").at(0),
                                  .beta2 = options.at("betas").at(1),
                                  .epsilon = options.at("eps"),
                                  .weight_decay = options.at("weight_decay")}),
                   options.value("loraplus_lr_ratio", 1.0));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TrainingGolden, ::testing::ValuesIn(cases_named("train_")),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace lora
