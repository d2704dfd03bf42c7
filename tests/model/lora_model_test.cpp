// SPDX-License-Identifier: MIT
// A model of a few named layers: what is adapted, what trains, what is active, and what comes back.
#include "lora/model/lora_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/optim/adamw.hpp"
#include "lora/optim/sgd.hpp"
#include "support/model_network.hpp"

namespace lora::testing::lora_model_test {
namespace {

using Linear = LoraLinear<double>;
using Names = std::vector<std::string>;

Linear plain_linear(Index out, Index in, std::uint64_t seed, bool transposed = false) {
  const LoraConfig config{.rank = 0, .fan_in_fan_out = transposed};
  const RowVector<double> bias = random_vector<double>(out, seed + 100);
  const Matrix<double> w = random_matrix<double>(transposed ? in : out, transposed ? out : in, seed);
  return {w, bias, config, std::uint64_t{0}};
}

// A user's class: two blocks of two layers, and a head that is trained whole or not at all.
struct Network {
  Linear q0 = plain_linear(4, 6, 1);
  Linear v0 = plain_linear(4, 6, 2);
  Linear q1 = plain_linear(4, 6, 3);
  Linear v1 = plain_linear(4, 6, 4, true);
  Trainable<double> head{random_matrix<double>(3, 4, 5), {}, {}};
  Trainable<double> head_bias{random_matrix<double>(1, 3, 6), {}, {}};
  Trainable<double> norm{random_matrix<double>(1, 4, 7), {}, {}};

  void add_to(LoraModel<double>& model) {
    model.add("blocks.0.q_proj", q0);
    model.add("blocks.0.v_proj", v0);
    model.add("blocks.1.q_proj", q1);
    model.add("blocks.1.v_proj", v1);
    model.add("norm.weight", norm);
    model.add("head.weight", head);
    model.add("head.bias", head_bias);
  }
  [[nodiscard]] std::vector<Matrix<double>> weights() const {
    return {q0.weight(), v0.weight(), q1.weight(), v1.weight(), head.value, head_bias.value, norm.value};
  }
  [[nodiscard]] std::vector<Matrix<double>> answers() const {
    const Matrix<double> x = random_matrix<double>(4, 6, 9);
    return {q0.infer(x), v0.infer(x), q1.infer(x), v1.infer(x), head.value, head_bias.value};
  }
};

class LoraModelTest : public ::testing::Test {
 protected:
  LoraModelTest() { network.add_to(model); }

  Names trainable_names() {
    Names names;
    for (const auto& parameter : model.trainable_parameters()) names.push_back(parameter.name());
    return names;
  }
  void change_everything(double amount) {
    for (auto& parameter : model.trainable_parameters()) parameter.value().array() += amount;
  }

