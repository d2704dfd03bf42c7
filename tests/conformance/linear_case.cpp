// SPDX-License-Identifier: MIT
// Linear layers: PEFT's lora.Linear over nn.Linear and over GPT-2's Conv1D.
#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/layers/linear.hpp"

namespace lora::conformance {
namespace linear_case {
namespace {

template <class Scalar>
LoraLinear<Scalar> make_layer(GoldenCase& golden, const LoraConfig& config) {
  const auto weight = golden.matrix<Scalar>("base.weight");
  if (!golden.contains("base.bias")) return {weight, config, 1};
  return {weight, RowVector<Scalar>(golden.matrix<Scalar>("base.bias")), config, 1};
}

template <class Scalar>
void check(GoldenCase& golden, Comparison& comparison) {
  const LoraConfig config = layer_config(golden.nested("lora"));
  auto shape = golden.nested("layer");
  auto layer = make_layer<Scalar>(golden, config);
  comparison.equal("in_features", layer.in_features(), shape.get<Index>("in_features"));
  comparison.equal("out_features", layer.out_features(), shape.get<Index>("out_features"));
  comparison.equal("bias", layer.has_bias(), shape.get<bool>("bias"));
  comparison.equal("fan_in_fan_out", config.fan_in_fan_out, shape.get<bool>("fan_in_fan_out", false));
  shape.finish();

  layer.set_factors(golden.matrix<Scalar>("param.lora_A.weight"), golden.matrix<Scalar>("param.lora_B.weight"));
  if (config.lora_bias) layer.set_lora_bias(golden.matrix<Scalar>("param.lora_B.bias"));
  if (config.use_dora) layer.set_magnitude(golden.matrix<Scalar>("param.lora_magnitude_vector.weight"));

  const auto x = golden.matrix<Scalar>("x");
  comparison.close<Scalar>("y", layer.forward(x), golden.matrix<Scalar>("y"));
  comparison.close<Scalar>("y of infer", layer.infer(x), golden.matrix<Scalar>("y"));
  const auto dy = golden.matrix<Scalar>("grad_y");
  const Matrix<Scalar> dx = layer.backward(dy);
  const double norms = static_cast<double>(dy.rowwise().norm().maxCoeff()) *
                       static_cast<double>(golden.matrix<Scalar>("merged_weight").norm());
  comparison.close<Scalar>("grad_x", dx, golden.matrix<Scalar>("grad_x"), Comparison::rounding_bound<Scalar>, norms);
  const auto& gradients = layer.gradients();
  comparison.close<Scalar>("grad.lora_A", gradients.A, golden.matrix<Scalar>("grad.lora_A.weight"));
  comparison.close<Scalar>("grad.lora_B", gradients.B, golden.matrix<Scalar>("grad.lora_B.weight"));
  if (config.lora_bias) {
    comparison.close<Scalar>("grad.lora_B.bias", gradients.lora_bias, golden.matrix<Scalar>("grad.lora_B.bias"));
  }
  if (config.use_dora) {
    comparison.close<Scalar>("grad.lora_magnitude_vector", gradients.magnitude,
                             golden.matrix<Scalar>("grad.lora_magnitude_vector.weight"));
  }

  comparison.close<Scalar>("delta", layer.delta_weight(), golden.matrix<Scalar>("delta"));
  layer.eval();
  comparison.close<Scalar>("merged_weight", layer.weight(), golden.matrix<Scalar>("merged_weight"));
  comparison.close<Scalar>("y_merged", layer.infer(x), golden.matrix<Scalar>("y_merged"));
  layer.train();
  comparison.equal("the unmerged weight, bit for bit", layer.weight() == golden.matrix<Scalar>("base.weight"), true);
}

}  // namespace
}  // namespace linear_case

void check_linear(GoldenCase& golden, Comparison& comparison) {
  with_scalar(golden, [&](auto zero) { linear_case::check<decltype(zero)>(golden, comparison); });
}

}  // namespace lora::conformance
