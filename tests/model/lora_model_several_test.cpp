// SPDX-License-Identifier: MIT
// Several adapters of a model at once: sums, merged subsets, scales, rows that choose, and adapters switched off.
#include <algorithm>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "lora/model/lora_model.hpp"
#include "support/model_network.hpp"

namespace lora::testing::lora_model_several_test {
namespace {

using Names = std::vector<std::string>;
using Answers = std::map<std::string, Matrix<double>>;

// "a" is everywhere, "b" has biases of B, "c" has DoRA; none has values of its own for the layers' biases but "b".
class LoraModelSeveral : public ::testing::Test {
 protected:
  LoraModelSeveral() {
    plain = network.answers();
    weights = network.weights();
    model.inject(
        {.lora = {.rank = 2, .alpha = 3}, .target_modules = {"embed", "grouped", "conv", "qkv", "out", "gate"}}, 1,
        "a");
    network.randomize(10);
    model.inject({.lora = {.rank = 4, .alpha = 3, .lora_bias = true, .bias = BiasMode::lora_only},
                  .target_modules = {"grouped", "qkv", "out"}},
                 2, "b");
    network.randomize(20);
    model.inject({.lora = {.rank = 2, .alpha = 3, .use_rslora = true, .use_dora = true},
                  .target_modules = {"embed", "conv", "qkv", "out"}},
                 3, "c");
    network.randomize(30);
    model.set_scale("c", 0.5);
    for (const char* name : {"a", "b", "c"}) {
      model.set_adapter(name);
      alone[name] = network.answers();
    }
  }

  // plain + the change that each of the adapters makes alone.
  [[nodiscard]] Answers sum(const Names& names) const {
    Answers result = plain;
    for (const std::string& name : names) {
      for (auto& [layer, answer] : result) answer += alone.at(name).at(layer) - plain.at(layer);
    }
    return result;
  }
  [[nodiscard]] std::map<std::string, Matrix<double>> frozen_weights() {
    auto all = network.weights();
    std::erase_if(all, [](const auto& entry) { return !entry.first.ends_with(".weight"); });
    return all;
  }