  Network network;
  LoraModel<double> model;
  const LoraModelConfig queries{.lora = {.rank = 2, .alpha = 4}, .target_modules = {"q_proj"}};
  const LoraModelConfig queries_and_head{
      .lora = {.rank = 2, .alpha = 4}, .target_modules = {"q_proj"}, .modules_to_save = {"head"}};
  const LoraModelConfig queries_and_biases{.lora = {.rank = 2, .alpha = 4, .bias = BiasMode::all},
                                           .target_modules = {"q_proj"}};
};

// Registration.

TEST_F(LoraModelTest, NamesAreDottedAndUnique) {
  Linear extra = plain_linear(4, 6, 8);
  for (const char* name : {"", ".a", "a.", "a..b", "blocks.0.q_proj", "head.weight"}) {
    EXPECT_THROW(model.add(name, extra), ConfigError) << name;
  }
  Trainable<double> vector{random_matrix<double>(1, 4, 1), {}, {}};
  EXPECT_THROW(model.add("other.weight", vector, {3}), ShapeError);
  EXPECT_THROW(model.add("blocks.0.q_proj", vector), ConfigError);
  EXPECT_THROW(model.add("blocks.0.q_proj.bias", vector), ConfigError);  // the layer's own
  model.inject(queries, 1);
  EXPECT_THROW(model.add("extra", extra), StateError);
  EXPECT_EQ(model.module_names().size(), 4U);
}

// `part`: a layer or a parameter.
template <class Part>
void has_one_name_and_one_model(Part part) {
  auto first = std::make_unique<LoraModel<double>>();
  LoraModel<double> other;
  first->add("q", part);
  EXPECT_EQ(message_of<ConfigError>([&] { first->add("again", part); }),
            "LoraModel::add: again: expected what has no name yet, got what is registered as q");
  EXPECT_EQ(message_of<StateError>([&] { other.add("mine", part); }),
            "LoraModel::add: mine: expected what belongs to no other model, got what another model has");
  EXPECT_TRUE(other.module_names().empty());
  EXPECT_TRUE(other.trainable_parameters().empty());
  Part copy = part;
  EXPECT_NO_THROW(other.add("copy", copy));
  LoraModel<double> moved = std::move(*first);  // the claim goes with the model
  EXPECT_THROW(first->add("q", part), StateError);
  Part another = part;
  EXPECT_NO_THROW(first->add("q", another));  // a model like any other: it had no claims that others respect
  EXPECT_THROW(other.add("another", another), StateError);
  first.reset();
  EXPECT_THROW(other.add("q", part), StateError);
  moved = LoraModel<double>();  // the model that had it is gone
  EXPECT_NO_THROW(other.add("q", part));
}

TEST(LoraModelRegistration, ALayerHasOneNameAndOneModel) { has_one_name_and_one_model(plain_linear(4, 6, 8)); }

TEST(LoraModelRegistration, AParameterHasOneNameAndOneModel) {
  has_one_name_and_one_model(Trainable<double>{random_matrix<double>(3, 4, 5), {}, {}});
}

TEST(LoraModelRegistration, AShapeInFilesHasTheElementsOfItsParameter) {
  Trainable<double> parameter{random_matrix<double>(2, 3, 1), {}, {}};
  for (const std::vector<Index>& shape : {std::vector<Index>{6}, {1, 6}, {3, 1, 2}}) {
    LoraModel<double> model;
    EXPECT_NO_THROW(model.add("conv.weight", parameter, shape));
  }
  constexpr Index half = Index{1} << (std::numeric_limits<Index>::digits / 2 + 1);  // half * half is 0 in an Index
  for (const std::vector<Index>& shape : {std::vector<Index>{5}, {2, 4}, {-1, -6}, {half, half, 6}}) {
    LoraModel<double> model;
    EXPECT_THROW(model.add("conv.weight", parameter, shape), ShapeError);
    EXPECT_NO_THROW(model.add("conv.weight", parameter)) << "a refused parameter is not registered";
  }
  try {
    LoraModel<double>().add("conv.weight", parameter, {-1, -6});
    FAIL();
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "LoraModel::add: conv.weight: expected a shape of 6 elements, got -1 x -6");
  }
}

TEST_F(LoraModelTest, AParameterIsTheModelsWhoeverTrainsIt) {
  LoraModel<double> other;
  const auto refused = [&] { EXPECT_THROW(other.add("mine", network.head), StateError); };
  model.inject(queries_and_head, 1);
  refused();
  model.set_adapters({});
  refused();
  model.unload();
  refused();
}

// In files a layer's bias and its factors have the layer's name before theirs.
TEST(LoraModelRegistration, AParameterInsideALayerHasNoNameOfTheLayersOwn) {
  const struct {
    bool biased;
    const char* parameter;
    bool refused;
  } cases[] = {
      {true, "head.bias", true},          {false, "head.bias", false},      {true, "head.weight", false},
      {true, "head.lora_A.weight", true}, {false, "head.lora_extra", true}, {true, "head2.bias", false},
      {true, "lm.head.bias", false},      {true, "head.norm.bias", false},
  };
  for (const auto& [biased, name, refused] : cases) {
    for (const bool layer_first : {false, true}) {
      Linear layer = biased ? plain_linear(3, 4, 1)
                            : Linear(random_matrix<double>(3, 4, 1), LoraConfig{.rank = 0}, std::uint64_t{0});
      Trainable<double> parameter{random_matrix<double>(1, 3, 2), {}, {}};
      LoraModel<double> model;
      const auto add_both = [&, &parameter_name = name] {
        if (layer_first) model.add("head", layer);
        model.add(parameter_name, parameter);
        if (!layer_first) model.add("head", layer);
      };
      if (!refused) {
        EXPECT_NO_THROW(add_both()) << name;
        continue;
      }
      EXPECT_EQ(message_of<ConfigError>(add_both),
                "LoraModel::add: name: expected a parameter outside the layer head, which has its own " +
                    std::string(name).substr(5) + ", got " + name);
      EXPECT_EQ(model.module_names().size(), layer_first ? 1U : 0U);
      EXPECT_EQ(model.trainable_parameters().size(), layer_first ? 0U : 1U);
    }
  }
}

// Injection.

TEST_F(LoraModelTest, AdaptsTheLayersThatTheConfigurationNames) {
  const auto report = model.inject(queries, 1);
  EXPECT_EQ(report.modules, (Names{"blocks.0.q_proj", "blocks.1.q_proj"}));
  EXPECT_TRUE(report.warnings.empty());
  EXPECT_EQ(network.q0.rank(), 2);
  EXPECT_EQ(network.v0.adapter_count(), 0);
  EXPECT_EQ(model.active_adapter(), "default");
  EXPECT_EQ(trainable_names(), (Names{"blocks.0.q_proj.lora_A.weight", "blocks.0.q_proj.lora_B.weight",
                                      "blocks.1.q_proj.lora_A.weight", "blocks.1.q_proj.lora_B.weight"}));
}

TEST_F(LoraModelTest, SeedsFollowFromNamesAndNotFromTheOrderOfRegistration) {
  model.inject(queries, 1);
  EXPECT_NE(network.q0.lora_A(), network.q1.lora_A());
  Network other;
  LoraModel<double> reversed;
  reversed.add("blocks.1.q_proj", other.q1);
  reversed.add("blocks.0.q_proj", other.q0);
  reversed.inject(queries, 1);
  EXPECT_EQ(other.q0.lora_A(), network.q0.lora_A());
  EXPECT_EQ(other.q1.lora_A(), network.q1.lora_A());
}

TEST_F(LoraModelTest, PatternsGiveRanksAndAlphasThatStayWhenOthersAreChosen) {
  LoraModelConfig config = queries;
  config.target_modules = {"q_proj", "v_proj"};
  config.rank_pattern = {{"blocks.1.q_proj", 3}, {"q_proj", 1}};
  config.alpha_pattern = {{"v_proj", 6}};
  model.inject(config, 1, "first");
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(network.q0.rank(), 1);
    EXPECT_EQ(network.q1.rank(), 3);
    EXPECT_EQ(network.v0.rank(), 2);
    EXPECT_EQ(network.v0.scaling(), 3.0);
    EXPECT_EQ(network.q0.scaling(), 4.0);
    if (round == 1) break;
    model.inject(queries, 2, "second");
    model.set_adapter("first");
  }
}

TEST_F(LoraModelTest, TheLayersOwnOrientationHoldsAndADifferentWishIsAWarning) {
  LoraModelConfig config = queries;
  config.target_modules = {"v_proj"};
  const auto report = model.inject(config, 1);
  ASSERT_EQ(report.warnings.size(), 1U);
  EXPECT_NE(report.warnings[0].find("blocks.1.v_proj: fan_in_fan_out is not set"), std::string::npos);
  EXPECT_TRUE(network.v1.config().fan_in_fan_out);
  EXPECT_FALSE(network.v0.config().fan_in_fan_out);
}

// As in PEFT, and in files: an adapter that trains biases alone would not be read again.
TEST_F(LoraModelTest, EveryTargetedLayerNeedsARank) {
  for (const auto bias : {BiasMode::none, BiasMode::all, BiasMode::lora_only}) {
    LoraModelConfig config{.lora = {.rank = 0, .bias = bias}, .target_modules = {"q_proj"}};
    const std::string refusal = "LoraModel::inject: rank: expected 1 or more for \"blocks.0.q_proj\", got 0";
    EXPECT_EQ(message_of<ConfigError>([&] { model.inject(config, 1); }), refusal);
    config.rank_pattern = {{"1.q_proj", 2}};
    EXPECT_EQ(message_of<ConfigError>([&] { model.inject(config, 1); }), refusal);
    EXPECT_TRUE(model.adapter_names().empty());
    config.rank_pattern = {{"q_proj", 2}};
    EXPECT_EQ(model.inject(config, 1).modules, (Names{"blocks.0.q_proj", "blocks.1.q_proj"}));
    EXPECT_EQ(network.q1.rank(), 2);
    model.unload();
  }
}

TEST_F(LoraModelTest, NothingMatchedIsAnErrorAndChangesNothing) {
  LoraModelConfig config = queries;
  config.target_modules = {"k_proj"};
  const auto message = message_of<ConfigError>([&] { model.inject(config, 1); });
  EXPECT_NE(message.find("k_proj"), std::string::npos) << message;
  EXPECT_TRUE(model.active_adapter().empty());
  EXPECT_EQ(network.q0.adapter_count(), 0);
}

