// SPDX-License-Identifier: MIT
// Options of combining adapters: their names, and which of them each type needs.
#include "lora/model/combine_options.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <string>

namespace lora::testing {
namespace {

TEST(CombinationType, NamesArePeftsAndComeBack) {
  for (const char* name : {"linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
                           "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"}) {
    const auto type = parse_combination_type(name);
    ASSERT_TRUE(type.has_value()) << name;
    EXPECT_EQ(name_of(*type), name);
  }
  EXPECT_FALSE(parse_combination_type("").has_value());
  EXPECT_FALSE(parse_combination_type("Linear").has_value());
  EXPECT_FALSE(parse_combination_type("ties_svd ").has_value());
}

/// The message of the ConfigError that these options raise; empty without one.
std::string refusal(const CombineOptions& options) {
  try {
    check_combine_options("combine", options);
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

TEST(CombineOptions, LinearCatAndSvdNeedNothing) {
  for (const auto type : {CombinationType::linear, CombinationType::cat, CombinationType::svd}) {
    EXPECT_EQ(refusal({.combination_type = type}), "");
  }
}

TEST(CombineOptions, PruningNeedsADensity) {
  for (const auto type : {CombinationType::ties, CombinationType::ties_svd, CombinationType::magnitude_prune,
                          CombinationType::magnitude_prune_svd}) {
    EXPECT_NE(refusal({.combination_type = type}).find("density: expected a number in [0, 1]"), std::string::npos);
    EXPECT_EQ(refusal({.combination_type = type, .density = 0.0}), "");
    EXPECT_EQ(refusal({.combination_type = type, .density = 1.0}), "");
  }
}

TEST(CombineOptions, DareNeedsADensityAboveZeroAndASeed) {
  for (const auto type : {CombinationType::dare_linear, CombinationType::dare_linear_svd, CombinationType::dare_ties,
                          CombinationType::dare_ties_svd}) {
    EXPECT_NE(refusal({.combination_type = type, .density = 0.0, .seed = 1}).find("density"), std::string::npos);
    EXPECT_NE(refusal({.combination_type = type, .density = 0.5}).find("seed"), std::string::npos);
    EXPECT_EQ(refusal({.combination_type = type, .density = 0.5, .seed = 1}), "");
  }
}

TEST(CombineOptions, NumbersOutOfRangeAreRefused) {
  for (const double density : {-0.1, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_NE(refusal({.combination_type = CombinationType::ties, .density = density}), "");
  }
  EXPECT_NE(refusal({.svd_rank = 0}).find("svd_rank: expected 1 or more, got 0"), std::string::npos);
  EXPECT_NE(refusal({.svd_clamp = 1.01}).find("svd_clamp"), std::string::npos);
  EXPECT_NE(refusal({.svd_clamp = -0.01}).find("svd_clamp"), std::string::npos);
}

TEST(CombineOptions, WhatATypeDoesNotUseIsNotLookedAt) {
  EXPECT_EQ(refusal({.combination_type = CombinationType::linear, .density = 7.0, .svd_rank = 0, .svd_clamp = 9.0}),
            "");
}

}  // namespace
}  // namespace lora::testing
