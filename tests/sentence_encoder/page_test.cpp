// SPDX-License-Identifier: MIT
// The report holds all of a comparison's results, as text that cannot become markup.
#include "sentence_encoder/page.hpp"

#include <gtest/gtest.h>
#include <string>

#include "sentence_encoder/made_results.hpp"

namespace page_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using examples::sentence_encoder::testing::made_results;
using examples::sentence_encoder::testing::made_results_of_formats;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Page, HoldsResultsMistakesChecksAndSettings) {
  const std::string html = make_report(made_results({0.57}, {0.575}), {}).html();
  for (const char* part : {"57.0 %", "full fine-tuning reaches 57.5 %", "0.50 points of macro-F1 below", "DoRA, r = 8",
                           "&lt;b&gt;a text&lt;/b&gt; &amp; more", "87.50 %", "a claim that does not",
                           "0000000000000abc", "[60.00 at 0.003]", "12.50 % of the test texts"}) {
    EXPECT_TRUE(contains(html, part)) << part;
  }
  EXPECT_FALSE(contains(html, "<b>a text"));
  EXPECT_FALSE(contains(html, "<net>"));
}

TEST(Page, ComparesFormatsWhereThereAreSeveral) {
  EXPECT_FALSE(contains(make_report(made_results({0.57}, {0.575}), {}).html(), "Weights of fewer bits"));
  const std::string html = make_report(made_results_of_formats({0.56}), {}).html();
  for (const char* part : {"Weights of fewer bits", "LoRA, r = 8, nf4", "served unmerged"}) {
    EXPECT_TRUE(contains(html, part)) << part;
  }
}

TEST(Page, TellsOfTheTrafficOfAJobOfSeveralRanksAlone) {
  auto results = made_results({0.57}, {0.575});
  EXPECT_FALSE(contains(make_report(results, {}).html(), "Between the ranks"));
  results.ranks = 2;
  const Link link{.latency = 1e-6, .byte_time = 1e-9};
  for (const double bytes : {1e3, 1e6}) {
    results.reductions.push_back({bytes, reduction_seconds(link, bytes, 2)});
  }
  const std::string html = make_report(results, {}).html();
  EXPECT_TRUE(contains(html, "Between the ranks"));
  EXPECT_TRUE(contains(html, "1.00 GB/s"));
}

// 8,000 parameters are 32,000 bytes: a rank sends 2 (p - 1) / p of them.
TEST(TrafficTable, CountsTheBytesThatARankSends) {
  auto results = made_results({0.57}, {0.575});
  results.ranks = 2;
  const Link link{.latency = 1e-6, .byte_time = 1e-9};
  for (const double bytes : {1e3, 1e6}) {
    results.reductions.push_back({bytes, reduction_seconds(link, bytes, 2)});
  }
  const auto table = traffic_table(results);
  ASSERT_EQ(table.rows.size(), 4U);
  EXPECT_EQ(table.rows[1], (std::vector<std::string>{"LoRA, r = 8", "32,000", "32,000", "0.03", "63,000", "0.19"}));
  EXPECT_EQ(table.rows[3][1], "8,000,000");
}

bool have_gnuplot() { return examples::run_filter("gnuplot", "exit").started; }

TEST(Figures, AreDrawnAndNameEveryMethod) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const auto results = made_results({0.56, 0.58}, {0.575, 0.585});
  for (const auto& figure : {validation_figure(results), loss_figure(results), cost_figure(results)}) {
    EXPECT_EQ(figure.problem, "");
    for (const auto& one : results.methods) EXPECT_TRUE(contains(figure.svg, one.method.name())) << one.method.name();
  }
  const auto scores = score_figure(results);
  EXPECT_EQ(scores.problem, "");
  EXPECT_TRUE(contains(scores.svg, "full fine-tuning 58.0"));
  EXPECT_TRUE(contains(scores.svg, "frozen encoder, linear head 50.0"));
  EXPECT_TRUE(contains(scores.svg, "DoRA, r = 8: 57.0"));
}

TEST(Figures, HaveAPointForEveryFormat) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const auto results = made_results_of_formats({0.56});
  const auto figure = format_figure(results);
  EXPECT_EQ(figure.problem, "");
  for (const char* part : {"float 57.0", "nf4 56.0", "frozen weights, MB", "frozen encoder, linear head 50.0"}) {
    EXPECT_TRUE(contains(figure.svg, part)) << part;
  }
  EXPECT_FALSE(contains(score_figure(results).svg, "nf4"));
}

TEST(Figures, AreDrawnWithoutDoraAndRslora) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  auto results = made_results({0.57}, {0.575});
  results.methods.erase(results.methods.begin() + 2);
  EXPECT_EQ(score_figure(results).problem, "");
}

}  // namespace
}  // namespace page_test