TEST_F(LoraModelTest, ALayerCannotBeSavedWhole) {
  LoraModelConfig config = queries;
  config.modules_to_save = {"v_proj"};
  const auto message = message_of<ConfigError>([&] { model.inject(config, 1); });
  EXPECT_NE(message.find("blocks.0.v_proj"), std::string::npos) << message;
  EXPECT_EQ(network.q0.adapter_count(), 0);
}

TEST_F(LoraModelTest, CallsThatDoNotFitTheState) {
  EXPECT_THROW(static_cast<void>(model.weights()), StateError);
  EXPECT_THROW(static_cast<void>(model.config()), StateError);
  EXPECT_THROW(model.merge_and_unload(), StateError);
  EXPECT_THROW(model.delete_adapter("default"), ConfigError);
  EXPECT_THROW(model.inject(queries, 1, "a.b"), ConfigError);
  EXPECT_THROW(model.inject(queries, 1, "__base__"), ConfigError);
  model.inject(queries, 1);
  EXPECT_THROW(model.inject(queries, 1), ConfigError);
  EXPECT_THROW(model.set_adapters({"default", "default"}), ConfigError);
  EXPECT_THROW(model.set_adapter("other"), ConfigError);
  EXPECT_THROW(model.merge({"other"}), ConfigError);
  EXPECT_THROW(model.unmerge({"other"}), ConfigError);
  EXPECT_THROW(model.set_scale("other", 2), ConfigError);
  model.set_adapters({});
  EXPECT_THROW(static_cast<void>(model.weights()), StateError);
  model.set_adapter("default");
  model.merge();
  EXPECT_THROW(model.inject(queries, 1, "second"), StateError);
  EXPECT_THROW(model.set_adapters({}), StateError);
  EXPECT_THROW(model.delete_adapter("default"), StateError);
  EXPECT_THROW(model.set_scale("default", 2), StateError);
  EXPECT_THROW(model.mark_only_lora_as_trainable(), StateError);
  EXPECT_TRUE(model.merged());
}

TEST_F(LoraModelTest, LayersKeepTheAdaptersOfTheirOwn) {
  network.q1.add_adapter("mine", {.rank = 2}, 1);
  network.q1.set_factors("mine", random_matrix<double>(2, 6, 1), random_matrix<double>(4, 2, 2));
  const auto before = network.answers();
  model.unload();
  EXPECT_EQ(network.answers(), before);
  const auto message = message_of<StateError>([&] { model.inject(queries, 1); });
  EXPECT_NE(message.find("blocks.1.q_proj"), std::string::npos) << message;
  EXPECT_EQ(network.answers(), before);
  EXPECT_TRUE(model.adapter_names().empty());
  EXPECT_EQ(model.parameter_count().trainable, 2 * 6 + 4 * 2 + 12 + 3 + 4);
  network.q1.delete_adapter("mine");
  model.inject(queries, 1, "first");
  network.q0.add_adapter("mine", {.rank = 2}, 1);
  EXPECT_THROW(model.inject(queries, 1, "mine"), ConfigError);
  EXPECT_EQ(network.q0.adapter_names(), (Names{"first", "mine"}));
  model.set_row_adapters({"first", "first"});
  model.unload();
  EXPECT_EQ(network.q0.adapter_names(), Names{"mine"});
  EXPECT_NO_THROW(static_cast<void>(network.q0.infer(random_matrix<double>(3, 6, 1))));  // rows choose no more
}

// What a later layer refuses leaves every layer as it was.
TEST(LoraModelRefusals, ASecondInjectionThatALayerRefusesChangesNothing) {
  ModelNetwork network;
  LoraModel<double>& model = network.model;
  model.inject({.lora = {.rank = 2, .bias = BiasMode::all},
                .target_modules = {"embed", "grouped", "block.qkv"},
                .modules_to_save = {"head"}},
               1, "first");
  network.randomize(5);
  const Observation before = observe(network);
  const auto refused = [&](const LoraConfig& config, std::vector<std::string> targets, const std::string& layer) {
    LoraModelConfig whole{.lora = config};
    whole.target_modules = ModuleSelector::listed(std::move(targets));
    const auto message = message_of<ConfigError>([&] { model.inject(whole, 2, "second"); });
    EXPECT_NE(message.find(layer), std::string::npos) << message;
    EXPECT_TRUE(same(before, observe(network))) << layer;
  };
  refused({.rank = 2, .lora_bias = true}, {"block.out", "embed"}, "embed");
  refused({.rank = 3}, {"embed", "grouped"}, "grouped");
  // Nor does a layer before it hold the norms that DoRA needs.
  const std::size_t bytes = network.out.parameter_bytes();
  refused({.rank = 3, .use_dora = true}, {"block.out", "grouped"}, "grouped");
  EXPECT_EQ(network.out.parameter_bytes(), bytes);
  for (const auto init : {InitLoraWeights::pissa, InitLoraWeights::olora, InitLoraWeights::orthogonal}) {
    refused({.rank = 2, .init_lora_weights = init}, {"embed", "block.out", "block.qkv"}, "");
  }
  refused({.rank = 2, .init_lora_weights = InitLoraWeights::pissa}, {"block.out", "block.qkv"}, "block.qkv");
  EXPECT_EQ(model.active_adapter(), "first");
}

TEST(LoraModelRefusals, AnInjectionThatTakesFromWeightsAndFailsAtALaterLayerLeavesThem) {
  for (const auto init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
    ModelNetwork network;
    const Observation before = observe(network);
    LoraModelConfig config{.lora = {.rank = 2, .init_lora_weights = init}, .target_modules = {"out", "gate", "qkv"}};
    const auto message = message_of<ConfigError>([&] { network.model.inject(config, 1); });
    EXPECT_NE(message.find("block.qkv"), std::string::npos) << message;
    EXPECT_TRUE(same(before, observe(network)));
    // A rank beyond the smaller side of a later layer's weight.
    config.target_modules = {"out", "gate"};
    config.rank_pattern = {{"gate", 5}};
    const auto late = message_of<ConfigError>([&] { network.model.inject(config, 1); });
    EXPECT_NE(late.find("block.gate"), std::string::npos) << late;
    EXPECT_TRUE(same(before, observe(network)));
  }
}

// Residual starts.

