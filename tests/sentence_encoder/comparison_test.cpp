// SPDX-License-Identifier: MIT
// What a comparison chooses, and what it looks for in texts.
#include "sentence_encoder/comparison.hpp"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <string>

#include "examples/temporary_folder.hpp"
#include "sentence_encoder/made_results.hpp"

namespace comparison_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using detail::says_label;
using examples::sentence_encoder::testing::made_method;
using examples::sentence_encoder::testing::made_run;
using examples::testing::TemporaryFolder;

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

TEST(RunFolderName, IsKnownAgain) {
  using enum MethodKind;
  for (const Method& method : {Method{lora, 8}, Method{rslora, 32}, Method{dora, 8}, Method{full, 0},
                               Method{lora, 8, WeightFormat::q8_0}, Method{lora, 8, WeightFormat::bf16}}) {
    for (const double rate : {1e-3, 3e-4, 1e-7, 1.0}) {
      const auto name = detail::run_folder_name(method, rate, 12);
      EXPECT_TRUE(detail::is_run_folder_name(name)) << name;
    }
  }
  for (const char* name : {"Aug01_12-00-00_host", "lora_r8", "lora_r8_rate_seed1", "lora_r8_rate0.001_seed",
                           "lora_r8_rate0.001_seed1_mine", "lora_r8_seed1_rate0.001", "mine_rate0.001_seed1", ""}) {
    EXPECT_FALSE(detail::is_run_folder_name(name)) << name;
  }
}

// TensorBoard keeps its files in runs/ as well; a new start used to remove them.
TEST(RemoveRuns, LeavesWhatOthersPutThere) {
  const TemporaryFolder folder;
  for (const char* name : {"lora_r8_rate0.001_seed1", "full_rate0.0001_seed1", "Aug01_12-00-00_host"}) {
    std::filesystem::create_directories(folder / name);
    std::ofstream(folder / name / "file") << "x";
  }
  folder.write("dora_r8_rate0.001_seed1", "a file");
  std::filesystem::create_directory_symlink(folder / "Aug01_12-00-00_host", folder / "lora_r2_rate0.001_seed1");
  remove_runs(folder.path());
  EXPECT_FALSE(std::filesystem::exists(folder / "lora_r8_rate0.001_seed1"));
  EXPECT_FALSE(std::filesystem::exists(folder / "full_rate0.0001_seed1"));
  for (const char* name : {"Aug01_12-00-00_host/file", "dora_r8_rate0.001_seed1", "lora_r2_rate0.001_seed1/file"}) {
    EXPECT_TRUE(std::filesystem::exists(folder / name)) << name;
  }
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
