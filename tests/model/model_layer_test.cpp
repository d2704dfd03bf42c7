// SPDX-License-Identifier: MIT
// Every kind of layer behind the interface of a model: what weights() takes out, load() puts into a fresh one.
#include "lora/model/model_layer.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/model_network.hpp"

namespace lora::testing::model_layer_test {
namespace {

using Names = std::vector<std::string>;

const Names every = {"embed", "grouped", "conv", "block.qkv", "block.out", "block.gate"};
const Names with_bias_of_B = {"grouped", "conv", "block.qkv", "block.out", "block.gate"};
const Names linear = {"block.out", "block.gate"};

LoraModelConfig config_of(const LoraConfig& lora, const Names& targets) {
  LoraModelConfig config{.lora = lora};
  config.target_modules = ModuleSelector::listed(targets);
  return config;
}

// Options, and the layers that have them.
const std::vector<LoraModelConfig> cases = {
    config_of({.rank = 2, .alpha = 3}, every),
    config_of({.rank = 2, .alpha = 3, .use_rslora = true, .bias = BiasMode::all}, every),
    config_of({.rank = 4, .alpha = 3, .use_dora = true}, every),
    config_of({.rank = 2, .alpha = 3, .lora_bias = true, .bias = BiasMode::lora_only}, with_bias_of_B),
    config_of({.rank = 2, .alpha = 3, .init_lora_weights = InitLoraWeights::gaussian}, every),
    config_of({.rank = 2, .alpha = 3, .init_lora_weights = InitLoraWeights::pissa}, linear),
    config_of({.rank = 2, .alpha = 3, .use_dora = true, .init_lora_weights = InitLoraWeights::olora}, linear),
};

LoraModelConfig with_patterns(LoraModelConfig config) {
  config.rank_pattern = {{"qkv", 6}, {"out", 1}};
  config.alpha_pattern = {{"gate", 7}, {"qkv", 5}};
  config.modules_to_save = {"head"};
  return config;
}

TEST(ModelLayer, AFreshModelLoadsWhatWeightsGaveBitForBit) {
  for (std::size_t i = 0; i < cases.size(); ++i) {
    for (const bool patterns : {false, true}) {
      const LoraModelConfig config = patterns ? with_patterns(cases[i]) : cases[i];
      ModelNetwork source;
      source.model.inject(config, 1);
      source.randomize(100);
      const auto answers = source.answers();
      const AdapterWeights<double> weights = source.model.weights();

      ModelNetwork fresh;
      fresh.model.inject(config_of({.rank = 1}, {"block.gate"}), 5, "other");
      fresh.model.load(config, weights, 1, "loaded");
      EXPECT_TRUE(same_bits(fresh.answers(), answers)) << i;
      EXPECT_TRUE(same_bits(fresh.head.value, source.head.value)) << i;
      // Away and back: what the patterns say of each layer stays.
      fresh.model.set_adapter("other");
      fresh.model.set_adapter("loaded");
      EXPECT_TRUE(same_bits(fresh.answers(), answers)) << i;
      fresh.each_layer([&](const std::string& name, auto& layer, const auto& /*x*/) {
        if (!source.model.weights().modules.contains(name)) return;
        EXPECT_EQ(layer.config().rank, weights.modules.at(name).rank() / (name == "block.qkv" ? 2 : 1)) << name;
        EXPECT_EQ(layer.scaling(), weights.modules.at(name).scaling) << name;
      });
      const AdapterWeights<double> again = fresh.model.weights("loaded");
      ASSERT_EQ(again.modules.size(), weights.modules.size());
      for (const auto& [name, module] : weights.modules) {
        const auto& other = again.modules.at(name);
        EXPECT_TRUE(same_bits(other.A, module.A) && same_bits(other.B, module.B)) << name;
        EXPECT_TRUE(same_bits(other.magnitude, module.magnitude)) << name;
        EXPECT_TRUE(same_bits(other.lora_bias, module.lora_bias)) << name;
        EXPECT_EQ(other.kind, module.kind) << name;
        EXPECT_EQ(other.kernel_size, module.kernel_size) << name;
      }
      fresh.model.unload();
      ModelNetwork plain;
      EXPECT_TRUE(same_bits(fresh.weights(), plain.weights())) << i;
    }
  }
}

TEST(ModelLayer, FilesSayWhatKindOfModuleALayerIs) {
  ModelNetwork network;
  network.model.inject(config_of({.rank = 2}, every), 1);
  const auto weights = network.model.weights();
  EXPECT_EQ(weights.modules.at("embed").kind, ModuleKind::embedding);
  EXPECT_EQ(weights.modules.at("grouped").kind, ModuleKind::conv1d);
  EXPECT_EQ(weights.modules.at("conv").kind, ModuleKind::conv2d);
  EXPECT_EQ(weights.modules.at("conv").kernel_size, (std::vector<Index>{3, 2}));
  EXPECT_EQ(weights.modules.at("block.qkv").kind, ModuleKind::linear);
  EXPECT_EQ(weights.modules.at("block.qkv").rank(), 4);
}

TEST(ModelLayer, TheProductInAFileIsTheLayersDelta) {
  ModelNetwork network;
  network.model.inject(config_of({.rank = 2, .alpha = 3, .use_rslora = true}, every), 1);
  network.randomize(10);
  const auto weights = network.model.weights();
  const auto delta = [&](const char* name) -> Matrix<double> {
    const auto& module = weights.modules.at(name);
    return module.scaling * (module.B * module.A);
  };
  EXPECT_LE((delta("block.qkv") - network.qkv.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("conv") - network.conv.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("embed").transpose() - network.embed.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("block.out") - network.out.delta_weight()).norm(), 1e-14);
  EXPECT_LE((delta("block.gate").transpose() - network.gate.delta_weight()).norm(), 1e-14);
}

// Stacked layers: to files their rank is the enabled parts' together.

TEST(ModelLayer, AStackedLayerIsChosenAgainForEveryRank) {
  for (Index rank = 1; rank <= 6; ++rank) {
    ModelNetwork network;
    network.model.inject(config_of({.rank = rank, .alpha = 3}, {"block.qkv"}), 1, "stacked");
    network.randomize(10);
    const auto answers = network.answers();
    network.model.inject(config_of({.rank = 1}, {"block.out"}), 1, "other");
    network.model.set_adapter("stacked");
    EXPECT_TRUE(same_bits(network.answers(), answers)) << rank;
    EXPECT_EQ(network.qkv.rank(), rank);
    EXPECT_EQ(network.model.active_adapters(), Names{"stacked"});
  }
}

// A file's configuration has the rank of the file, the model's own that of a layer; both mean the same adapter.
TEST(ModelLayer, AStackedLayerTakesTheRankOfAFileOrItsOwn) {
  for (const bool stabilised : {false, true}) {
    for (const bool dora : {false, true}) {
      const LoraConfig own{.rank = 2, .alpha = 3, .use_rslora = stabilised, .use_dora = dora, .lora_bias = !dora};
      ModelNetwork network;
      network.model.inject(config_of(own, {"block.qkv"}), 1, "source");
      network.randomize(10);
      const auto answers = network.answers();
      const auto weights = network.model.weights();
      LoraConfig file = own;
      file.rank = 4;
      file.alpha = stabilised ? 3 * std::sqrt(2.0) : 6;
      network.model.load(config_of(own, {"block.qkv"}), weights, 0, "own");
      EXPECT_TRUE(same_bits(network.answers(), answers));
      network.model.load(config_of(file, {"block.qkv"}), weights, 0, "file");
      EXPECT_LE(difference(network.answers(), answers), 1e-13);
      EXPECT_EQ(network.qkv.rank(), 2);
      network.model.set_adapter("source");
      network.model.set_adapter("file");
      EXPECT_LE(difference(network.answers(), answers), 1e-13);
      EXPECT_EQ(network.qkv.rank(), 2);
    }
  }
}

TEST(ModelLayer, AStackedLayerRefusesValuesOutsideItsProjections) {
  for (const char* where : {"B", "lora_bias", "magnitude"}) {
    const bool dora = where == std::string("magnitude");
    const LoraConfig options{.rank = 2, .alpha = 3, .use_dora = dora, .lora_bias = !dora};
    ModelNetwork network;
    network.model.inject(config_of({.rank = 1}, {"block.out"}), 1, "first");
    network.model.inject(config_of(options, {"block.qkv", "block.gate"}), 1, "second");
    network.randomize(3);
    auto weights = network.model.weights();
    const LoraModelConfig config = network.model.config();
    network.model.delete_adapter("second");
    network.model.set_adapter("first");
    auto& module = weights.modules.at("block.qkv");
    if (where == std::string("B")) module.B(2, 0) = 1;
    if (where == std::string("lora_bias")) module.lora_bias[3] = 1;
    if (dora) module.magnitude[2] *= 1.05;
    const Observation before = observe(network);
    const auto message = message_of<ConfigError>([&] { network.model.load(config, weights, 0, "second"); });
    EXPECT_NE(message.find("block.qkv"), std::string::npos) << message;
    EXPECT_NE(message.find(where), std::string::npos) << message;
    EXPECT_TRUE(same(before, observe(network)));
    if (dora) {
      module.magnitude[2] = std::numeric_limits<double>::quiet_NaN();
      EXPECT_THROW(network.model.load(config, weights, 0, "second"), ConfigError);
      EXPECT_TRUE(same(before, observe(network)));
    }
  }
}

TEST(ModelLayer, ALoadThatDoesNotFitChangesNothing) {
  ModelNetwork network;
  const LoraModelConfig config = with_patterns(config_of({.rank = 2, .use_dora = true, .bias = BiasMode::all}, every));
  network.model.inject(config, 1, "first");
  network.randomize(10);
  const AdapterWeights<double> good = network.model.weights();
  const Observation before = observe(network);
  const auto refused = [&](const std::string& text, const auto& spoil) {
    AdapterWeights<double> weights = good;
    spoil(weights);
    const auto message = message_of<ConfigError>([&] { network.model.load(config, weights, 0, "second"); });
    EXPECT_NE(message.find(text), std::string::npos) << message;
    EXPECT_TRUE(same(before, observe(network))) << text;
  };
  using Weights = AdapterWeights<double>;
  refused("misshapen block.out (A is 2 x 6, expected 1 x 6)",
          [](Weights& w) { w.modules.at("block.out").A.resize(2, 6); });
  refused("misshapen conv (B is 3 x 1, expected 3 x 2)", [](Weights& w) { w.modules.at("conv").B.resize(3, 1); });
  refused("misshapen embed (magnitude is 1 x 5, expected 1 x 4)",
          [](Weights& w) { w.modules.at("embed").magnitude.resize(5); });
  refused("misshapen embed (lora_bias is 1 x 4, expected 1 x 0)",
          [](Weights& w) { w.modules.at("embed").lora_bias.resize(4); });
  refused("misshapen grouped (it is a module of another kind)",
          [](Weights& w) { w.modules.at("grouped").kind = ModuleKind::linear; });
  // It was ignored: the layer multiplied by alpha / rank, another number.
  refused("misshapen block.out (scaling is 0.125, expected 8, which alpha and rank give)",
          [](Weights& w) { w.modules.at("block.out").scaling = 0.125; });
  refused("misshapen embed (scaling is nan, ",
          [](Weights& w) { w.modules.at("embed").scaling = std::numeric_limits<double>::quiet_NaN(); });
  refused("misshapen conv (its kernel has other extents)", [](Weights& w) {
    w.modules.at("conv").kernel_size = {2, 3};
  });
  refused("misshapen head.weight", [](Weights& w) { w.saved.at("head.weight").shape = {4, 3}; });
  refused("misshapen head.weight", [](Weights& w) { w.saved.at("head.weight").values.resize(1000); });
  refused("misshapen head.bias", [](Weights& w) { w.saved.at("head.bias").values.clear(); });
  refused("misshapen grouped.bias", [](Weights& w) { w.saved.at("grouped.bias").values.push_back(0); });
  refused("missing block.qkv.bias", [](Weights& w) { w.saved.erase("block.qkv.bias"); });
  refused("unknown norm.weight", [](Weights& w) { w.saved["norm.weight"] = {{4}, {1, 2, 3, 4}}; });
  EXPECT_NO_THROW(network.model.load(config, good, 0, "second"));
}

// The interface itself.

class HeldLayerTest : public ::testing::Test {
 protected:
  LoraLinear<double> layer{random_matrix<double>(4, 6, 1), random_vector<double>(4, 2),
                           LoraConfig{.rank = 2, .alpha = 6}, 1};
  HeldLayer<LinearKind<double>> held{layer};
};

TEST_F(HeldLayerTest, CountsTheFrozenAndTheLearnedScalars) {
  EXPECT_EQ(held.base_size(), 4 * 6 + 4);
  EXPECT_EQ(held.bias_size(), 4);
  EXPECT_EQ(held.adapter_size(), 2 * 6 + 4 * 2);
  layer.add_adapter("biased", {.rank = 1, .bias = BiasMode::all}, 1);
  EXPECT_EQ(held.adapter_size(), 3 * 6 + 4 * 3);
  EXPECT_EQ(held.trainable_size(), 2 * 6 + 4 * 2);
  layer.set_adapter("biased");
  EXPECT_EQ(held.trainable_size(), 6 + 4 + 4);
}

TEST_F(HeldLayerTest, AModeComesBackWithTheBitsOfItsMerges) {
  for (const char* name : {"a", "b", "c"}) {
    layer.add_adapter(name, {.rank = 2}, 1);
    layer.set_factors(name, random_matrix<double>(2, 6, 3), random_matrix<double>(4, 2, 4));
  }
  const Names orders[] = {{}, {"a"}, {"a", "b", "c"}, {"c", "a"}, {"b"}};
  for (const Names& former : orders) {
    for (const Names& later : orders) {
      layer.unmerge().merge(former);
      const Matrix<double> w = layer.weight();
      const LayerMode mode = held.mode();
      layer.unmerge().merge(later);
      later.size() % 2 == 0 ? layer.train(false) : layer.train(true);
      held.restore(mode);
      EXPECT_TRUE(same_bits(layer.weight(), w));
      EXPECT_EQ(layer.merged_adapters(), former);
      EXPECT_TRUE(layer.training());
      EXPECT_EQ(layer.adapter("a").merged(), !former.empty() && former != Names{"b"});
    }
  }
}

}  // namespace
}  // namespace lora::testing::model_layer_test