TEST_F(LoraModelTest, AnAdapterThatStartsAsAPartOfTheWeightsNeverWritesThem) {
  for (const auto init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
    const auto plain = network.answers();
    const auto weights = network.weights();
    LoraModelConfig config = queries;
    config.lora.init_lora_weights = init;
    model.inject(config, 1, "residual");
    EXPECT_EQ(network.weights(), weights);
    for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_LE((network.answers()[i] - plain[i]).norm(), 1e-13);
    change_everything(0.25);
    const auto trained = network.answers();
    model.inject(queries, 2, "other");
    EXPECT_EQ(network.answers(), plain);
    model.set_adapter("residual");
    EXPECT_EQ(network.answers(), trained);
    model.set_adapters({});
    EXPECT_EQ(network.answers(), plain);
    model.set_adapters({"residual", "other"});
    EXPECT_EQ(network.answers(), trained);  // B of the other one is zero
    EXPECT_EQ(network.weights(), weights);
    model.delete_adapter("residual");
    EXPECT_EQ(network.answers(), plain);
    model.unload();
    EXPECT_EQ(network.answers(), plain);
    EXPECT_EQ(network.weights(), weights);
  }
}

// What trains.

TEST_F(LoraModelTest, BiasModesSayWhichBiasesTrain) {
  LoraModelConfig config = queries;
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1);
  EXPECT_EQ(std::ranges::count_if(trainable_names(), [](const auto& name) { return name.ends_with("q_proj.bias"); }),
            2);
  EXPECT_EQ(network.v0.adapter_count(), 0);
  model.unload();
  config.lora.bias = BiasMode::all;
  model.inject(config, 1);
  EXPECT_EQ(std::ranges::count_if(trainable_names(), [](const auto& name) { return name.ends_with("_proj.bias"); }), 4);
  EXPECT_EQ(std::ranges::count(trainable_names(), "head.bias"), 1);
  EXPECT_EQ(std::ranges::count(trainable_names(), "head.weight"), 0);
}

TEST_F(LoraModelTest, MarkOnlyLoraAsTrainableFreezesWhatTheUserAdded) {
  EXPECT_EQ(trainable_names(), (Names{"norm.weight", "head.weight", "head.bias"}));
  model.mark_only_lora_as_trainable();
  EXPECT_TRUE(trainable_names().empty());
  model.mark_only_lora_as_trainable(BiasMode::all);
  EXPECT_EQ(trainable_names(), Names{"head.bias"});
}

TEST_F(LoraModelTest, ModulesToSaveTrainWholeAndAreGivenBackByUnload) {
  model.inject(queries_and_head, 1);
  const auto before = network.head.value;
  change_everything(0.5);
  EXPECT_NE(network.head.value, before);
  EXPECT_EQ(std::ranges::count(trainable_names(), "head.weight"), 1);
  EXPECT_EQ(std::ranges::count(trainable_names(), "norm.weight"), 0);
  EXPECT_TRUE(model.weights().saved.contains("head.weight"));
  EXPECT_EQ(model.weights().saved.at("head.bias").shape, std::vector<Index>{3});
  model.unload();
  EXPECT_EQ(network.head.value, before);
}

// Values, gradients and moments belong to the adapter that trains them.
TEST_F(LoraModelTest, AModuleToSaveKeepsValuesGradientAndMomentsPerAdapter) {
  const Matrix<double> users = network.head.value;
  network.head.ensure_gradient();
  network.head.gradient.setConstant(7);
  network.head.moments.steps = 3;
  AdamW<double> optimizer({.learning_rate = 0.1});
  const auto step = [&](double gradient, int times) {
    for (int i = 0; i < times; ++i) {
      for (auto& parameter : model.trainable_parameters()) parameter.gradient().setConstant(gradient);
      auto parameters = model.trainable_parameters();
      optimizer.step(parameters);
    }
  };
  model.inject(queries_and_head, 1, "first");
  EXPECT_EQ(network.head.value, users);
  EXPECT_EQ(network.head.moments.steps, 0);
  step(1, 2);
  const Trainable<double> first = network.head;
  EXPECT_EQ(first.moments.steps, 2);
  model.inject(queries_and_head, 2, "second");
  EXPECT_EQ(network.head.value, users);
  EXPECT_EQ(network.head.moments.steps, 0);
  step(-1, 5);
  const Trainable<double> second = network.head;
  for (int round = 0; round < 2; ++round) {
    for (const auto* wanted : {&first, &second}) {
      model.set_adapter(wanted == &first ? "first" : "second");
      EXPECT_EQ(network.head.value, wanted->value);
      EXPECT_EQ(network.head.gradient, wanted->gradient);
      EXPECT_EQ(network.head.moments.steps, wanted->moments.steps);
      EXPECT_EQ(network.head.moments.first, wanted->moments.first);
      EXPECT_EQ(network.head.moments.second, wanted->moments.second);
    }
    model.set_adapters({});
    EXPECT_EQ(network.head.value, users);
    EXPECT_EQ(network.head.moments.steps, 3);
    EXPECT_EQ(network.head.gradient, (Matrix<double>::Constant(3, 4, 7)));
    EXPECT_TRUE(trainable_names().empty());
  }
  EXPECT_EQ(model.weights("first").saved.at("head.weight").values,
            std::vector<double>(first.value.data(), first.value.data() + first.value.size()));
  model.delete_adapter("second");
  model.set_adapter("first");
  EXPECT_EQ(network.head.value, first.value);
  EXPECT_EQ(network.q0.adapter("first").A.rows(), 2);
  model.unload();
  EXPECT_EQ(network.head.value, users);
}

// As above for what layers hold: an adapter that waits keeps its gradients and moments.
TEST_F(LoraModelTest, FactorsKeepGradientsAndMomentsWhileOthersAreActive) {
  AdamW<double> optimizer({.learning_rate = 0.1});
  model.inject(queries_and_biases, 1, "first");
  const auto step = [&] {
    for (auto& parameter : model.trainable_parameters()) parameter.gradient().setConstant(0.5);
    auto parameters = model.trainable_parameters();
    optimizer.step(parameters);
  };
  step();
  Matrix<double> straight;
  {
    Network twin;
    LoraModel<double> other;
    twin.add_to(other);
    other.inject(queries_and_biases, 1, "first");
    for (int i = 0; i < 2; ++i) {
      for (auto& parameter : other.trainable_parameters()) parameter.gradient().setConstant(0.5);
      auto parameters = other.trainable_parameters();
      optimizer.step(parameters);
    }
    straight = twin.q0.lora_A();
  }
  model.inject(queries, 2, "second");
  step();
  step();
  model.set_adapter("first");
  EXPECT_EQ(network.q0.gradients("first").A, (Matrix<double>::Constant(2, 6, 0.5)));
  step();
  EXPECT_EQ(network.q0.lora_A(), straight);
}

