// SPDX-License-Identifier: MIT
// What a comparison chooses, and what it looks for in texts.
#include "sentence_encoder/comparison.hpp"

#include <gtest/gtest.h>
#include <string>

#include "sentence_encoder/made_results.hpp"

namespace comparison_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using detail::says_label;
using examples::sentence_encoder::testing::made_method;
using examples::sentence_encoder::testing::made_run;

TEST(ChooseByValidation, TakesTheHighestScoreAndTheFirstOfEquals) {
  const Method method{MethodKind::lora, 8};
  MethodResult result;
  for (const double score : {0.3, 0.5, 0.4, 0.5}) result.tried.push_back({{made_run(method, 1e-3, 1, score)}});
  detail::choose_by_validation(result);
  EXPECT_EQ(result.chosen, 1U);
}

TEST(ChooseByValidation, LooksAtTheMeanWhereThereAreSeveralSeeds) {
  const Method method{MethodKind::lora, 8};
  MethodResult result;
  result.tried.push_back({{made_run(method, 1e-3, 1, 0.5)}});
  result.tried.push_back({{made_run(method, 3e-3, 1, 0.6)}});
  detail::choose_by_validation(result);
  EXPECT_EQ(result.chosen, 1U);
  result.tried[1].seeds.push_back(made_run(method, 3e-3, 2, 0.3));
  detail::choose_by_validation(result);
  EXPECT_EQ(result.chosen, 0U);
}

TEST(BestAdapter, IsOneOfLorasRanksAndChosenWithoutTheTestTexts) {
  using enum MethodKind;
  const std::vector<MethodResult> methods = {made_method({rslora, 32}, 0.9, {0.9}), made_method({lora, 2}, 0.5, {0.8}),
                                             made_method({lora, 8}, 0.6, {0.1}), made_method({dora, 8}, 0.9, {0.9}),
                                             made_method({full, 0}, 0.9, {0.9})};
  EXPECT_EQ(detail::best_adapter(methods), 2U);
}

TEST(BestAdapter, IsOverFloat) {
  using enum MethodKind;
  const std::vector<MethodResult> methods = {made_method({lora, 8}, 0.5, {0.5}),
                                             made_method({lora, 8, WeightFormat::nf4}, 0.6, {0.6}),
                                             made_method({full, 0}, 0.9, {0.9})};
  EXPECT_EQ(detail::best_adapter(methods), 0U);
}

TEST(SaysLabel, FindsTheNameAsAWordInAnyCase) {
  EXPECT_TRUE(says_label("a Game of cards", "games"));
  EXPECT_TRUE(says_label("card games", "games"));
  EXPECT_TRUE(says_label("GAMES", "games"));
  EXPECT_TRUE(says_label("a web-server", "web"));
  EXPECT_TRUE(says_label("endgame, then a game", "games"));
  EXPECT_FALSE(says_label("an endgame", "games"));
  EXPECT_FALSE(says_label("a gamer", "games"));
  EXPECT_FALSE(says_label("cards", "games"));
  EXPECT_FALSE(says_label("", "games"));
}

TEST(RunFolderName, TellsRunsApart) {
  using enum MethodKind;
  EXPECT_EQ(detail::run_folder_name({lora, 8}, 1e-3, 2), "lora_r8_rate0.001_seed2");
  EXPECT_EQ(detail::run_folder_name({full, 0}, 1e-4, 1), "full_rate0.0001_seed1");
  EXPECT_EQ(detail::run_folder_name({lora, 8, WeightFormat::q8_0}, 1e-3, 1), "lora_r8_q8_0_rate0.001_seed1");
}

TEST(CheckInputs, NamesTheScriptThatFetchesWhatIsMissing) {
  Options options;
  options.model_dir = "/nonexistent";
  try {
    check_inputs(options);
    FAIL() << "no error";
  } catch (const lora::IoError& error) {
    EXPECT_NE(std::string(error.what()).find("fetch_model.sh"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace comparison_test
