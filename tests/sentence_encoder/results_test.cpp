// SPDX-License-Identifier: MIT
// The tables and sentences that a comparison ends with say what was found.
#include "sentence_encoder/results.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "sentence_encoder/made_results.hpp"
#include "sentence_encoder/results_json.hpp"

namespace results_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using examples::sentence_encoder::testing::made_results;
using examples::sentence_encoder::testing::made_results_of_formats;
using Cells = std::vector<std::string>;

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(MainTable, HasARowForEveryWayOfAdapting) {
  const auto table = main_table(made_results({0.57}, {0.575}));
  ASSERT_EQ(table.rows.size(), 6U);
  EXPECT_EQ(table.rows[0], (Cells{"majority class", "5.00", "20.00", "0", "-", "-", "-", "-"}));
  EXPECT_EQ(table.rows[1],
            (Cells{"frozen encoder, linear head", "50.00", "60.00", "1,539", "-", "0.50", "70", "0.01"}));
  EXPECT_EQ(table.rows[3], (Cells{"LoRA, r = 8", "57.00", "67.00", "8,000", "20.00", "12.5", "90", "1.25"}));
  EXPECT_EQ(table.rows[5].front(), "full fine-tuning");
  EXPECT_EQ(table.rows[5][4], "-");
  EXPECT_EQ(table.emphasized, std::vector<std::size_t>{3});
}

TEST(MainTable, OfSeveralSeedsHasMeanAndStandardDeviation) {
  const auto table = main_table(made_results({0.56, 0.57, 0.58}, {0.5, 0.5, 0.5}));
  EXPECT_EQ(table.rows[3][1], "57.00 +- 1.00");
  EXPECT_EQ(table.rows[5][1], "50.00 +- 0.00");
}

TEST(MainTable, HasARowForEveryFormat) {
  const auto table = main_table(made_results_of_formats({0.56}));
  ASSERT_EQ(table.rows.size(), 7U);
  EXPECT_EQ(table.rows[5], (Cells{"LoRA, r = 8, nf4", "56.00", "66.00", "8,000", "2.76", "12.5", "90", "1.25"}));
}

TEST(FormatTable, ComparesLoraOfOneRankAndSaysHowItIsServed) {
  const auto table = format_table(made_results_of_formats({0.56}));
  ASSERT_EQ(table.rows.size(), 2U);
  EXPECT_EQ(table.rows[0], (Cells{"float", "57.00", "20.00", "12.5", "merged or not"}));
  EXPECT_EQ(table.rows[1], (Cells{"nf4", "56.00", "2.76", "12.5", "unmerged"}));
}

TEST(SelectionTable, PutsTheChosenRateInBrackets) {
  const auto table = selection_table(made_results({0.57}, {0.575}));
  ASSERT_EQ(table.rows.size(), 5U);
  EXPECT_EQ(table.rows[0][1], "48.00 at 0.001,  [49.00 at 0.01]");
  EXPECT_EQ(table.rows[2][1], "50.00 at 0.001,  [60.00 at 0.003]");
  const auto of_seeds = selection_table(made_results({0.57, 0.58}, {0.575, 0.575}));
  EXPECT_EQ(of_seeds.rows[2][1], "50.00 at 0.001,  [60.00 at 0.003 (2 seeds)]");
}

TEST(Verdict, ComparesTheMeansOfTheSeeds) {
  EXPECT_NEAR(gap_in_points(made_results({0.55, 0.57}, {0.57, 0.58})), 1.5, 1e-9);
  EXPECT_NEAR(gain_in_points(made_results({0.55, 0.57}, {0.57, 0.58})), 6, 1e-9);
}

TEST(Verdict, SaysWhetherLoraIsWithinAPointOfFullFineTuning) {
  const auto within = verdict(made_results({0.57}, {0.579}));
  EXPECT_TRUE(says(within, "LoRA, r = 8 (the best rank on validation) is 0.90 points of macro-F1 below")) << within;
  EXPECT_TRUE(says(within, ", within the 1 point asked for, and 7.00 points above the frozen encoder.")) << within;
  const auto above = verdict(made_results({0.57}, {0.55}));
  EXPECT_TRUE(says(above, "2.00 points of macro-F1 above full fine-tuning")) << above;
  EXPECT_TRUE(says(above, ", within")) << above;
  const auto beyond = verdict(made_results({0.57}, {0.582}));
  EXPECT_TRUE(says(beyond, ", NOT within")) << beyond;
  const auto worse = verdict(made_results({0.49}, {0.5}));
  EXPECT_TRUE(says(worse, "1.00 points BELOW the frozen encoder.")) << worse;
}