TEST_F(LoraModelTest, BiasesThatAnAdapterTrainedGoWithIt) {
  const auto plain = network.answers();
  model.inject(queries_and_biases, 1, "biased");
  change_everything(0.25);
  const auto biased = network.answers();
  EXPECT_NE(biased[1], plain[1]);  // a layer that is not targeted
  EXPECT_NE(biased[5], plain[5]);
  model.inject(queries, 2, "other");
  EXPECT_EQ(network.answers(), plain);
  model.set_adapter("biased");
  EXPECT_EQ(network.answers(), biased);
  EXPECT_THROW(model.inject(queries_and_biases, 3, "biased"), ConfigError);
  model.inject(queries_and_biases, 3, "rival");  // starts from the layers' biases
  EXPECT_EQ(network.answers(), plain);
  const auto message = message_of<ConfigError>([&] { model.set_adapters({"biased", "rival"}); });
  EXPECT_NE(message.find("head.bias"), std::string::npos) << message;
  EXPECT_EQ(model.active_adapters(), Names{"rival"});
  model.set_adapters({"other", "biased"});
  EXPECT_EQ(network.answers(), biased);
  model.delete_adapter("biased");
  EXPECT_EQ(network.answers(), plain);
  EXPECT_EQ(model.active_adapters(), Names{"other"});
  model.set_adapter("rival");
  change_everything(0.5);
  model.unload();
  EXPECT_EQ(network.answers(), plain);
}

TEST_F(LoraModelTest, TwoAdaptersThatSaveTheSameModuleAreNotActiveTogether) {
  model.inject(queries_and_head, 1, "first");
  model.inject(queries_and_head, 2, "second");
  change_everything(0.5);
  const auto before = network.answers();
  const auto message = message_of<ConfigError>([&] { model.set_adapters({"first", "second"}); });
  EXPECT_NE(message.find("head.weight"), std::string::npos) << message;
  EXPECT_EQ(network.answers(), before);
  EXPECT_EQ(model.active_adapters(), Names{"second"});
}

TEST_F(LoraModelTest, ZeroGradReachesEveryParameter) {
  LoraModelConfig config = queries_and_head;
  config.lora.use_dora = true;
  config.lora.bias = BiasMode::all;
  network.norm.ensure_gradient();
  network.norm.gradient.setOnes();
  model.inject(config, 1, "first");
  for (auto& parameter : model.trainable_parameters()) parameter.gradient().setOnes();
  model.inject(queries_and_head, 2, "second");
  for (auto& parameter : model.trainable_parameters()) parameter.gradient().setOnes();
  model.zero_grad();
  for (const char* adapter : {"second", "first"}) {
    model.set_adapter(adapter);
    for (const auto& parameter : model.trainable_parameters()) {
      EXPECT_EQ(parameter.gradient().cwiseAbs().maxCoeff(), 0) << adapter << " " << parameter.name();
    }
  }
  EXPECT_EQ(network.norm.gradient.sum(), 0);
}

TEST_F(LoraModelTest, CountsAsPeftDoes) {
  const Index base = 4 * (4 * 6 + 4) + 4 + 12 + 3;
  EXPECT_EQ(model.parameter_count().all, base);
  EXPECT_EQ(model.parameter_count().trainable, 4 + 12 + 3);
  model.inject(queries_and_head, 1);
  const Index lora = 2 * (2 * 6 + 4 * 2);
  EXPECT_EQ(model.parameter_count().trainable, lora + 15);
  EXPECT_EQ(model.parameter_count().all, base + lora + 15);
  LoraModelConfig biased = queries;
  biased.lora.bias = BiasMode::lora_only;
  model.inject(biased, 2, "second");  // biases are of the base; the first adapter is still there
  EXPECT_EQ(model.parameter_count().trainable, lora + 2 * 4);
  EXPECT_EQ(model.parameter_count().all, base + 2 * lora + 15);
  model.set_adapters({"default", "second"});
  EXPECT_EQ(model.parameter_count().trainable, 2 * lora + 15 + 2 * 4);
  model.disable_adapters();
  EXPECT_EQ(model.parameter_count().trainable, 15);
  EXPECT_EQ(model.parameter_count().all, base + 2 * lora + 15);
  EXPECT_EQ((ParameterCount{576, 3605}.text()), "trainable params: 576 || all params: 3,605 || trainable%: 15.9778");
}

TEST_F(LoraModelTest, TrainsThroughItsHandles) {
  model.inject(queries, 1);
  const Matrix<double> x = random_matrix<double>(5, 6, 9);
  const Matrix<double> target = random_matrix<double>(5, 4, 10);
  SGD<double> optimizer({.learning_rate = 0.01});
  const auto loss = [&] { return (network.q0.forward(x) - target).squaredNorm(); };
  const double before = loss();
  for (int step = 0; step < 50; ++step) {
    network.q0.accumulate_gradients(Matrix<double>(network.q0.forward(x) - target));
    auto parameters = model.trainable_parameters();
    optimizer.step(parameters);
    model.zero_grad();
  }
  EXPECT_LT(loss(), 0.9 * before);
}

// Choosing and deleting.

TEST(LoraModelLifetime, WithoutItsModelANetworkStaysAsItAnswered) {
  Network network;
  LoraModel<double> model;
  network.add_to(model);
  model.inject({.lora = {.rank = 2, .alpha = 4}, .target_modules = {"q_proj"}, .modules_to_save = {"head"}}, 1);
  for (auto& parameter : model.trainable_parameters()) parameter.value().array() += 0.25;
  const auto answers = network.answers();
  model = LoraModel<double>();
  EXPECT_EQ(network.answers(), answers);
}

TEST_F(LoraModelTest, AnAdapterThatIsNotActiveWaitsWithItsValues) {
  model.inject(queries_and_head, 1, "first");
  change_everything(0.25);
  const auto weights = model.weights();
  const auto head = network.head.value;
  model.inject(queries, 2, "second");
  EXPECT_EQ(model.active_adapter(), "second");
  EXPECT_NE(network.q0.lora_B(), weights.modules.at("blocks.0.q_proj").B);
  EXPECT_NE(network.head.value, head);
  model.set_adapter("first");
  EXPECT_EQ(network.q0.lora_A(), weights.modules.at("blocks.0.q_proj").A);
  EXPECT_EQ(network.q1.lora_B(), weights.modules.at("blocks.1.q_proj").B);
  EXPECT_EQ(network.head.value, head);
  model.delete_adapter("second");
  EXPECT_EQ(model.adapter_names(), Names{"first"});
  EXPECT_THROW(model.set_adapter("second"), ConfigError);
}

