// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>
#include <string>

#include "intrinsic_dimension/results.hpp"

namespace intrinsic_results_test {
namespace {

using namespace examples::intrinsic_dimension;  // NOLINT: the namespace under test

/// One subspace of 16 dimensions at 40 %, and full fine-tuning at `full`; frozen, the network has 30 %.
Results made_results(double full) {
  Results results;
  results.parameters = 1000;
  results.frozen_accuracy = 0.3;
  results.subspaces = {{{Method::Kind::subspace, 16}, 16, {{0.1, 0.4, 0.4}}}};
  results.full = {{Method::Kind::full, 0}, 1000, {{0.1, full, full}}};
  return results;
}

TEST(IntrinsicResults, GiveSharesOfTheGain) {
  const Results results = made_results(0.5);
  EXPECT_EQ(d90_text(results), "above 16");
  EXPECT_EQ(results_table(results).rows[1][4], "50.0 %");
  EXPECT_EQ(d90_text(made_results(0.41)), "at most 16");
}

// The table had -nan % and -inf %, and the page a d90 that the verdict denied.
TEST(IntrinsicResults, HaveNoD90WhereFullFineTuningGainsNothing) {
  for (const double full : {0.3, 0.2}) {
    const Results results = made_results(full);
    EXPECT_EQ(d90_text(results), "none");
    const auto table = results_table(results);
    for (const auto& row : table.rows) EXPECT_EQ(row[4], "-");
    EXPECT_TRUE(table.emphasized.empty());
    EXPECT_NE(verdict(results).find("there is no d90"), std::string::npos);
  }
}

}  // namespace
}  // namespace intrinsic_results_test