TEST(Verdict, CallsEqualScoresLevel) {
  const auto equal = verdict(made_results({0.5}, {0.50000001}));
  EXPECT_TRUE(says(equal, "is level with full fine-tuning on the test texts, within the 1 point")) << equal;
  EXPECT_TRUE(says(equal, ", and level with the frozen encoder.")) << equal;
}

TEST(Verdict, OfAQuickRunSaysThatItIsTooShort) {
  auto results = made_results({0.57}, {0.579});
  EXPECT_FALSE(says(verdict(results), "too short"));
  results.scale.name = "quick";
  EXPECT_TRUE(says(verdict(results), "A quick run is too short to tell."));
}

TEST(CheckTable, ShoutsWhatDoesNotHold) {
  const auto table = check_table(made_results({0.57}, {0.57}));
  EXPECT_EQ(table.rows[0], (Cells{"a claim that holds", "yes", "12 texts"}));
  EXPECT_EQ(table.rows[1], (Cells{"a claim that does not", "NO", "3 texts"}));
}

TEST(ConfusionTable, HasTrueClassesInRowsAndAnswersInColumns) {
  const auto table = confusion_table(made_results({0.57}, {0.57}));
  EXPECT_EQ(table.header, (Cells{"true class", "F1, %", "admin", "games", "<net>"}));
  EXPECT_EQ(table.rows[0], (Cells{"admin", "80.0", "2", "\u00b7", "1"}));
  EXPECT_EQ(table.rows[2], (Cells{"<net>", "66.7", "\u00b7", "\u00b7", "1"}));
}

TEST(ResultsJson, HoldsEveryRunAndEveryCheck) {
  const auto json = nlohmann::json::parse(results_json(made_results({0.57, 0.59}, {0.575, 0.6})));
  EXPECT_EQ(json["scale"], "default");
  EXPECT_EQ(json["table_fnv1a_64"], "0000000000000abc");
  EXPECT_EQ(json["texts"]["test"], 2000);
  EXPECT_EQ(json["best_adapter"], "LoRA, r = 8");
  EXPECT_NEAR(json["gap_to_full_in_points"], 0.75, 1e-9);
  ASSERT_EQ(json["methods"].size(), 4U);
  const auto& adapter = json["methods"][1];
  EXPECT_EQ(adapter["chosen_learning_rate"], 3e-3);
  EXPECT_EQ(adapter["cost"]["trainable_parameters"], 8000);
  ASSERT_EQ(adapter["tried"].size(), 3U);
  EXPECT_EQ(adapter["tried"][1]["evaluations"], nlohmann::json::parse("[[10, 0.6], [20, 0.3]]"));
  ASSERT_EQ(adapter["test"].size(), 2U);
  EXPECT_EQ(adapter["test"][1]["seed"], 2);
  EXPECT_EQ(adapter["test"][1]["macro_f1"], 0.59);
  EXPECT_EQ(json["checks"][1]["passed"], false);
}

TEST(ResultsJson, HoldsTheFormatOfTheFrozenWeightsAndTheirBytes) {
  const auto json = nlohmann::json::parse(results_json(made_results_of_formats({0.56})));
  const auto& methods = json["methods"];
  EXPECT_EQ(methods[1]["frozen_weights"], "float");
  EXPECT_EQ(methods[1]["can_be_merged_into"], true);
  EXPECT_EQ(methods[3]["name"], "LoRA, r = 8, nf4");
  EXPECT_EQ(methods[3]["frozen_weights"], "nf4");
  EXPECT_EQ(methods[3]["can_be_merged_into"], false);
  EXPECT_EQ(methods[3]["cost"]["frozen_weight_bytes"], 2'760'000);
  EXPECT_FALSE(methods[4].contains("frozen_weights"));
  EXPECT_EQ(methods[4]["cost"]["frozen_weight_bytes"], 0);
}

}  // namespace
}  // namespace results_test