TEST_F(LoraModelTest, ChoosingTheActiveOneAgainDoesNothing) {
  model.inject(queries_and_head, 1);
  change_everything(0.25);
  const Matrix<double> x = random_matrix<double>(3, 6, 9);
  const Matrix<double> y = network.q0.forward(x);
  const auto handles = model.trainable_parameters();
  model.set_adapter("default");
  handles[0].value()(0, 0) += 1;  // still the same memory
  EXPECT_EQ(network.q0.lora_A()(0, 0), handles[0].value()(0, 0));
  EXPECT_NO_THROW(network.q0.accumulate_gradients(y));  // the tape is still there
  model.merge();
  const auto merged = network.weights();
  EXPECT_NO_THROW(model.set_adapter("default"));
  EXPECT_EQ(network.weights(), merged);
  EXPECT_TRUE(model.merged());
}

// set_adapter did nothing because the model had not changed.
TEST_F(LoraModelTest, ALayerThatChoseForItselfFollowsTheModelAgain) {
  model.inject(queries, 1, "a");
  model.inject(queries_and_head, 2, "b");
  change_everything(0.25);
  const auto answers = network.answers();
  network.q0.set_adapter("a");
  model.set_adapter("b");
  EXPECT_EQ(network.q0.active_adapters(), Names{"b"});
  EXPECT_EQ(network.answers(), answers);
  network.q0.set_adapter("a");
  model.merge();
  EXPECT_THROW(model.set_adapter("b"), StateError);
}

TEST_F(LoraModelTest, DeletingTheActiveAdapterLeavesNoLayerAdapted) {
  const auto plain = network.answers();
  model.inject(queries, 1, "first");
  change_everything(0.25);
  model.inject(queries_and_head, 2, "second");
  change_everything(0.25);
  model.delete_adapter(model.active_adapters().front());  // the name is one of those that go
  EXPECT_TRUE(model.active_adapters().empty());
  EXPECT_TRUE(network.q0.active_adapters().empty());
  EXPECT_EQ(network.answers(), plain);
  EXPECT_TRUE(trainable_names().empty());
  EXPECT_EQ(model.adapter_names(), Names{"first"});
  EXPECT_EQ(network.q0.adapter_names(), Names{"first"});
  model.delete_adapter("first");
  EXPECT_EQ(network.q0.adapter_count(), 0);
  EXPECT_NO_THROW(model.inject(queries, 3, "first"));
}

TEST_F(LoraModelTest, DeletingOneOfSeveralKeepsTheOthersActive) {
  for (const char* name : {"a", "b", "c"}) {
    model.inject(queries, 1, name);
    change_everything(0.1);
  }
  model.set_adapters({"c", "a"});
  const auto both = network.answers();
  model.delete_adapter("b");
  EXPECT_EQ(network.answers(), both);
  EXPECT_EQ(network.q1.active_adapters(), (Names{"c", "a"}));
  model.delete_adapter("a");
  EXPECT_EQ(network.q1.active_adapters(), Names{"c"});
  EXPECT_EQ(model.active_adapters(), Names{"c"});
}

// Loading.

TEST_F(LoraModelTest, LoadTakesWhatWeightsGave) {
  LoraModelConfig config = queries_and_head;
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1);
  change_everything(0.25);
  Network fresh;
  LoraModel<double> other;
  fresh.add_to(other);
  other.load(config, model.weights());
  EXPECT_EQ(fresh.answers(), network.answers());
  EXPECT_EQ(fresh.q1.bias(), network.q1.bias());
}

TEST_F(LoraModelTest, LoadListsAllThatDoesNotFitAndChangesNothing) {
  model.inject(queries, 1);
  auto weights = model.weights();
  model.unload();
  weights.modules.emplace("blocks.7.q_proj", weights.modules.at("blocks.0.q_proj"));
  weights.modules.at("blocks.1.q_proj").A.resize(2, 5);
  weights.modules.erase("blocks.0.q_proj");
  weights.saved.emplace("head.weight", SavedTensor<double>{{3, 4}, std::vector<double>(12)});
  const auto before = network.weights();
  const auto message = message_of<ConfigError>([&] { model.load(queries, weights); });
  EXPECT_NE(message.find("missing blocks.0.q_proj"), std::string::npos) << message;
  EXPECT_NE(message.find("misshapen blocks.1.q_proj (A is 2 x 5, expected 2 x 6)"), std::string::npos) << message;
  EXPECT_NE(message.find("unknown blocks.7.q_proj"), std::string::npos) << message;
  EXPECT_NE(message.find("unknown head.weight"), std::string::npos) << message;
  EXPECT_TRUE(model.active_adapter().empty());
  EXPECT_EQ(network.q1.adapter_count(), 0);
  EXPECT_EQ(network.weights(), before);
}

// The message of a model with 20,000 modules of other names had 2 MB, and took seconds.
TEST_F(LoraModelTest, LoadListsTheFirstTwentyThatDoNotFit) {
  model.inject(queries, 1);
  auto weights = model.weights();
  model.unload();
  for (int i = 10; i < 40; ++i) {
    weights.modules.emplace("blocks." + std::to_string(i) + ".q_proj", weights.modules.at("blocks.0.q_proj"));
  }
  const auto message = message_of<ConfigError>([&] { model.load(queries, weights); });
  EXPECT_TRUE(message.ends_with(", unknown blocks.28.q_proj, unknown blocks.29.q_proj, ... (30)")) << message;
}

// With pissa_niter the start is drawn at random, and the values that training gave belong to it.
TEST_F(LoraModelTest, AnAdapterOfARandomStartIsLoadedWithItsSeedOrNotAtAll) {
  LoraModelConfig config = queries;
  config.lora.init_lora_weights = InitLoraWeights::pissa;
  config.lora.pissa_niter = 1;
  model.inject(config, 7);
  change_everything(0.25);
  const auto weights = model.weights();
  const auto answers = network.answers();
  model.unload();
  const auto before = network.answers();
  EXPECT_EQ(message_of<ConfigError>([&] { model.load(config, weights); }),
            "LoraModel::load: seed: expected the one that an adapter with pissa_niter was injected with, got none");
  EXPECT_TRUE(model.adapter_names().empty());
  EXPECT_EQ(network.answers(), before);
  model.load(config, weights, 7);
  EXPECT_EQ(network.answers(), answers);
  model.unload();
  model.load(config, weights, 8);  // what would have gone wrong
  EXPECT_GT((network.answers()[0] - answers[0]).norm(), 1e-3);
  model.unload();
  config.lora.pissa_niter = 0;  // the weight determines this start
  model.inject(config, 7);
  change_everything(0.25);
  const auto exact_weights = model.weights();
  const auto exact = network.answers();
  model.unload();
  model.load(config, exact_weights);
  EXPECT_EQ(network.answers(), exact);
}

