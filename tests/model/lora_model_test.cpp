// A model of a few named layers: what is adapted, what trains, and what comes back.
#include "lora/model/lora_model.hpp"

#include <algorithm>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "lora/model/model_layers.hpp"
#include "lora/optim/sgd.hpp"

namespace lora {
namespace {

using Linear = LoraLinear<double>;

Matrix<double> numbers(Index rows, Index cols, int seed) {
  Matrix<double> m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = std::sin(static_cast<double>(i * 7 + seed));
  return m;
}

Linear plain_linear(Index out, Index in, int seed, bool transposed = false) {
  const LoraConfig config{.rank = 0, .fan_in_fan_out = transposed};
  const RowVector<double> bias = numbers(1, out, seed + 1);
  return transposed ? Linear(numbers(in, out, seed), bias, config, 0) : Linear(numbers(out, in, seed), bias, config, 0);
}

// A user's class: two blocks of two layers, and a head that is trained whole or not at all.
struct Network {
  Linear q0 = plain_linear(4, 6, 1);
  Linear v0 = plain_linear(4, 6, 2);
  Linear q1 = plain_linear(4, 6, 3);
  Linear v1 = plain_linear(4, 6, 4, true);
  Trainable<double> head{numbers(3, 4, 5), {}, {}};
  Trainable<double> head_bias{numbers(1, 3, 6), {}, {}};
  Trainable<double> norm{numbers(1, 4, 7), {}, {}};

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
    return {q0.weight(), v0.weight(), q1.weight(), v1.weight(), head.value, head_bias.value};
  }
};

class LoraModelTest : public ::testing::Test {
 protected:
  LoraModelTest() { network.add_to(model); }

  std::vector<std::string> trainable_names() {
    std::vector<std::string> names;
    for (const auto& parameter : model.trainable_parameters()) names.push_back(parameter.name());
    return names;
  }
  void change_everything(double amount) {
    for (auto& parameter : model.trainable_parameters()) parameter.value().array() += amount;
  }

  Network network;
  LoraModel<double> model;
  const LoraModelConfig queries{.lora = {.rank = 2, .alpha = 4}, .target_modules = {"q_proj"}};
};

template <class ErrorType, class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const ErrorType& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error of the type expected";
  return {};
}

