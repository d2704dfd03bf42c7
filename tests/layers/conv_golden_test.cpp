// LoraConv against the numbers PEFT computed, through the public interface.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/layers/conv.hpp"
#include "support/golden.hpp"

namespace lora {
namespace {

using testing::Golden;

std::vector<std::string> conv_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(LORA_GOLDEN_DIR)) {
    const std::string name = entry.path().stem().string();
    const bool convolves = name.starts_with("conv1d_") || name.starts_with("conv2d_");
    if (convolves && name.find("gpt2") == std::string::npos && entry.path().extension() == ".safetensors") {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

// A number for all dimensions, or one for each.
template <int Dim>
ImageExtents<Dim> extents_from(const nlohmann::json& option) {
  ImageExtents<Dim> extents;
  for (std::size_t d = 0; d < extents.size(); ++d) extents[d] = option.is_array() ? option.at(d) : option;
  return extents;
}

template <int Dim>
ConvGeometry<Dim> geometry_from(const nlohmann::json& layer) {
  return {.in_channels = layer.at("in_channels"),
          .out_channels = layer.at("out_channels"),
          .kernel = extents_from<Dim>(layer.at("kernel_size")),
          .stride = extents_from<Dim>(layer.at("stride")),
          .padding = extents_from<Dim>(layer.at("padding")),
          .dilation = extents_from<Dim>(layer.at("dilation")),
          .groups = layer.at("groups")};
}

// 1e-12 of the largest element: both sides round sums of at most 72 products of numbers of that size.
void expect_close(const Matrix<double>& ours, const Matrix<double>& theirs, const std::string& what) {
  ASSERT_EQ(ours.size(), theirs.size()) << what;
  const Eigen::Map<const RowVector<double>> a(ours.data(), ours.size());
  const Eigen::Map<const RowVector<double>> b(theirs.data(), theirs.size());
  EXPECT_LE((a - b).cwiseAbs().maxCoeff(), 1e-12 * b.cwiseAbs().maxCoeff()) << what;
}

template <int Dim>
void check(const Golden& golden) {
  const auto& lora = golden.description().at("lora");
  const bool dora = lora.at("use_dora");
  LoraConv<double, Dim> layer(golden.matrix("base.weight"), RowVector<double>(golden.matrix("base.bias")),
                              geometry_from<Dim>(golden.description().at("layer")),
                              {.rank = lora.at("r"), .alpha = lora.at("lora_alpha"), .use_dora = dora}, 1);
  if (dora) {  // before its factors are PEFT's, m is the norm of W0
    expect_close(layer.magnitude(), golden.matrix("base.weight").rowwise().norm().transpose(), "initial magnitude");
  }
  layer.set_factors(golden.matrix("param.lora_A.weight"), golden.matrix("param.lora_B.weight"));
  if (dora) layer.set_magnitude(golden.matrix("param.lora_magnitude_vector.weight"));

  const auto x = golden.matrix("x");
  const auto shape = golden.shape("x");
  ImageExtents<Dim> extents;
  std::copy(shape.begin() + 2, shape.end(), extents.begin());
  expect_close(layer.forward(x, extents), golden.matrix("y"), "y");
  expect_close(layer.backward(golden.matrix("grad_y")), golden.matrix("grad_x"), "grad_x");
  expect_close(layer.gradients().A, golden.matrix("grad.lora_A.weight"), "grad A");
  expect_close(layer.gradients().B, golden.matrix("grad.lora_B.weight"), "grad B");
  if (dora) {
    expect_close(layer.gradients().magnitude, golden.matrix("grad.lora_magnitude_vector.weight"), "grad magnitude");
  }
  expect_close(layer.infer(x, extents), golden.matrix("y"), "y of inference");
  expect_close(layer.delta_weight(), golden.matrix("delta"), "delta");
  layer.eval();
  expect_close(layer.weight(), golden.matrix("merged_weight"), "merged_weight");
  expect_close(layer.infer(x, extents), golden.matrix("y_merged"), "y_merged");
}

class ConvGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(ConvGolden, AgreesWithPeft) {
  const auto golden = Golden::load(testing::golden_path(GetParam()));
  ASSERT_EQ(golden.description().at("dtype"), "float64");
  if (golden.description().at("kind") == "conv1d") {
    check<1>(golden);
  } else {
    check<2>(golden);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ConvGolden, ::testing::ValuesIn(conv_cases()),
                         [](const auto& tested) { return tested.param; });

TEST(ConvGolden, EveryCaseIsThere) { EXPECT_EQ(conv_cases().size(), 8U); }

}  // namespace
}  // namespace lora