// Merging.

TEST_F(LoraModelTest, EvalMergesTrainUnmergesToTheSameBits) {
  model.inject(queries, 1);
  change_everything(0.25);
  const auto before = network.weights();
  const Matrix<double> x = random_matrix<double>(3, 6, 9);
  const Matrix<double> y = network.q0.infer(x);
  for (int round = 0; round < 2; ++round) {
    model.eval();
    model.eval();
    EXPECT_TRUE(model.merged());
    EXPECT_LE((network.q0.infer(x) - y).cwiseAbs().maxCoeff(), 1e-13);
    EXPECT_NE(network.q0.weight(), before[0]);
    model.train();
    model.train();
    EXPECT_FALSE(model.merged());
    EXPECT_EQ(network.weights(), before);
  }
}

TEST_F(LoraModelTest, MergingIsAllOrNothing) {
  model.inject(queries, 1, "good");
  change_everything(0.25);
  model.inject(queries, 1, "bad");
  change_everything(0.25);
  network.q1.set_factors("bad", Matrix<double>::Constant(2, 6, 1e200), Matrix<double>::Constant(4, 2, 1e200));
  const auto before = network.weights();
  EXPECT_THROW(model.merge(), StateError);
  EXPECT_FALSE(model.merged());
  EXPECT_EQ(network.weights(), before);
  EXPECT_THROW(model.eval(), StateError);
  EXPECT_TRUE(network.q0.training() && network.v0.training() && network.q1.training());
  EXPECT_FALSE(network.q0.merged());
  EXPECT_EQ(network.weights(), before);
  model.merge({"good"});
  const auto good = network.weights();
  EXPECT_THROW(model.merge({"bad"}), StateError);
  EXPECT_EQ(network.weights(), good);
  EXPECT_EQ(network.q0.merged_adapters(), Names{"good"});
  EXPECT_THROW(model.eval(), StateError);
  EXPECT_TRUE(network.q0.training());
  EXPECT_THROW(model.merge_and_unload(), StateError);
  EXPECT_EQ(network.weights(), good);
  EXPECT_EQ(model.adapter_names(), (Names{"bad", "good"}));
  model.unmerge();
  EXPECT_EQ(network.weights(), before);
}

// One of the two biases was dropped.
TEST_F(LoraModelTest, TwoAdaptersThatTrainOneBiasAreNotMergedTogether) {
  LoraModelConfig config = queries;
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1, "a");
  model.inject(config, 2, "b");  // now the active one
  const auto before = network.answers();
  const auto refused = [&](const Names& names) {
    EXPECT_EQ(message_of<ConfigError>([&] { model.merge(names); }),
              "LoraModel::merge: adapters: expected one that trains blocks.0.q_proj.bias, got a and b");
    EXPECT_EQ(network.answers(), before);
    EXPECT_FALSE(model.merged());
  };
  refused({"a", "b"});
  refused({"a"});  // beside the active one
  model.set_adapters({});
  model.merge({"a"});
  EXPECT_THROW(model.merge({"b"}), ConfigError);  // beside the merged one
  EXPECT_EQ(network.q0.merged_adapters(), Names{"a"});
}

// Only the first of the two biases answered, and merging dropped the other one.
TEST_F(LoraModelTest, ALayersOwnCallsUseOneOfTwoAdaptersThatTrainItsBias) {
  LoraModelConfig config = queries;
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1, "a");
  model.inject(config, 2, "b");  // now the active one
  EXPECT_EQ(message_of<ConfigError>([&] {
              network.q0.set_adapters({"a", "b"});
            }),
            "LoraLinear::set_adapters: adapters: expected one that trains the layer's bias, got \"a\" and \"b\"");
  EXPECT_EQ(network.q0.active_adapters(), Names{"b"});
  EXPECT_THROW(network.q0.merge({"a"}), ConfigError);
  EXPECT_FALSE(network.q0.merged());
  network.q0.set_adapter("a").merge();
  EXPECT_THROW(network.q0.merge({"b"}), ConfigError);
  EXPECT_THROW(model.merge_and_unload(), ConfigError);  // of "b", the model's own
  EXPECT_EQ(network.q0.merged_adapters(), Names{"a"});
}

// The second bias answered no more, as the adapter that became active had one of its own.
TEST_F(LoraModelTest, DeletingALayersAdapterActivatesNoSecondOneThatTrainsItsBias) {
  LoraModelConfig config = queries;
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1, "a");
  model.inject(config, 2, "b");
  network.q0.add_adapter("c", {.rank = 2}, 3);
  network.q0.set_adapter("c").merge({"b"});
  EXPECT_EQ(message_of<ConfigError>([&] { network.q0.delete_adapter("c"); }),
            "LoraLinear::delete_adapter: adapters: expected one that trains the layer's bias, got \"a\" and \"b\"");
  EXPECT_EQ(network.q0.adapter_names(), (Names{"a", "b", "c"}));
  EXPECT_EQ(network.q0.active_adapters(), Names{"c"});
  network.q0.unmerge();
  network.q0.delete_adapter("c");
  EXPECT_EQ(network.q0.active_adapters(), Names{"a"});
}

// Its head stayed at the frozen values, and merge_and_unload lost the trained ones.
TEST_F(LoraModelTest, AnAdapterWithModulesToSaveIsMergedOnlyWhileItIsActive) {
  model.inject(queries_and_head, 1, "a");
  model.inject(queries, 2, "b");
  EXPECT_EQ(
      message_of<StateError>([&] {
        model.merge({"b", "a"});
      }),
      "LoraModel::merge: adapters: expected active ones where parameters train whole (call set_adapters() first), "
      "got a");
  EXPECT_FALSE(model.merged());
  model.set_adapters({"a", "b"});
  EXPECT_NO_THROW(model.merge({"a"}));
  model.unmerge();
  model.inject(queries_and_biases, 3, "c");
  model.set_adapter("b");
  EXPECT_THROW(model.merge({"c"}), StateError);  // its head.bias
}

