// SPDX-License-Identifier: MIT
// Laws and hand-worked examples of pruning, sign election and weighted merging.
#include "lora/model/task_vectors.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <numeric>
#include <span>
#include <vector>

#include "support/fnv1a.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {
namespace {

using Vector = std::vector<float>;
using Vectors = std::vector<std::span<const float>>;

Vector by_magnitude(Vector values, double density) {
  prune_by_magnitude<float>(values, density);
  return values;
}

Vector at_random(Vector values, double density, std::uint64_t seed = 1) {
  prune_at_random<float>(values, density, RandomStream(seed, 0));
  return values;
}

Vector random_values(Index size, std::uint64_t seed) {
  const auto values = random_vector<float>(size, seed);
  return {values.data(), values.data() + values.size()};
}

TEST(PruneByMagnitude, KeepsTheLargest) {
  EXPECT_EQ(by_magnitude({1, -5, 2, -4, 3, 0}, 0.5), (Vector{0, -5, 0, -4, 3, 0}));
}

TEST(PruneByMagnitude, RoundsTheNumberKeptDown) {
  EXPECT_EQ(by_magnitude({1, 2, 3, 4, 5}, 0.59), (Vector{0, 0, 0, 4, 5}));
  EXPECT_EQ(by_magnitude({1, 2, 3}, 0.3), (Vector{0, 0, 0}));
}

TEST(PruneByMagnitude, OfEqualsTheFirstStay) {
  EXPECT_EQ(by_magnitude({2, -2, 3, 2, 2}, 0.6), (Vector{2, -2, 3, 0, 0}));
  EXPECT_EQ(by_magnitude({0, 0, 0, 1}, 0.5), (Vector{0, 0, 0, 1}));
}

TEST(PruneByMagnitude, DensityOneKeepsAllAndZeroNothing) {
  EXPECT_EQ(by_magnitude({1, -2}, 1.0), (Vector{1, -2}));
  EXPECT_EQ(by_magnitude({1, -2}, 0.0), (Vector{0, 0}));
  EXPECT_EQ(by_magnitude({}, 0.5), Vector{});
}

TEST(PruneByMagnitude, NothingDroppedExceedsWhatIsKept) {
  const Vector before = random_values(1001, 3);
  const Vector after = by_magnitude(before, 0.37);
  float smallest_kept = 2;
  float largest_dropped = 0;
  std::ptrdiff_t kept = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (after[i] == 0) largest_dropped = std::max(largest_dropped, std::abs(before[i]));
    if (after[i] == 0) continue;
    EXPECT_EQ(after[i], before[i]);
    smallest_kept = std::min(smallest_kept, std::abs(before[i]));
    ++kept;
  }
  EXPECT_EQ(kept, 370);
  EXPECT_LE(largest_dropped, smallest_kept);
}

TEST(PruneByMagnitude, RefusesADensityOutOfRange) {
  EXPECT_THROW(by_magnitude({1}, -0.5), ConfigError);
  EXPECT_THROW(by_magnitude({1}, 1.5), ConfigError);
  EXPECT_THROW(by_magnitude({1}, std::nan("")), ConfigError);
}

TEST(PruneAtRandom, DensityOneKeepsEverythingAsItIs) {
  const Vector values = random_values(100, 5);
  EXPECT_EQ(at_random(values, 1.0), values);
}

TEST(PruneAtRandom, WhatStaysIsDividedByTheDensity) {
  const Vector values = random_values(1000, 7);
  const Vector pruned = at_random(values, 0.25);
  for (std::size_t i = 0; i < values.size(); ++i) EXPECT_TRUE(pruned[i] == 0 || pruned[i] == 4 * values[i]);
}

// The number kept is binomial: within five standard deviations, which one draw in two million is not.
TEST(PruneAtRandom, KeepsTheFractionThatDensityTells) {
  constexpr double n = 200000;
  for (const double density : {0.1, 0.5, 0.9}) {
    const Vector pruned = at_random(Vector(static_cast<std::size_t>(n), 1.0F), density);
    const auto kept =
        static_cast<double>(std::count_if(pruned.begin(), pruned.end(), [](float value) { return value != 0; }));
    EXPECT_NEAR(kept, n * density, 5 * std::sqrt(n * density * (1 - density))) << density;
  }
}

// The mean over many seeds of x/density with probability density is x, with deviation x sqrt((1 - density) / (density
// seeds)).
TEST(PruneAtRandom, KeepsTheExpectationOfEveryElement) {
  constexpr int seeds = 20000;
  constexpr double density = 0.3;
  const Vector values = {1.0F, -2.0F, 0.5F};
  std::vector<double> mean(values.size());
  for (int seed = 0; seed < seeds; ++seed) {
    const Vector pruned = at_random(values, density, static_cast<std::uint64_t>(seed));
    for (std::size_t i = 0; i < values.size(); ++i) mean[i] += static_cast<double>(pruned[i]) / seeds;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(mean[i], values[i], 5 * std::abs(values[i]) * std::sqrt((1 - density) / (density * seeds)));
  }
}