TEST_F(LoraModelTest, AdaptsTheLayersThatTheConfigurationNames) {
  const auto report = model.inject(queries, 1);
  EXPECT_EQ(report.modules, (std::vector<std::string>{"blocks.0.q_proj", "blocks.1.q_proj"}));
  EXPECT_TRUE(report.warnings.empty());
  EXPECT_EQ(network.q0.rank(), 2);
  EXPECT_EQ(network.v0.rank(), 0);
  EXPECT_EQ(trainable_names(),
            (std::vector<std::string>{"blocks.0.q_proj.lora_A.weight", "blocks.0.q_proj.lora_B.weight",
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

TEST_F(LoraModelTest, PatternsGiveRanksAndAlphas) {
  LoraModelConfig config = queries;
  config.target_modules = {"q_proj", "v_proj"};
  config.rank_pattern = {{"blocks.1.q_proj", 3}, {"q_proj", 1}};
  config.alpha_pattern = {{"v_proj", 6}};
  model.inject(config, 1);
  EXPECT_EQ(network.q0.rank(), 1);
  EXPECT_EQ(network.q1.rank(), 3);
  EXPECT_EQ(network.v0.rank(), 2);
  EXPECT_EQ(network.v0.scaling(), 3.0);
  EXPECT_EQ(network.q0.scaling(), 4.0);
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

TEST_F(LoraModelTest, NothingMatchedIsAnErrorAndChangesNothing) {
  LoraModelConfig config = queries;
  config.target_modules = {"k_proj"};
  const auto message = message_of<ConfigError>([&] { model.inject(config, 1); });
  EXPECT_NE(message.find("k_proj"), std::string::npos) << message;
  EXPECT_TRUE(model.active_adapter().empty());
  EXPECT_EQ(network.q0.rank(), 0);
}

TEST_F(LoraModelTest, BiasModesSayWhichBiasesTrain) {
  LoraModelConfig config = queries;
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1);
  EXPECT_EQ(std::ranges::count_if(trainable_names(), [](const auto& name) { return name.ends_with("q_proj.bias"); }),
            2);
  model.unload();
  config.lora.bias = BiasMode::all;
  model.inject(config, 1);
  EXPECT_EQ(std::ranges::count_if(trainable_names(), [](const auto& name) { return name.ends_with("_proj.bias"); }), 4);
  EXPECT_EQ(std::ranges::count(trainable_names(), "head.bias"), 1);
  EXPECT_EQ(std::ranges::count(trainable_names(), "head.weight"), 0);
}

TEST_F(LoraModelTest, ModulesToSaveTrainWholeAndAreGivenBackByUnload) {
  LoraModelConfig config = queries;
  config.modules_to_save = {"head"};
  model.inject(config, 1);
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

TEST_F(LoraModelTest, ALayerCannotBeSavedWhole) {
  LoraModelConfig config = queries;
  config.modules_to_save = {"v_proj"};
  const auto message = message_of<ConfigError>([&] { model.inject(config, 1); });
  EXPECT_NE(message.find("blocks.0.v_proj"), std::string::npos) << message;
  EXPECT_EQ(network.q0.rank(), 0);
}

TEST_F(LoraModelTest, CountsAsPeftDoes) {
  const Index base = 4 * (4 * 6 + 4) + 4 + 12 + 3;
  EXPECT_EQ(model.parameter_count().all, base);
  LoraModelConfig config = queries;
  config.modules_to_save = {"head"};
  model.inject(config, 1);
  const Index lora = 2 * (2 * 6 + 4 * 2);
  EXPECT_EQ(model.parameter_count().trainable, lora + 15);
  EXPECT_EQ(model.parameter_count().all, base + lora + 15);
  EXPECT_EQ((ParameterCount{576, 3605}.text()), "trainable params: 576 || all params: 3,605 || trainable%: 15.9778");
}

TEST_F(LoraModelTest, MarkOnlyLoraAsTrainableFreezesWhatTheUserAdded) {
  EXPECT_EQ(trainable_names(), (std::vector<std::string>{"norm.weight", "head.weight", "head.bias"}));
  model.mark_only_lora_as_trainable();
  EXPECT_TRUE(trainable_names().empty());
  model.mark_only_lora_as_trainable(BiasMode::all);
  EXPECT_EQ(trainable_names(), std::vector<std::string>{"head.bias"});
}

TEST_F(LoraModelTest, EvalMergesTrainUnmergesToTheSameBits) {
  model.inject(queries, 1);
  change_everything(0.25);
  const auto before = network.weights();
  const Matrix<double> x = numbers(3, 6, 9);
  const Matrix<double> y = network.q0.infer(x);
  model.eval();
  EXPECT_TRUE(model.merged());
  EXPECT_LE((network.q0.infer(x) - y).cwiseAbs().maxCoeff(), 1e-13);
  EXPECT_NE(network.q0.weight(), before[0]);
  model.train();
  EXPECT_FALSE(model.merged());
  EXPECT_EQ(network.weights(), before);
}

TEST_F(LoraModelTest, MergingIsAllOrNothing) {
  model.inject(queries, 1);
  change_everything(0.25);
  const auto before = network.weights();
  network.q1.set_factors(Matrix<double>::Constant(2, 6, 1e200), Matrix<double>::Constant(4, 2, 1e200));
  EXPECT_THROW(model.merge(), StateError);
  EXPECT_FALSE(model.merged());
  EXPECT_EQ(network.weights(), before);
  EXPECT_THROW(model.eval(), StateError);
  EXPECT_TRUE(network.q0.training());
  EXPECT_EQ(network.weights(), before);
}

TEST_F(LoraModelTest, MergeAndUnloadLeavesPlainLayersWithTheMergedWeights) {
  model.inject(queries, 1);
  change_everything(0.25);
  const Matrix<double> merged = network.q0.weight() + network.q0.delta_weight();
  model.merge_and_unload();
  EXPECT_LE((network.q0.weight() - merged).cwiseAbs().maxCoeff(), 1e-15);
  EXPECT_EQ(network.q0.rank(), 0);
  EXPECT_FALSE(network.q0.merged());
  EXPECT_TRUE(model.adapter_names().empty());
  EXPECT_NO_THROW(model.inject(queries, 2));
}

TEST_F(LoraModelTest, UnloadGivesTheWeightsBack) {
  const auto before = network.weights();
  model.inject(queries, 1);
  change_everything(0.25);
  model.eval();
  model.unload();
  EXPECT_EQ(network.weights(), before);
  EXPECT_EQ(network.q0.rank(), 0);
}

TEST_F(LoraModelTest, AnAdapterThatIsNotActiveWaitsWithItsValues) {
  LoraModelConfig config = queries;
  config.modules_to_save = {"head"};
  model.inject(config, 1, "first");
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
  EXPECT_EQ(model.adapter_names(), std::vector<std::string>{"first"});
  EXPECT_THROW(model.set_adapter("second"), ConfigError);
}

TEST_F(LoraModelTest, LoadTakesWhatStateGave) {
  LoraModelConfig config = queries;
  config.modules_to_save = {"head"};
  config.lora.bias = BiasMode::lora_only;
  model.inject(config, 1);
  change_everything(0.25);
  const auto weights = model.weights();
  const Matrix<double> x = numbers(3, 6, 9);

  Network fresh;
  LoraModel<double> other;
  fresh.add_to(other);
  other.load(config, weights);
  EXPECT_EQ(fresh.q0.infer(x), network.q0.infer(x));
  EXPECT_EQ(fresh.head.value, network.head.value);
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
  EXPECT_NE(message.find("misshapen blocks.1.q_proj ( A is 2 x 5 for 2 x 6)"), std::string::npos) << message;
  EXPECT_NE(message.find("unknown blocks.7.q_proj"), std::string::npos) << message;
  EXPECT_NE(message.find("unknown head.weight"), std::string::npos) << message;
  EXPECT_TRUE(model.active_adapter().empty());
  EXPECT_EQ(network.q1.rank(), 0);
  EXPECT_EQ(network.weights(), before);
}

TEST_F(LoraModelTest, NamesAreDottedAndUnique) {
  Linear extra = plain_linear(4, 6, 8);
  for (const char* name : {"", ".a", "a.", "a..b", "blocks.0.q_proj", "head.weight"}) {
    EXPECT_THROW(model.add(name, extra), ConfigError) << name;
  }
  Trainable<double> vector{numbers(1, 4, 1), {}, {}};
  EXPECT_THROW(model.add("other.weight", vector, {3}), ShapeError);
  model.inject(queries, 1);
  EXPECT_THROW(model.add("extra", extra), StateError);
}

TEST_F(LoraModelTest, CallsThatDoNotFitTheState) {
  EXPECT_THROW(static_cast<void>(model.weights()), StateError);
  EXPECT_THROW(model.merge_and_unload(), StateError);
  EXPECT_THROW(model.delete_adapter("default"), ConfigError);
  model.inject(queries, 1);
  EXPECT_THROW(model.inject(queries, 1), ConfigError);
  model.merge();
  EXPECT_THROW(model.inject(queries, 1, "second"), StateError);
  EXPECT_THROW(model.delete_adapter("default"), StateError);
}

TEST_F(LoraModelTest, TrainsThroughItsHandles) {
  model.inject(queries, 1);
  const Matrix<double> x = numbers(5, 6, 9);
  const Matrix<double> target = numbers(5, 4, 10);
  SGD<double> optimizer({.learning_rate = 0.005});
  const auto loss = [&] { return (network.q0.forward(x) - target).squaredNorm(); };
  const double before = loss();
  for (int step = 0; step < 30; ++step) {
    network.q0.accumulate_gradients(Matrix<double>(network.q0.forward(x) - target));
    auto parameters = model.trainable_parameters();
    optimizer.step(parameters);
    model.zero_grad();
  }
  EXPECT_LT(loss(), 0.9 * before);
}

}  // namespace
}  // namespace lora
