// MergedLinear against the numbers loralib computed, through the public interface.
#include <algorithm>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/merged_linear.hpp"
#include "support/golden.hpp"

namespace lora {
namespace {

using testing::Golden;

// Relative to the largest element: both sides round sums of up to 18 products of numbers of that size.
void expect_close(const Matrix<double>& ours, const Matrix<double>& theirs, const std::string& what) {
  ASSERT_EQ(ours.rows(), theirs.rows()) << what;
  ASSERT_EQ(ours.cols(), theirs.cols()) << what;
  EXPECT_LE((ours - theirs).cwiseAbs().maxCoeff(), 1e-12 * std::max(1.0, theirs.cwiseAbs().maxCoeff())) << what;
}

class MergedLinearGolden : public ::testing::TestWithParam<int> {};

TEST_P(MergedLinearGolden, AgreesWithLoralib) {
  const auto golden = Golden::load(testing::golden_path("merged_linear_" + std::to_string(GetParam())));
  const auto& lora = golden.description().at("lora");
  const RowVector<double> bias = golden.matrix("base.bias");
  MergedLinear<double> layer(
      golden.matrix("base.weight"), bias, lora.at("enable_lora").get<std::vector<bool>>(),
      {.rank = lora.at("r"), .alpha = lora.at("lora_alpha"), .fan_in_fan_out = lora.at("fan_in_fan_out")}, 1);
  layer.set_factors(golden.matrix("param.lora_A"), golden.matrix("param.lora_B"));
  const auto x = golden.matrix("x");
  expect_close(layer.infer(x), golden.matrix("y"), "y of infer");
  expect_close(layer.forward(x), golden.matrix("y"), "y");
  expect_close(layer.backward(golden.matrix("grad_y")), golden.matrix("grad_x"), "grad_x");
  expect_close(layer.gradients().A, golden.matrix("grad.lora_A"), "grad A");
  expect_close(layer.gradients().B, golden.matrix("grad.lora_B"), "grad B");
  layer.eval();
  expect_close(layer.weight(), golden.matrix("merged_weight"), "merged_weight");
  expect_close(layer.infer(x), golden.matrix("y_merged"), "y_merged");
}

INSTANTIATE_TEST_SUITE_P(Cases, MergedLinearGolden, ::testing::Values(0, 1, 2, 3));

}  // namespace
}  // namespace lora