  ModelNetwork network;
  LoraModel<double>& model = network.model;
  Answers plain;
  std::map<std::string, Matrix<double>> weights;
  std::map<std::string, Answers> alone;
};

TEST_F(LoraModelSeveral, AnswersAreTheSumOfTheActiveOnes) {
  Names names = {"a", "b", "c"};
  do {
    for (std::size_t count = 0; count <= names.size(); ++count) {
      const Names chosen(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(count));
      model.set_adapters(chosen);
      EXPECT_EQ(model.active_adapters(), chosen);
      EXPECT_LE(difference(network.answers(), sum(chosen)), 1e-12) << joined(chosen);
    }
  } while (std::next_permutation(names.begin(), names.end()));
  for (const char* name : {"a", "b", "c"}) {
    model.set_adapter(name);
    EXPECT_TRUE(same_bits(network.answers(), alone[name])) << name;
  }
}

TEST_F(LoraModelSeveral, LayersThatLackAnAdapterAnswerWithTheOthers) {
  model.set_adapters({"b", "c"});
  EXPECT_TRUE(same_bits(network.answers().at("block.gate"), plain.at("block.gate")));
  EXPECT_TRUE(same_bits(network.answers().at("grouped"), alone["b"].at("grouped")));
  EXPECT_EQ(network.embed.active_adapters(), Names{"c"});
}

TEST_F(LoraModelSeveral, AnySubsetMergesAndAnyOfItIsTakenOutAgainInAnyOrder) {
  model.set_adapters({});
  for (unsigned subset = 0; subset < 8; ++subset) {
    Names merging;
    for (const char* name : {"b", "c", "a"}) {
      if ((subset >> static_cast<unsigned>(name[0] - 'a') & 1U) != 0) merging.push_back(name);
    }
    Names leaving = merging;
    std::sort(leaving.begin(), leaving.end());
    do {
      model.merge(merging);
      EXPECT_EQ(model.merged(), !merging.empty());
      Names left = merging;
      for (const std::string& name : leaving) {
        // Where only "b" trains the bias, and it is not active, its bias does not count.
        const auto answers = network.answers();
        for (const char* layer : {"embed", "conv", "block.gate"}) {
          EXPECT_LE((answers.at(layer) - sum(left).at(layer)).norm(), 1e-11) << layer << " " << joined(left);
        }
        model.unmerge({name});
        std::erase(left, name);
        ModelNetwork twin;  // W as if the others had been merged alone
        twin.model.load(model.config("a"), model.weights("a"), 0, "a");
        twin.model.load(model.config("b"), model.weights("b"), 0, "b");
        twin.model.load(model.config("c"), model.weights("c"), 0, "c");
        twin.model.set_scale("c", 0.5);
        twin.model.set_adapters({});
        twin.model.merge(left);
        EXPECT_TRUE(same_bits(frozen_weights(),
                              [&] {
                                auto all = twin.weights();
                                std::erase_if(all, [](const auto& entry) { return !entry.first.ends_with(".weight"); });
                                return all;
                              }()))
            << joined(left);
      }
      EXPECT_FALSE(model.merged());
      EXPECT_TRUE(same_bits(network.weights(), weights));
    } while (std::next_permutation(leaving.begin(), leaving.end()));
  }
}

TEST_F(LoraModelSeveral, MergedOrNotTheAnswerIsTheSame) {
  const Names all = {"a", "b", "c"};
  model.set_adapters(all);
  const Answers wanted = sum(all);
  model.eval();
  EXPECT_EQ(network.out.merged_adapters(), (Names{"c", "a", "b"}));  // DoRA at the bottom
  EXPECT_LE(difference(network.answers(), wanted), 1e-11);
  model.unmerge({"a"});
  EXPECT_LE(difference(network.answers(), wanted), 1e-11);
  model.merge({"a"});
  model.unmerge({"c"});
  // The norms of DoRA are against W0, so it does not answer over what others are merged into.
  EXPECT_THROW(static_cast<void>(network.out.infer(random_matrix<double>(2, 6, 1))), StateError);
  model.train();
  EXPECT_LE(difference(network.answers(), wanted), 1e-12);
  EXPECT_TRUE(same_bits(frozen_weights(), [&] {
    auto before = weights;
    std::erase_if(before, [](const auto& entry) { return !entry.first.ends_with(".weight"); });
    return before;
  }()));
}

TEST_F(LoraModelSeveral, EvalAndTrainAreAllOrNoneWhenALaterLayerFails) {
  model.set_adapters({"a", "c"});
  for (const bool beside : {false, true}) {
    if (beside) model.merge({"c"});
    network.gate.set_factors("a", Matrix<double>::Constant(2, 4, 1e200), Matrix<double>::Constant(5, 2, 1e200));
    const Observation before = observe(network);
    EXPECT_NE(message_of<StateError>([&] { model.eval(); }).find("\"a\""), std::string::npos);
    EXPECT_TRUE(same(before, observe(network)));
    EXPECT_THROW(model.merge(), StateError);
    EXPECT_TRUE(same(before, observe(network)));
    EXPECT_THROW(model.merge_and_unload(), StateError);
    EXPECT_TRUE(same(before, observe(network)));
  }
  // Going back to training takes adapters out of layers from below others.
  network.gate.set_factors("a", random_matrix<double>(2, 4, 1), random_matrix<double>(5, 2, 2));
  model.unmerge();
  model.eval();
  EXPECT_FALSE(network.gate.training());
  model.train();
  EXPECT_TRUE(same_bits(network.gate.weight(), weights.at("block.gate.weight")));
}

TEST_F(LoraModelSeveral, TwoWithDoraStayUnmergedInEvaluation) {
  model.inject({.lora = {.rank = 2, .use_dora = true}, .target_modules = {"out"}}, 4, "d");
  network.randomize(40);
  model.set_adapters({"c", "d", "a"});
  const auto answers = network.answers();
  const Observation before = observe(network);
  EXPECT_THROW(model.merge(), StateError);
  EXPECT_TRUE(same(before, observe(network)));
  model.eval();
  EXPECT_FALSE(network.out.merged());
  EXPECT_TRUE(network.conv.merged());
  EXPECT_LE(difference(network.answers(), answers), 1e-11);
}

TEST_F(LoraModelSeveral, EveryActiveOneTrains) {
  model.set_adapters({"c", "a"});
  const auto names = network.trainable_names();
  for (const char* wanted :
       {"block.out.lora_A.a.weight", "block.out.lora_A.c.weight", "block.out.lora_magnitude_vector.c.weight",
        "embed.lora_embedding_B.a", "block.gate.lora_B.a.weight"}) {
    EXPECT_EQ(std::ranges::count(names, wanted), 1) << wanted << " in " << joined(names);
  }
  EXPECT_EQ(std::ranges::count_if(names, [](const auto& name) { return name.find(".b.") != std::string::npos; }), 0);
  const Matrix<double> x = random_matrix<double>(3, 6, 1);
  network.out.accumulate_gradients(Matrix<double>(network.out.forward(x)));
  for (const auto& parameter : model.trainable_parameters()) {
    const bool of_out = parameter.name().starts_with("block.out.");
    EXPECT_EQ(parameter.gradient().norm() > 0, of_out) << parameter.name();
  }
}

// Scales.

TEST_F(LoraModelSeveral, AScaleMultipliesTheChangeInEveryLayerOrInNone) {
  model.set_adapter("a");
  model.set_scale("a", -2.5);
  const auto answers = network.answers();
  for (const auto& [layer, answer] : answers) {
    const Matrix<double> wanted = plain.at(layer) - 2.5 * (alone["a"].at(layer) - plain.at(layer));
    EXPECT_LE((answer - wanted).norm(), 1e-12) << layer;
  }
  EXPECT_THROW(model.set_scale("a", std::numeric_limits<double>::infinity()), ConfigError);
  EXPECT_TRUE(same_bits(network.answers(), answers));
  network.gate.merge({"a"});  // one layer of six
  EXPECT_THROW(model.set_scale("a", 1), StateError);
  network.gate.unmerge();
  EXPECT_TRUE(same_bits(network.answers(), answers));
  model.set_scale("a", 1);
  EXPECT_TRUE(same_bits(network.answers(), alone["a"]));
}

// Switched off.

TEST_F(LoraModelSeveral, DisabledAdaptersLeaveTheFrozenModel) {
  model.set_adapters({"a", "b"});
  const auto both = network.answers();
  model.eval();
  model.disable_adapters();
  EXPECT_FALSE(model.merged());
  EXPECT_TRUE(same_bits(network.answers(), plain));
  EXPECT_TRUE(network.trainable_names().empty());
  EXPECT_THROW(model.merge(), StateError);
  EXPECT_THROW(model.merge({"c"}), StateError);
  EXPECT_THROW(model.merge_and_unload(), StateError);
  EXPECT_FALSE(model.merged());
  EXPECT_EQ(model.active_adapters(), (Names{"a", "b"}));
  model.eval();
  EXPECT_FALSE(model.merged());
  model.enable_adapters();
  EXPECT_TRUE(same_bits(network.answers(), both));
}

// Rows.

TEST_F(LoraModelSeveral, EverySampleChoosesItsAdapterInEveryLayer) {
  model.set_adapter("b");
  const auto active = network.answers();
  const Names choices = {"a", "__base__", "c", "a"};
  model.set_row_adapters(choices);
  const auto answers = network.answers();
  for (const auto& [layer, answer] : answers) {
    for (Index i = 0; i < 4; ++i) {
      const std::string& name = choices[static_cast<std::size_t>(i)];
      const Matrix<double>& wanted = name == "__base__" ? plain.at(layer) : alone[name].at(layer);
      EXPECT_TRUE(same_bits(answer.row(i), wanted.row(i))) << layer << " " << i;
    }
  }
  // Two samples of two rows each.
  model.set_row_adapters({"c", "b"});
  for (const auto& [layer, answer] : network.answers()) {
    EXPECT_TRUE(same_bits(answer.topRows(2), alone["c"].at(layer).topRows(2))) << layer;
    EXPECT_TRUE(same_bits(answer.bottomRows(2), alone["b"].at(layer).bottomRows(2))) << layer;
  }
  const Observation before = observe(network);
  const auto message = message_of<ConfigError>([&] { model.set_row_adapters({"a", "nobody"}); });
  EXPECT_NE(message.find("nobody"), std::string::npos) << message;
  EXPECT_TRUE(same(before, observe(network)));
  EXPECT_THROW(static_cast<void>(network.out.infer(random_matrix<double>(3, 6, 1))), ShapeError);
  model.clear_row_adapters();
  EXPECT_TRUE(same_bits(network.answers(), active));
}

TEST_F(LoraModelSeveral, RowsKeepTheirChoiceWhenAnotherAdapterIsDeleted) {
  model.set_adapter("a");
  model.set_row_adapters({"b", "c"});
  model.delete_adapter("b");  // positions have moved
  for (const auto& [layer, answer] : network.answers()) {
    EXPECT_TRUE(same_bits(answer.topRows(2), plain.at(layer).topRows(2))) << layer;
    EXPECT_TRUE(same_bits(answer.bottomRows(2), alone["c"].at(layer).bottomRows(2))) << layer;
  }
  EXPECT_THROW(model.set_row_adapters({"b"}), ConfigError);
}

TEST_F(LoraModelSeveral, RowsChooseOnlyInEvaluationOfUnmergedLayers) {
  model.set_adapter("a");
  model.set_row_adapters({"c", "c", "c", "c"});
  const Matrix<double> x = random_matrix<double>(4, 6, 24);
  EXPECT_TRUE(same_bits(network.out.forward(x), alone["a"].at("block.out")));  // training
  model.merge();
  EXPECT_THROW(static_cast<void>(network.out.infer(x)), StateError);
  model.unmerge();
  model.disable_adapters();
  EXPECT_TRUE(same_bits(network.out.infer(x), plain.at("block.out")));
}

}  // namespace
}  // namespace lora::testing::lora_model_several_test
