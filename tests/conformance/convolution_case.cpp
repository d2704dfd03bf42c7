// SPDX-License-Identifier: MIT
// Convolutions of one, two and three dimensions: PEFT's lora.Conv1d, Conv2d and Conv3d.
#include <algorithm>
#include <string>

#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/layers/conv.hpp"

namespace lora::conformance {
namespace convolution_case {
namespace {

// A number for all dimensions, or one for each.
template <int Dim>
ImageExtents<Dim> extents(Options& options, const std::string& key) {
  const nlohmann::json& option = options.at(key);
  ImageExtents<Dim> result;
  for (std::size_t d = 0; d < result.size(); ++d) {
    result[d] = option.is_array() ? option.at(d).get<Index>() : option.get<Index>();
  }
  return result;
}

template <int Dim>
ConvGeometry<Dim> geometry(Options shape) {
  ConvGeometry<Dim> result;
  result.in_channels = shape.get<Index>("in_channels");
  result.out_channels = shape.get<Index>("out_channels");
  result.kernel = extents<Dim>(shape, "kernel_size");
  result.stride = extents<Dim>(shape, "stride");
  result.padding = extents<Dim>(shape, "padding");
  result.dilation = extents<Dim>(shape, "dilation");
  result.groups = shape.get<Index>("groups");
  shape.ignore("bias");
  shape.finish();
  return result;
}

template <class Scalar, int Dim>
LoraConv<Scalar, Dim> make_layer(GoldenCase& golden, const LoraConfig& config) {
  const auto weight = golden.matrix<Scalar>("base.weight");
  const auto shape = geometry<Dim>(golden.nested("layer"));
  if (!golden.contains("base.bias")) return {weight, shape, config, 1};
  return {weight, RowVector<Scalar>(golden.matrix<Scalar>("base.bias")), shape, config, 1};
}

template <class Scalar>
Matrix<Scalar> column(const Matrix<Scalar>& magnitude) {
  return magnitude.reshaped(1, magnitude.size());
}

template <class Scalar, int Dim>
void check(GoldenCase& golden, Comparison& comparison) {
  const LoraConfig config = layer_config(golden.nested("lora"));
  auto layer = make_layer<Scalar, Dim>(golden, config);
  if (config.use_dora) {  // B is zero at the start, so the magnitude is the norm of W0
    const Matrix<Scalar> norms = golden.matrix<Scalar>("base.weight").rowwise().norm().transpose();
    comparison.close<Scalar>("initial magnitude", layer.magnitude(), norms);
  }
  layer.set_factors(golden.matrix<Scalar>("param.lora_A.weight"), golden.matrix<Scalar>("param.lora_B.weight"));
  if (config.lora_bias) layer.set_lora_bias(golden.matrix<Scalar>("param.lora_B.bias"));
  if (config.use_dora) {
    layer.set_magnitude(column<Scalar>(golden.matrix<Scalar>("param.lora_magnitude_vector.weight")));
  }
  const auto shape = golden.shape("x");
  ImageExtents<Dim> image;
  std::copy(shape.begin() + 2, shape.end(), image.begin());
  const auto x = golden.matrix<Scalar>("x");
  comparison.close<Scalar>("y", layer.forward(x, image), golden.matrix<Scalar>("y"));
  comparison.close<Scalar>("y of infer", layer.infer(x, image), golden.matrix<Scalar>("y"));
  const Matrix<Scalar> dx = layer.backward(golden.matrix<Scalar>("grad_y"));
  comparison.close<Scalar>("grad_x", dx, golden.matrix<Scalar>("grad_x"));
  const auto& gradients = layer.gradients();
  comparison.close<Scalar>("grad.lora_A", gradients.A, golden.matrix<Scalar>("grad.lora_A.weight"));
  comparison.close<Scalar>("grad.lora_B", gradients.B, golden.matrix<Scalar>("grad.lora_B.weight"));
  if (config.lora_bias) {
    comparison.close<Scalar>("grad.lora_B.bias", gradients.lora_bias, golden.matrix<Scalar>("grad.lora_B.bias"));
  }
  if (config.use_dora) {
    comparison.close<Scalar>("grad.lora_magnitude_vector", gradients.magnitude,
                             column<Scalar>(golden.matrix<Scalar>("grad.lora_magnitude_vector.weight")));
  }
  comparison.close<Scalar>("delta", layer.delta_weight(), golden.matrix<Scalar>("delta"));
  layer.eval();
  comparison.close<Scalar>("merged_weight", layer.weight(), golden.matrix<Scalar>("merged_weight"));
  comparison.close<Scalar>("y_merged", layer.infer(x, image), golden.matrix<Scalar>("y_merged"));
  layer.train();
  comparison.equal("the unmerged weight, bit for bit", layer.weight() == golden.matrix<Scalar>("base.weight"), true);
}

}  // namespace
}  // namespace convolution_case

void check_convolution(GoldenCase& golden, Comparison& comparison) {
  const auto kind = golden.options().get<std::string>("kind");
  with_scalar(golden, [&](auto zero) {
    using Scalar = decltype(zero);
    if (kind == "conv1d") return convolution_case::check<Scalar, 1>(golden, comparison);
    if (kind == "conv2d") return convolution_case::check<Scalar, 2>(golden, comparison);
    convolution_case::check<Scalar, 3>(golden, comparison);
  });
}

}  // namespace lora::conformance
