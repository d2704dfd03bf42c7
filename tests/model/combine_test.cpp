// SPDX-License-Identifier: MIT
// Combining the adapters of a whole model: which modules, by which names, and what is refused.
#include "lora/model/combine.hpp"

#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <span>
#include <string>
#include <vector>

#include "support/random_matrix.hpp"

namespace lora::testing {
namespace {

using State = AdapterWeights<double>;
using Module = ModuleWeights<double>;

Module module_of(Index rank, std::uint64_t seed, double scaling = 2.0, Index out = 5, Index in = 6) {
  Module module;
  module.A = random_matrix<double>(rank, in, seed);
  module.B = random_matrix<double>(out, rank, seed + 1000);
  module.scaling = scaling;
  return module;
}

Matrix<double> delta_of(const Module& module) { return module.scaling * module.B * module.A; }

State combine(const std::vector<WeightedAdapter<double>>& adapters, const CombineOptions& options) {
  return combine_adapters<double>(std::span<const WeightedAdapter<double>>(adapters), options);
}

constexpr CombineOptions cat{.combination_type = CombinationType::cat};

/// Two adapters: "both" is in both, the others in one each.
struct TwoAdapters : ::testing::Test {
  TwoAdapters() {
    first.modules["both"] = module_of(2, 1);
    first.modules["only.first"] = module_of(2, 2);
    second.modules["both"] = module_of(2, 3, 0.5);
    second.modules["only.second"] = module_of(2, 4);
  }

  [[nodiscard]] std::vector<WeightedAdapter<double>> adapters() const { return {{&first, 0.5}, {&second, -2.0}}; }

  /// The message of the error that combining raises.
  template <class Raised>
  [[nodiscard]] std::string refusal(const CombineOptions& options = cat) const {
    try {
      static_cast<void>(combine(adapters(), options));
      return "";
    } catch (const Raised& error) {
      return error.what();
    }
  }

