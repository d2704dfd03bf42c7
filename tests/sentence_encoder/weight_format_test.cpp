// SPDX-License-Identifier: MIT
// Frozen kernels in other formats: the encoder answers as over floats of the decoded values, and says what does not
// fit.
#include "sentence_encoder/weight_format.hpp"

#include <gtest/gtest.h>
#include <string>
#include <utility>
#include <vector>

#include "sentence_encoder/encoder.hpp"
#include "support/bits.hpp"

namespace weight_format_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using Layers = AdaptedLayers<float>;
using Matrix = lora::Matrix<float>;

constexpr EncoderShape shape{
    .vocabulary = 11, .embedding = 64, .width = 128, .hidden = 192, .layers = 2, .heads = 4, .output = 20};

/// The bytes of all kernels of `shape` in blocks of `bytes` for `weights` weights. Outputs are padded to 16: 20 to 32.
constexpr std::size_t bytes_of_shape(std::size_t weights, std::size_t bytes) {
  constexpr std::size_t first = 64 * 192 + 64 * 128 + 64 * 128 + 128 * 192 * 2;
  constexpr std::size_t second = 128 * 384 + 128 * 128 + 128 * 192 * 2;
  return (first + second + 128 * 32) / weights * bytes;
}

SentenceEncoder<Layers> encoder_of(const EncoderWeights<float>& weights, WeightFormat format) {
  return SentenceEncoder<Layers>(weights, Layers{format});
}

Matrix decoded(WeightFormat format, const Matrix& kernel) {
  Matrix result(kernel.rows(), kernel.cols());
  const auto weight = frozen_weight<float>(format, lora::view_of(kernel).transpose());
  weight.read(0, 0, lora::view_of(result).transpose());
  return result;
}

EncoderWeights<float> decoded(WeightFormat format, EncoderWeights<float> weights) {
  for (auto& layer : weights.layers) {
    for (auto* linear : {&layer.qkv, &layer.output, &layer.residual, &layer.ffn_hidden, &layer.ffn_output}) {
      if (linear->kernel.size() > 0) linear->kernel = decoded(format, linear->kernel);
    }
  }
  weights.projection.kernel = decoded(format, weights.projection.kernel);
  return weights;
}

TEST(WeightFormat, IsFoundByItsName) {
  EXPECT_EQ(format_names(), (std::vector<std::string>{"float", "bf16", "q8_0", "nf4"}));
  for (const auto& name : format_names()) EXPECT_EQ(name_of(format_named(name)), name);
  EXPECT_THROW(static_cast<void>(format_named("q9")), lora::ConfigError);
}

TEST(WeightFormat, BlocksThatDoNotDivideTheInputsAreRefused) {
  const Matrix weight = Matrix::Ones(4, 96);
  EXPECT_NO_THROW(static_cast<void>(frozen_weight<float>(WeightFormat::q8_0, lora::view_of(weight))));
  EXPECT_THROW(static_cast<void>(frozen_weight<float>(WeightFormat::nf4, lora::view_of(weight))), lora::ShapeError);
}

TEST(WeightFormat, LayersOfDoubleKeepDoubles) {
  const lora::Matrix<double> weight = lora::Matrix<double>::Ones(4, 64);
  EXPECT_NO_THROW(static_cast<void>(frozen_weight<double>(WeightFormat::scalar, lora::view_of(weight))));
  EXPECT_THROW(static_cast<void>(frozen_weight<double>(WeightFormat::nf4, lora::view_of(weight))), lora::ConfigError);
}

class EncoderOver : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(EncoderOver, AFormatAnswersAsOverTheDecodedFloats) {
  const auto weights = random_encoder_weights<float>(shape, 3);
  const std::vector<TokenIds> texts{{1, 2, 3}, {}, {4}, {5, 6, 7, 8, 9, 10, 0, 1}};
  const Matrix embeddings = encoder_of(weights, GetParam()).embed(texts);
  const auto floats = decoded(GetParam(), weights);
  EXPECT_NE(floats.projection.kernel, weights.projection.kernel);
  EXPECT_TRUE(lora::testing::same_bits(embeddings, encoder_of(floats, WeightFormat::scalar).embed(texts)));
}

INSTANTIATE_TEST_SUITE_P(All, EncoderOver, ::testing::Values(WeightFormat::bf16, WeightFormat::q8_0, WeightFormat::nf4),
                         [](const auto& tested) { return std::string(name_of(tested.param)); });

TEST(EncoderOver, AFormatKeepsItsBytesAlone) {
  const auto weights = random_encoder_weights<float>(shape, 3);
  const auto bytes = [&](WeightFormat format) { return encoder_of(weights, format).frozen_bytes(); };
  EXPECT_EQ(bytes(WeightFormat::bf16), bytes_of_shape(1, 2));
  EXPECT_EQ(bytes(WeightFormat::q8_0), bytes_of_shape(32, 34));
  EXPECT_EQ(bytes(WeightFormat::nf4), bytes_of_shape(64, 36));
  EXPECT_EQ(bytes(WeightFormat::scalar), bytes_of_shape(1, 4));
}

}  // namespace
}  // namespace weight_format_test
