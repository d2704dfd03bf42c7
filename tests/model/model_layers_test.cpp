// Every kind of layer in a model: what weights() takes out, load() puts into a fresh one, and merging for good.
#include "lora/model/model_layers.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "lora/model/lora_model.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;

const std::vector<std::int64_t> ids = {0, 3, 2, 3};
const ConvGeometry<2> geometry{.in_channels = 2, .out_channels = 3, .kernel = {3, 2}, .padding = {1, 0}};
const ImageExtents<2> image = {4, 3};

struct Network {
  LoraEmbedding<double> embed{random_matrix<double>(5, 4, 1), {.rank = 0}, 0};
  LoraConv<double, 2> conv{random_matrix<double>(3, 12, 2), RowVector<double>(random_matrix<double>(1, 3, 3)), geometry,
                           LoraConfig{.rank = 0}, 0};
  MergedLinear<double> qkv{random_matrix<double>(6, 4, 4),
                           RowVector<double>(random_matrix<double>(1, 6, 5)),
                           {true, false, true},
                           LoraConfig{.rank = 0},
                           0};
  LoraLinear<double> out{random_matrix<double>(4, 6, 6), RowVector<double>(random_matrix<double>(1, 4, 7)),
                         LoraConfig{.rank = 0}, 0};

  void add_to(LoraModel<double>& model) {
    model.add("embed", embed);
    model.add("conv", conv);
    model.add("qkv", qkv);
    model.add("out", out);
  }
  [[nodiscard]] std::vector<Matrix<double>> answers() const {
    const Matrix<double> x = embed.infer(ids);
    return {x, conv.infer(random_matrix<double>(2, 24, 8), image), qkv.infer(x), out.infer(qkv.infer(x))};
  }
};

void expect_near(const std::vector<Matrix<double>>& a, const std::vector<Matrix<double>>& b, double bound) {
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_LE((a[i] - b[i]).cwiseAbs().maxCoeff(), bound) << i;
}

const LoraModelConfig everything{.lora = {.rank = 2, .alpha = 3}, .target_modules = {"embed", "conv", "qkv", "out"}};

void randomize(LoraModel<double>& model) {
  std::uint64_t seed = 100;
  for (auto& parameter : model.trainable_parameters()) {
    parameter.value() = random_matrix<double>(parameter.rows(), parameter.cols(), ++seed);
  }
}

TEST(ModelLayers, StateIsWhatAFreshModelLoads) {
  Network network;
  LoraModel<double> model;
  network.add_to(model);
  const auto plain = network.answers();
  model.inject(everything, 1);
  expect_near(network.answers(), plain, 1e-15);
  randomize(model);
  const auto weights = model.weights();
  EXPECT_EQ(weights.modules.at("embed").kind, ModuleKind::embedding);
  EXPECT_EQ(weights.modules.at("conv").kind, ModuleKind::conv2d);
  EXPECT_EQ(weights.modules.at("conv").kernel_size, (std::vector<Index>{3, 2}));
  EXPECT_EQ(weights.modules.at("qkv").rank(), 4);

  Network other;
  LoraModel<double> loaded;
  other.add_to(loaded);
  LoraModelConfig from_file = everything;
  from_file.rank_pattern = {{"qkv", 4}};
  from_file.alpha_pattern = {{"qkv", 6}};
  loaded.load(from_file, weights);
  expect_near(other.answers(), network.answers(), 0);
}

TEST(ModelLayers, TheDeltaOfAStateIsTheLayersDelta) {
  Network network;
  LoraModel<double> model;
  network.add_to(model);
  model.inject(everything, 1);
  randomize(model);
  const auto weights = model.weights();
  const auto delta = [&](const char* name) -> Matrix<double> {
    const auto& module = weights.modules.at(name);
    return module.scaling * (module.B * module.A);
  };
  EXPECT_LE((delta("qkv") - network.qkv.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("conv") - network.conv.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("embed").transpose() - network.embed.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("out") - network.out.delta_weight()).norm(), 1e-14);
}

// With rsLoRA a file's scaling is alpha / sqrt(rank), so a rank E times the layer's goes with an alpha sqrt(E) times.
TEST(ModelLayers, AMergedLinearTakesItsScalingFromARankStabilisedFile) {
  Network network;
  LoraModel<double> model;
  model.add("qkv", network.qkv);
  const LoraModelConfig only{.lora = {.rank = 2, .alpha = 3, .use_rslora = true}, .target_modules = {"qkv"}};
  model.inject(only, 1);
  const double scaling = network.qkv.scaling();
  const auto weights = model.weights();
  model.unload();
  const LoraModelConfig in_file{.lora = {.rank = 4, .alpha = 3 * std::sqrt(2.0), .use_rslora = true},
                                .target_modules = {"qkv"}};
  model.load(in_file, weights);
  EXPECT_EQ(network.qkv.rank(), 2);
  EXPECT_DOUBLE_EQ(network.qkv.scaling(), scaling);
}

TEST(ModelLayers, AMergedLinearRefusesFactorsOutsideItsProjections) {
  Network network;
  LoraModel<double> model;
  model.add("qkv", network.qkv);
  const LoraModelConfig only{.lora = {.rank = 2, .alpha = 3}, .target_modules = {"qkv"}};
  model.inject(only, 1);
  auto weights = model.weights();
  model.unload();
  weights.modules.at("qkv").B(2, 0) = 1;
  const LoraModelConfig in_file{.lora = {.rank = 4, .alpha = 6}, .target_modules = {"qkv"}};
  EXPECT_THROW(model.load(in_file, weights), ConfigError);
  EXPECT_TRUE(model.active_adapter().empty());
  EXPECT_EQ(network.qkv.rank(), 0);
}

TEST(ModelLayers, MergingForGoodKeepsTheAnswersAndLeavesPlainLayers) {
  for (const bool dora : {false, true}) {
    Network network;
    LoraModel<double> model;
    network.add_to(model);
    LoraModelConfig config = everything;
    config.lora.use_dora = dora;
    if (dora) config.target_modules = {"embed", "conv", "out"};
    model.inject(config, 1);
    randomize(model);
    const auto adapted = network.answers();
    model.merge_and_unload();
    expect_near(network.answers(), adapted, 1e-12);
    EXPECT_EQ(network.embed.rank() + network.conv.rank() + network.qkv.rank() + network.out.rank(), 0);
    EXPECT_FALSE(model.merged());
    model.train();
    model.unmerge();
    expect_near(network.answers(), adapted, 1e-12);
  }
}

TEST(ModelLayers, ABiasOfBBecomesPartOfTheBias) {
  LoraLinear<double> layer(random_matrix<double>(4, 6, 1), {.rank = 2, .lora_bias = true}, 1);
  layer.set_factors(random_matrix<double>(2, 6, 2), random_matrix<double>(4, 2, 3));
  layer.set_lora_bias(random_matrix<double>(1, 4, 4));
  const Matrix<double> x = random_matrix<double>(3, 6, 5);
  const Matrix<double> y = layer.infer(x);
  layer.merge_and_unload();
  EXPECT_LE((layer.infer(x) - y).cwiseAbs().maxCoeff(), 1e-14);
  EXPECT_TRUE(layer.has_bias());
}

}  // namespace
}  // namespace lora