  State first;
  State second;
};

TEST_F(TwoAdapters, TheResultHasEveryModuleThatAnyHas) {
  const State mix = combine(adapters(), cat);
  ASSERT_EQ(mix.modules.size(), 3U);
  const Matrix<double> both = 0.5 * delta_of(first.modules["both"]) - 2.0 * delta_of(second.modules["both"]);
  EXPECT_LT((delta_of(mix.modules.at("both")) - both).norm(), 1e-14);
  EXPECT_LT((delta_of(mix.modules.at("only.first")) - 0.5 * delta_of(first.modules["only.first"])).norm(), 1e-14);
  EXPECT_LT((delta_of(mix.modules.at("only.second")) + 2.0 * delta_of(second.modules["only.second"])).norm(), 1e-14);
}

TEST_F(TwoAdapters, OneWithWeightOneIsReproduced) {
  const State mix = combine({{&first, 1.0}}, cat);
  ASSERT_EQ(mix.modules.size(), 2U);
  for (const auto& [name, module] : mix.modules) {
    EXPECT_LT((delta_of(module) - delta_of(first.modules[name])).norm(), 1e-14);
  }
}

TEST_F(TwoAdapters, AnAdapterThatLacksAModuleDoesNotCountInItsMean) {
  const CombineOptions ties{.combination_type = CombinationType::ties, .density = 1.0};
  const State mix = combine({{&first, 1.0}, {&second, 1.0}}, ties);
  EXPECT_LT((delta_of(mix.modules.at("only.first")) - delta_of(first.modules["only.first"])).norm(), 1e-14);
}

TEST_F(TwoAdapters, PeftTakesTheLargestRankOfAllModules) {
  second.modules["only.second"] = module_of(4, 4);
  CombineOptions options{.combination_type = CombinationType::magnitude_prune_svd, .density = 0.5};
  EXPECT_EQ(combine(adapters(), options).modules.at("both").rank(), 2);
  options.compatibility = Compatibility::peft;
  EXPECT_EQ(combine(adapters(), options).modules.at("both").rank(), 4);
}

TEST_F(TwoAdapters, PeftDecidesByTheNumberOfAdaptersNotOfThoseInAModule) {
  CombineOptions options{
      .combination_type = CombinationType::magnitude_prune, .density = 0.5, .compatibility = Compatibility::peft};
  const State alone = combine({{&first, 1.0}}, options);
  EXPECT_LT((delta_of(alone.modules.at("both")) - delta_of(first.modules["both"])).norm(), 1e-14);
}

// PEFT counts the adapters of the call: a module that only one of them has is not combined as linear.
TEST_F(TwoAdapters, PeftCombinesAModuleOfOneAdapterByTheTypeOfTheCall) {
  const auto only_first = [&](CombineOptions options) {
    options.compatibility = Compatibility::peft;
    return combine(adapters(), options).modules.at("only.first");
  };
  const Module& own = first.modules["only.first"];
  const Module svd = only_first({.combination_type = CombinationType::svd});
  EXPECT_LT((delta_of(svd) - 0.5 * own.scaling * delta_of(own)).norm(), 1e-13) << "weight * scaling * delta";
  EXPECT_EQ(only_first({.combination_type = CombinationType::svd, .svd_rank = 1}).rank(), 1);
  const Module clamped = only_first({.combination_type = CombinationType::svd, .svd_clamp = 0.9});
  EXPECT_LT(clamped.A.maxCoeff(), svd.A.maxCoeff());
  for (const auto type : {CombinationType::ties, CombinationType::magnitude_prune}) {
    const Module pruned = only_first({.combination_type = type, .density = 0.5});
    EXPECT_EQ((pruned.A.array() == 0).count(), own.A.size() / 2) << name_of(type);
    EXPECT_EQ((pruned.B.array() == 0).count(), own.B.size() / 2) << name_of(type);
  }
}

TEST_F(TwoAdapters, WhatDareDropsDependsOnTheModulesNameAlone) {
  const CombineOptions dare{.combination_type = CombinationType::dare_linear, .density = 0.5, .seed = 3};
  const Matrix<double> among_others = combine(adapters(), dare).modules.at("both").A;
  first.modules.erase("only.first");
  second.modules.erase("only.second");
  EXPECT_EQ(combine(adapters(), dare).modules.at("both").A, among_others);
  first.modules["other"] = first.modules["both"];
  second.modules["other"] = second.modules["both"];
  EXPECT_NE(combine(adapters(), dare).modules.at("other").A, among_others);
}

// A name's length, its letters without their order, or its last letter alone must not decide: layers have names that
// differ in one digit.
TEST_F(TwoAdapters, NamesOfOneLengthDrawDifferentMasks) {
  const CombineOptions dare{.combination_type = CombinationType::dare_linear, .density = 0.5, .seed = 3};
  const std::vector<std::string> names = {"layers.0.q", "layers.1.q", "layers.0.k", "layers.0.v", "layers.q.0",
                                          "mayers.0.q", "slayer.0.q", "layers_0.q", "layers.0_q"};
  const Module module = module_of(4, 1, 2.0, 16, 16);
  State adapter;
  for (const std::string& name : names) adapter.modules[name] = module;
  const State result = combine({{&adapter, 1.0}}, dare);
  const auto mask = [&](const std::string& name) -> Matrix<double> {
    return (result.modules.at(name).A.array() != 0.0).cast<double>();
  };
  for (const std::string& one : names) {
    EXPECT_NEAR(mask(one).mean(), 0.5, 5 * 0.5 / 8) << one;  // 64 draws
    for (const std::string& other : names) {
      if (one == other) continue;
      // Independent masks agree in half of the places; five standard deviations off is never.
      EXPECT_NEAR((mask(one) - mask(other)).cwiseAbs().mean(), 0.5, 5 * 0.5 / 8) << one << ", " << other;
    }
  }
}

TEST_F(TwoAdapters, KindAndKernelSizeStay) {
  for (State* state : {&first, &second}) {
    state->modules["both"].kind = ModuleKind::conv2d;
    state->modules["both"].kernel_size = {1, 3};
  }
  const Module mixed = combine(adapters(), cat).modules.at("both");
  EXPECT_EQ(mixed.kind, ModuleKind::conv2d);
  EXPECT_EQ(mixed.kernel_size, (std::vector<Index>{1, 3}));
}

TEST_F(TwoAdapters, LoraBiasIsSummedWithItsScaling) {
  first.modules["both"].lora_bias = random_vector<double>(5, 1);
  second.modules["both"].lora_bias = random_vector<double>(5, 2);
  const RowVector<double> expected =
      0.5 * 2.0 * first.modules["both"].lora_bias - 2.0 * 0.5 * second.modules["both"].lora_bias;
  for (const auto type : {CombinationType::linear, CombinationType::cat, CombinationType::svd}) {
    const Module mixed = combine(adapters(), {.combination_type = type}).modules.at("both");
    EXPECT_LT((mixed.scaling * mixed.lora_bias - expected).norm(), 1e-14);
  }
}

TEST_F(TwoAdapters, ALoraBiasThatOverflowsIsRefused) {
  first.modules["both"].lora_bias = RowVector<double>::Constant(5, 1e308);
  second.modules["both"].lora_bias = RowVector<double>::Constant(5, -1e308);  // has a negative weight
  EXPECT_EQ(refusal<StateError>(),
            "combine_adapters: module \"both\": expected a lora_bias that is finite, got another");
}

TEST_F(TwoAdapters, LoraBiasHasNoAnswerElsewhere) {
  first.modules["both"].lora_bias = random_vector<double>(5, 1);
  EXPECT_NE(refusal<ConfigError>({.combination_type = CombinationType::ties, .density = 1.0}).find("\"both\""),
            std::string::npos);
  EXPECT_NE(refusal<ConfigError>({.combination_type = CombinationType::cat, .compatibility = Compatibility::peft}), "");
}

TEST_F(TwoAdapters, DoraIsRefusedByName) {
  second.modules["only.second"].magnitude = RowVector<double>::Ones(5);
  const std::string message = refusal<ConfigError>();
  EXPECT_NE(message.find("\"only.second\", adapter 1"), std::string::npos);
  EXPECT_NE(message.find("DoRA"), std::string::npos);
}

TEST_F(TwoAdapters, ShapesRanksAndKindsThatDifferAreRefusedByName) {
  second.modules["both"] = module_of(2, 3, 1.0, 5, 7);
  EXPECT_NE(refusal<ShapeError>().find("module \"both\", adapter 1, A: expected N x 6, got 2 x 7"), std::string::npos);
  second.modules["both"] = module_of(3, 3);
  EXPECT_NE(refusal<ShapeError>({.combination_type = CombinationType::ties, .density = 1.0}).find("module \"both\""),
            std::string::npos);
  second.modules["both"] = module_of(2, 3);
  second.modules["both"].kind = ModuleKind::embedding;
  EXPECT_NE(refusal<ShapeError>().find("module \"both\", adapter 1"), std::string::npos);
}

TEST_F(TwoAdapters, ALoraBiasOfTheWrongLengthIsRefused) {
  first.modules["both"].lora_bias = random_vector<double>(4, 1);
  EXPECT_NE(refusal<ShapeError>().find("lora_bias: expected 1 x 5, got 1 x 4"), std::string::npos);
}

TEST_F(TwoAdapters, SavedTensorsOfOneAreCopiedAndOfTwoRefused) {
  first.saved["head.weight"] = {{1, 2}, {3, 4}};
  second.saved["both.bias"] = {{1}, {5}};
  const State mix = combine(adapters(), cat);
  EXPECT_EQ(mix.saved.at("head.weight").values, (std::vector<double>{3, 4}));
  EXPECT_EQ(mix.saved.at("both.bias").shape, (std::vector<Index>{1}));
  second.saved["head.weight"] = first.saved["head.weight"];
  EXPECT_NE(refusal<ConfigError>().find("\"head.weight\""), std::string::npos);
}

TEST_F(TwoAdapters, NoAdapterNoStateAndBadWeightsAreRefused) {
  EXPECT_THROW(static_cast<void>(combine({}, cat)), ConfigError);
  EXPECT_THROW(static_cast<void>(combine({{nullptr, 1.0}}, cat)), ConfigError);
  EXPECT_THROW(static_cast<void>(combine({{&first, std::nan("")}}, cat)), ConfigError);
  EXPECT_THROW(static_cast<void>(combine(adapters(), {.combination_type = CombinationType::ties})), ConfigError);
}

TEST(CombineAdapters, WithoutModulesIsEmpty) {
  const State empty;
  EXPECT_TRUE(combine({{&empty, 1.0}}, cat).modules.empty());
  EXPECT_TRUE(combine({{&empty, 1.0}}, {.compatibility = Compatibility::peft}).modules.empty());
}

}  // namespace
}  // namespace lora::testing