TEST_F(LoraModelTest, MergeAndUnloadLeavesPlainLayersWithTheMergedWeights) {
  model.inject(queries_and_head, 1);
  change_everything(0.25);
  const Matrix<double> merged = network.q0.weight() + network.q0.delta_weight();
  const Matrix<double> head = network.head.value;
  model.merge_and_unload();
  EXPECT_LE((network.q0.weight() - merged).cwiseAbs().maxCoeff(), 1e-15);
  EXPECT_EQ(network.head.value, head);
  EXPECT_EQ(network.q0.adapter_count(), 0);
  EXPECT_FALSE(network.q0.merged());
  EXPECT_TRUE(model.adapter_names().empty());
  EXPECT_TRUE(model.active_adapters().empty());
  EXPECT_NO_THROW(model.inject(queries, 2));
  model.unload();
  EXPECT_EQ(network.head.value, head);
}

// An unloaded model answers as before, with every option.
TEST(LoraModelUnloading, MergeAndUnloadAnswersAsBefore) {
  using Init = InitLoraWeights;
  const Names all = {"embed", "grouped", "conv", "block.qkv", "block.out", "block.gate"};
  const Names linear = {"block.out", "block.gate"};
  const std::vector<std::pair<LoraConfig, Names>> cases = {
      {{.rank = 2, .alpha = 3}, all},
      {{.rank = 2, .alpha = 3, .use_dora = true}, all},
      {{.rank = 2, .alpha = 3, .use_rslora = true, .bias = BiasMode::all}, all},
      {{.rank = 2, .alpha = 3, .bias = BiasMode::lora_only}, {"conv", "block.qkv", "block.out"}},
      {{.rank = 2, .alpha = 3, .lora_bias = true}, {"grouped", "conv", "block.qkv", "block.out", "block.gate"}},
      {{.rank = 2, .alpha = 3, .lora_bias = true, .bias = BiasMode::all}, {"grouped", "block.qkv", "block.gate"}},
      {{.rank = 2, .alpha = 3, .init_lora_weights = Init::pissa}, linear},
      {{.rank = 2, .alpha = 3, .use_dora = true, .init_lora_weights = Init::olora}, linear},
      {{.rank = 2, .alpha = 3, .merge_weights = false}, all},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    for (const bool evaluated : {false, true}) {
      ModelNetwork network;
      LoraModel<double>& model = network.model;
      LoraModelConfig config{.lora = cases[i].first, .modules_to_save = {"head"}};
      config.target_modules = ModuleSelector::listed(cases[i].second);
      model.inject({.lora = {.rank = 1}, .target_modules = {"out"}}, 3, "waiting");
      network.randomize(70);
      model.inject(config, 1);
      network.randomize(40, 0.5);
      model.set_scale("default", 1.5);
      if (evaluated) model.eval();
      const auto answers = network.answers();
      const Matrix<double> head = network.head.value;
      const Matrix<double> head_bias = network.head_bias.value;
      model.merge_and_unload();
      EXPECT_LE(difference(network.answers(), answers), 1e-12) << i;
      EXPECT_TRUE(same_bits(network.head.value, head));
      EXPECT_TRUE(same_bits(network.head_bias.value, head_bias));
      network.each_layer([&](const std::string& name, auto& layer, const auto& /*x*/) {
        EXPECT_EQ(layer.adapter_count(), 0) << name;
        EXPECT_FALSE(layer.merged()) << name;
        EXPECT_EQ(layer.training(), !evaluated) << name;
      });
      const auto weights = network.weights();
      model.train();
      model.unmerge();
      model.unload();
      EXPECT_TRUE(same_bits(network.weights(), weights)) << i;
    }
  }
}

TEST(LoraModelUnloading, MergeAndUnloadKeepsWhatIsMergedBesideTheActiveOnes) {
  ModelNetwork network;
  LoraModel<double>& model = network.model;
  model.inject({.lora = {.rank = 2, .lora_bias = true}, .target_modules = {"qkv", "out"}}, 1, "beside");
  network.randomize(10);
  model.inject({.lora = {.rank = 1, .lora_bias = true}, .target_modules = {"out"}}, 2, "active");
  network.randomize(20);
  model.merge({"beside"});
  const auto answers = network.answers();
  model.merge_and_unload();
  EXPECT_LE(difference(network.answers(), answers), 1e-13);
}

// The weight had the update of the model's adapter, and the bias was that of the layer's.
TEST(LoraModelUnloading, MergeAndUnloadKeepsTheBiasOfTheModelsAdapterWhereALayerChoseAnother) {
  ModelNetwork network;
  LoraModel<double>& model = network.model;
  model.inject({.lora = {.rank = 2}, .target_modules = {"out"}}, 1, "plain");
  model.inject({.lora = {.rank = 2, .bias = BiasMode::lora_only}, .target_modules = {"out"}}, 2, "biased");
  network.randomize(10);
  const auto answers = network.answers();
  network.out.set_adapter("plain");
  model.merge_and_unload();
  EXPECT_LE(difference(network.answers(), answers), 1e-13);
}

TEST(LoraModelUnloading, UnloadGivesEverythingBack) {
  ModelNetwork network;
  LoraModel<double>& model = network.model;
  model.mark_only_lora_as_trainable();
  const Observation before = observe(network);
  for (const bool disabled : {false, true}) {
    model.inject({.lora = {.rank = 2, .use_dora = true, .bias = BiasMode::all},
                  .target_modules = {"embed", "grouped", "conv", "out"},
                  .modules_to_save = {"head"}},
                 1, "first");
    network.randomize(10);
    static_cast<void>(network.out.forward(random_matrix<double>(4, 6, 1)));
    model.inject({.lora = {.rank = 2}, .target_modules = {"embed", "qkv", "gate"}}, 1, "second");
    network.randomize(30);
    model.set_adapters({"first", "second"});
    model.set_row_adapters({"first", "second", "__base__"});
    model.merge();
    if (disabled) model.disable_adapters();
    model.unload();
    EXPECT_TRUE(same(before, observe(network)));
    const Matrix<double> five = random_matrix<double>(5, 4, 1);  // not the number of rows that chose
    EXPECT_NO_THROW(static_cast<void>(network.gate.infer(five)));
  }
  // A model that was unloaded trains as a new one.
  const LoraModelConfig dropping{.lora = {.rank = 2, .dropout = 0.5}, .target_modules = {"out"}};
  const auto trained = [&](ModelNetwork& one) {
    one.model.inject(dropping, 7);
    one.randomize(50);
    return Matrix<double>(one.out.forward(random_matrix<double>(4, 6, 1)));
  };
  ModelNetwork fresh;
  EXPECT_TRUE(same_bits(trained(network), trained(fresh)));
}

}  // namespace
}  // namespace lora::testing::lora_model_test