TEST(PruneAtRandom, TheSameSeedGivesTheSameBitsEverywhere) {
  const Vector pruned = at_random(random_values(64, 9), 0.5, 42);
  EXPECT_EQ(fnv1a(pruned.data(), pruned.size() * sizeof(float)), 6822415187718838775U);
  EXPECT_NE(pruned, at_random(random_values(64, 9), 0.5, 43));
}

TEST(PruneAtRandom, BlocksOfTheStreamGoOnWhereTheyAreToldTo) {
  Vector whole(8, 1.0F);
  prune_at_random<float>(whole, 0.5, RandomStream(3, 4));
  Vector second_half(4, 1.0F);
  prune_at_random<float>(second_half, 0.5, RandomStream(3, 4), 2);
  EXPECT_TRUE(std::equal(second_half.begin(), second_half.end(), whole.begin() + 4));
}

TEST(PruneAtRandom, RefusesADensityOutOfRange) {
  EXPECT_THROW(at_random({1}, 0.0), ConfigError);
  EXPECT_THROW(at_random({1}, 1.5), ConfigError);
}

TEST(WeightedSum, IsTheSum) {
  const Vector a = {1, 2};
  const Vector b = {10, 20};
  Vector out(2);
  const std::vector<double> weights = {2, -0.5};
  weighted_sum<float>(Vectors{a, b}, weights, out);
  EXPECT_EQ(out, (Vector{-3, -6}));
}

TEST(WeightedSum, MayWriteToOneOfItsVectors) {
  Vector a = {1, 2};
  const Vector b = {10, 20};
  const std::vector<double> weights = {1, 1};
  weighted_sum<float>(Vectors{a, b}, weights, a);
  EXPECT_EQ(a, (Vector{11, 22}));
}

TEST(WeightedSum, RefusesSizesThatDiffer) {
  const Vector a = {1, 2};
  Vector out(3);
  const std::vector<double> one = {1};
  const std::vector<double> two = {1, 1};
  EXPECT_THROW(weighted_sum<float>(Vectors{a}, one, out), ShapeError);
  out.resize(2);
  EXPECT_THROW(weighted_sum<float>(Vectors{a}, two, out), ShapeError);
}

Vector disjoint(const std::vector<Vector>& vectors, const std::vector<double>& weights, MajoritySign method) {
  const Vectors views(vectors.begin(), vectors.end());
  Vector out(vectors.front().size());
  disjoint_merge<float>(views, weights, method, out);
  return out;
}

// Per column: by their sum 5 - 1 - 1 is positive; by their signs it is negative.
TEST(DisjointMerge, TotalLooksAtValuesAndFrequencyAtSigns) {
  const std::vector<Vector> vectors = {{5}, {-1}, {-1}};
  EXPECT_EQ(disjoint(vectors, {1, 1, 1}, MajoritySign::total), Vector{5});
  EXPECT_EQ(disjoint(vectors, {1, 1, 1}, MajoritySign::frequency), Vector{-1});
}

TEST(DisjointMerge, AveragesOverThoseWithTheElectedSign) {
  const std::vector<Vector> vectors = {{3, 0, -2}, {1, 4, -4}, {-1, 0, 1}};
  EXPECT_EQ(disjoint(vectors, {1, 1, 1}, MajoritySign::total), (Vector{2, 4, -3}));
}

TEST(DisjointMerge, WeightsCountInTheMeanNotInTheElection) {
  EXPECT_EQ(disjoint({{3}, {-2}}, {0.5, 100}, MajoritySign::total), Vector{1.5F});
  EXPECT_EQ(disjoint({{3}, {1}}, {-1, 2}, MajoritySign::total), Vector{-0.5F});
}

TEST(DisjointMerge, ATieElectsPlusAndZerosHaveNoSign) {
  EXPECT_EQ(disjoint({{2}, {-2}}, {1, 1}, MajoritySign::total), Vector{2});
  EXPECT_EQ(disjoint({{0}, {0}}, {1, 1}, MajoritySign::total), Vector{0});
}

TEST(DisjointMerge, EqualVectorsMergeToThemselves) {
  const Vector values = random_values(50, 11);
  EXPECT_EQ(disjoint({values, values}, {1, 1}, MajoritySign::total), values);
  EXPECT_EQ(disjoint({values, values}, {1, 1}, MajoritySign::frequency), values);
}

}  // namespace
}  // namespace lora::testing
