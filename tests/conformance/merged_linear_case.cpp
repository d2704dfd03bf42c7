// SPDX-License-Identifier: MIT
// Stacked projections: loralib's MergedLinear.
#include <vector>

#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/layers/merged_linear.hpp"

namespace lora::conformance {
namespace merged_linear_case {
namespace {

template <class Scalar>
void check(GoldenCase& golden, Comparison& comparison) {
  auto options = golden.nested("lora");
  const auto enable_lora = options.get<std::vector<bool>>("enable_lora");
  LoraConfig config;
  config.rank = options.get<Index>("r");
  config.alpha = options.get<double>("lora_alpha");
  config.fan_in_fan_out = options.get<bool>("fan_in_fan_out", false);
  options.finish();

  const auto weight = golden.matrix<Scalar>("base.weight");
  const bool has_bias = golden.contains("base.bias");
  auto layer = has_bias ? MergedLinear<Scalar>(weight, RowVector<Scalar>(golden.matrix<Scalar>("base.bias")),
                                               enable_lora, config, 1)
                        : MergedLinear<Scalar>(weight, enable_lora, config, 1);
  auto shape = golden.nested("layer");
  comparison.equal("in_features", layer.in_features(), shape.get<Index>("in_features"));
  comparison.equal("out_features", layer.out_features(), shape.get<Index>("out_features"));
  comparison.equal("bias", has_bias, shape.get<bool>("bias"));
  shape.finish();

  layer.set_factors(golden.matrix<Scalar>("param.lora_A"), golden.matrix<Scalar>("param.lora_B"));
  const auto x = golden.matrix<Scalar>("x");
  comparison.close<Scalar>("y", layer.forward(x), golden.matrix<Scalar>("y"));
  comparison.close<Scalar>("y of infer", layer.infer(x), golden.matrix<Scalar>("y"));
  const Matrix<Scalar> dx = layer.backward(golden.matrix<Scalar>("grad_y"));
  comparison.close<Scalar>("grad_x", dx, golden.matrix<Scalar>("grad_x"));
  comparison.close<Scalar>("grad.lora_A", layer.gradients().A, golden.matrix<Scalar>("grad.lora_A"));
  comparison.close<Scalar>("grad.lora_B", layer.gradients().B, golden.matrix<Scalar>("grad.lora_B"));
  if (golden.contains("delta")) {
    comparison.close<Scalar>("delta", layer.delta_weight(), golden.matrix<Scalar>("delta"));
  }
  layer.eval();
  comparison.close<Scalar>("merged_weight", layer.weight(), golden.matrix<Scalar>("merged_weight"));
  comparison.close<Scalar>("y_merged", layer.infer(x), golden.matrix<Scalar>("y_merged"));
  layer.train();
  comparison.equal("the unmerged weight, bit for bit", layer.weight() == weight, true);
}

}  // namespace
}  // namespace merged_linear_case

void check_merged_linear(GoldenCase& golden, Comparison& comparison) {
  with_scalar(golden, [&](auto zero) { merged_linear_case::check<decltype(zero)>(golden, comparison); });
}

}  // namespace lora::conformance
