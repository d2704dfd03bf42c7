// SPDX-License-Identifier: MIT
// What gnuplot reads is what was meant.
#include "common/plot.hpp"

#include <cstdlib>
#include <gtest/gtest.h>
#include <string>

namespace plot_test {
namespace {

using examples::DataBlock;
using examples::draw;
using examples::gnuplot_string;

TEST(GnuplotString, EscapesQuotesBackslashesAndLineEnds) {
  EXPECT_EQ(gnuplot_string("r = 8"), "\"r = 8\"");
  EXPECT_EQ(gnuplot_string("a\"b\\c"), "\"a\\\"b\\\\c\"");
  EXPECT_EQ(gnuplot_string("lora_A"), "\"lora_A\"");
  EXPECT_EQ(gnuplot_string("two\nlines"), "\"two\\nlines\"");
}

TEST(DataBlock, KeepsEveryBitOfNumbers) {
  const std::string text = DataBlock("$d").row({0.1, 3.0}).row("a b", {1.0}).text();
  EXPECT_EQ(text, "$d << END\n0.10000000000000001 3 \n\"a b\" 1 \nEND\n");
}

bool have_gnuplot() { return examples::run_filter("gnuplot", "exit").started; }

TEST(Draw, GivesSvgWithTheText) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const auto figure = draw("set title " + gnuplot_string("fc1.lora_A {x} \\y ~^@") + "\nplot [0:1] x");
  EXPECT_EQ(figure.problem, "");
  EXPECT_EQ(figure.svg.rfind("<svg", 0), 0U);
  EXPECT_NE(figure.svg.find("fc1.lora_A {x} \\y ~^@"), std::string::npos);
}

TEST(Draw, SaysWhatGnuplotComplainsAbout) {
  if (!have_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const auto figure = draw("plot nonsense(");
  EXPECT_EQ(figure.svg, "");
  EXPECT_NE(figure.problem.find("gnuplot failed"), std::string::npos);
}

TEST(Draw, SaysThatGnuplotIsMissing) {
  const std::string kept = std::getenv("PATH");
  setenv("PATH", "/nonexistent", 1);
  const auto figure = draw("plot x");
  setenv("PATH", kept.c_str(), 1);
  EXPECT_EQ(figure.svg, "");
  EXPECT_NE(figure.problem.find("apt-get install gnuplot-nox"), std::string::npos);
}

}  // namespace
}  // namespace plot_test
