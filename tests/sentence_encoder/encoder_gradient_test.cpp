// SPDX-License-Identifier: MIT
// The encoder's hand-written gradients against finite differences, for every kind of layers, in double.
#include <cmath>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/core/random.hpp"
#include "lora/model/lora_model.hpp"
#include "sentence_encoder/encoder.hpp"
#include "support/sanitized.hpp"
#include "support/thread_executor.hpp"

namespace examples::sentence_encoder::encoder_gradient_test {
namespace {

using Matrix = lora::Matrix<double>;

constexpr EncoderShape small{.vocabulary = 11, .embedding = 8, .width = 12, .hidden = 10, .layers = 2, .output = 6};

// Texts of several lengths; one without tokens.
const std::vector<TokenIds> texts{{1, 2, 3}, {}, {4}, {5, 6, 7, 8, 9, 10, 0, 1}, {2, 2}};

Matrix random(Index rows, Index cols, std::uint64_t seed) {
  Matrix values(rows, cols);
  lora::fill_uniform(lora::view_of(values), 1.0, lora::RandomStream(seed, 0));
  return values;
}

/// The loss is the sum of the embeddings times fixed numbers. Central differences of step h err by h^2 / 6 times a
/// third derivative, here up to some 1000: 2e-10 at h = 1e-6; and by the rounding of a loss of size 10 over h: some
/// 1e-9.
constexpr double step = 1e-6;
constexpr double tolerance = 1e-8;

// Elements of each parameter that are compared.
constexpr Index samples = lora::testing::sanitized ? 4 : 16;

template <class Layers>
void expect_gradients(SentenceEncoder<Layers>& encoder, std::vector<lora::Parameter<double>> parameters) {
  lora::testing::ThreadExecutor threads(2);
  EncoderPass<Layers> pass(threads);
  const PackedTexts batch = pack(texts);
  const BatchPosition position{.step = 3};
  const Matrix direction = random(batch.texts(), encoder.embedding_size(), 77);
  const auto loss = [&] { return encoder.forward(batch, position, pass).cwiseProduct(direction).sum(); };

  static_cast<void>(loss());
  encoder.zero_grad();
  encoder.backward(direction, pass);
  double greatest = 0.0;
  for (auto& parameter : parameters) {
    const Matrix gradient = parameter.gradient();
    auto value = parameter.value();
    for (Index i = 0; i < value.size(); i += 1 + value.size() / samples) {
      const double kept = value.data()[i];
      value.data()[i] = kept + step;
      const double above = loss();
      value.data()[i] = kept - step;
      const double below = loss();
      value.data()[i] = kept;
      EXPECT_NEAR(gradient.data()[i], (above - below) / (2 * step), tolerance) << parameter.name() << " " << i;
    }
    greatest = std::max(greatest, gradient.cwiseAbs().maxCoeff());
    EXPECT_GT(gradient.cwiseAbs().maxCoeff(), 1e-6) << parameter.name();
  }
  EXPECT_GT(greatest, 0.1);
}

void expect_adapter_gradients(lora::LoraConfig config) {
  SentenceEncoder<AdaptedLayers<double>> encoder(random_encoder_weights<double>(small, 3));
  lora::LoraModel<double> model;
  encoder.add_to(model);
  config.fan_in_fan_out = true;
  lora::LoraModelConfig model_config;
  model_config.lora = config;
  model_config.target_modules = {"qkv", "attention.output", "residual", "ffn.hidden", "ffn.output", "projection"};
  static_cast<void>(model.inject(model_config, 5));
  std::uint64_t stream = 0;
  for (auto& parameter : model.trainable_parameters()) {
    if (parameter.role() != lora::ParameterRole::lora_B) continue;
    auto value = parameter.value();
    lora::fill_uniform(lora::view_of(value), 0.5, lora::RandomStream(9, stream++));
  }
  EXPECT_EQ(stream, 10U);
  expect_gradients(encoder, model.trainable_parameters());
}

TEST(EncoderGradient, OfAdaptersOnEveryLayer) { expect_adapter_gradients({.rank = 2, .alpha = 4}); }

TEST(EncoderGradient, OfAdaptersWithDropout) { expect_adapter_gradients({.rank = 2, .alpha = 4, .dropout = 0.3}); }

TEST(EncoderGradient, OfAdaptersWithRslora) { expect_adapter_gradients({.rank = 3, .alpha = 4, .use_rslora = true}); }

// DoRA's norm is a constant in backward (arXiv 2402.09353, section 4.3), so that finite differences meet the magnitudes
// alone.
TEST(EncoderGradient, OfMagnitudes) {
  SentenceEncoder<AdaptedLayers<double>> encoder(random_encoder_weights<double>(small, 3));
  lora::LoraModel<double> model;
  encoder.add_to(model);
  lora::LoraModelConfig config;
  config.lora = {.rank = 2, .alpha = 4, .fan_in_fan_out = true, .use_dora = true};
  config.target_modules = {"qkv", "attention.output", "residual", "ffn.hidden", "ffn.output", "projection"};
  static_cast<void>(model.inject(config, 5));
  std::vector<lora::Parameter<double>> magnitudes;
  for (auto& parameter : model.trainable_parameters()) {
    if (parameter.role() == lora::ParameterRole::magnitude) magnitudes.push_back(parameter);
  }
  EXPECT_EQ(magnitudes.size(), 10U);
  expect_gradients(encoder, magnitudes);
}

TEST(EncoderGradient, OfEveryKernelBiasAndLayerNorm) {
  SentenceEncoder<TrainedLayers<double>> encoder(random_encoder_weights<double>(small, 3));
  const auto parameters = encoder.parameters();
  // Ten kernels with biases, four layer norms.
  EXPECT_EQ(parameters.size(), 28U);
  expect_gradients(encoder, parameters);
}

TEST(EncoderGradient, OfAnAdapterInTheFirstLayerAlone) {
  SentenceEncoder<AdaptedLayers<double>> encoder(random_encoder_weights<double>(small, 3));
  lora::LoraModel<double> model;
  encoder.add_to(model);
  lora::LoraModelConfig config;
  config.lora = {.rank = 2, .alpha = 4, .fan_in_fan_out = true, .init_lora_weights = lora::InitLoraWeights::gaussian};
  config.target_modules = {"layer_0.attention.qkv"};
  EXPECT_EQ(model.inject(config, 5).modules, std::vector<std::string>{"transformer.layer_0.attention.qkv"});
  auto parameters = model.trainable_parameters();
  auto value = parameters[1].value();
  lora::fill_uniform(lora::view_of(value), 0.5, lora::RandomStream(9, 0));
  expect_gradients(encoder, parameters);
}

}  // namespace
}  // namespace examples::sentence_encoder::encoder_gradient_test
