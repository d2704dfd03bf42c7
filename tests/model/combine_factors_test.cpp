// SPDX-License-Identifier: MIT
// Laws of combining the adapters of one module.
#include "lora/model/combine_factors.hpp"

#include <Eigen/SVD>
#include <algorithm>
#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "support/random_matrix.hpp"

namespace lora::testing {
namespace {

constexpr Index in_features = 11;
constexpr Index out_features = 7;

/// Adapters of one module with random factors.
template <class Scalar>
struct Adapters {
  explicit Adapters(const std::vector<Index>& ranks, std::uint64_t seed = 1) {
    constexpr std::array<double, 4> scalings = {2.0, 0.5, 1.25, 3.0};
    constexpr std::array<double, 4> weights = {0.7, -1.3, 0.4, 1.0};
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      A.push_back(random_matrix<Scalar>(ranks[i], in_features, seed + 2 * i));
      B.push_back(random_matrix<Scalar>(out_features, ranks[i], seed + 2 * i + 1));
      scaling.push_back(scalings[i]);
      weight.push_back(weights[i]);
    }
  }

  [[nodiscard]] std::vector<WeightedFactors<Scalar>> inputs() const {
    std::vector<WeightedFactors<Scalar>> list;
    for (std::size_t i = 0; i < A.size(); ++i) list.push_back({view_of(A[i]), view_of(B[i]), scaling[i], weight[i]});
    return list;
  }

  [[nodiscard]] Matrix<double> delta(std::size_t i) const {
    return scaling[i] * (B[i].template cast<double>() * A[i].template cast<double>());
  }

  [[nodiscard]] Matrix<double> sum() const {
    Matrix<double> total = Matrix<double>::Zero(out_features, in_features);
    for (std::size_t i = 0; i < A.size(); ++i) total += weight[i] * delta(i);
    return total;
  }

  std::vector<Matrix<Scalar>> A;
  std::vector<Matrix<Scalar>> B;
  std::vector<double> scaling;
  std::vector<double> weight;
};

template <class Scalar>
Matrix<double> delta_of(const CombinedFactors<Scalar>& factors) {
  return factors.scaling * (factors.B.template cast<double>() * factors.A.template cast<double>());
}

template <class Scalar>
CombinedFactors<Scalar> combine(const std::vector<WeightedFactors<Scalar>>& inputs, const CombineOptions& options) {
  return combine_factors<Scalar>(std::span<const WeightedFactors<Scalar>>(inputs), options);
}

template <class Scalar>
CombinedFactors<Scalar> combine(const Adapters<Scalar>& adapters, const CombineOptions& options) {
  return combine(adapters.inputs(), options);
}

constexpr std::array all_types = {CombinationType::linear,
                                  CombinationType::cat,
                                  CombinationType::svd,
                                  CombinationType::ties,
                                  CombinationType::ties_svd,
                                  CombinationType::dare_linear,
                                  CombinationType::dare_ties,
                                  CombinationType::dare_linear_svd,
                                  CombinationType::dare_ties_svd,
                                  CombinationType::magnitude_prune,
                                  CombinationType::magnitude_prune_svd};

CombineOptions options_of(CombinationType type, double density = 1.0) {
  return {.combination_type = type, .density = density, .seed = 5};
}

/// Roundings of Scalar per element of a product of these factors: the sum over the rank of |B||A| bounds each.
template <class Scalar>
double tolerance(const Adapters<Scalar>& adapters) {
  double bound = 0;
  for (std::size_t i = 0; i < adapters.A.size(); ++i) {
    bound += std::abs(adapters.weight[i] * adapters.scaling[i]) * static_cast<double>(adapters.B[i].norm()) *
             static_cast<double>(adapters.A[i].norm());
  }
  return 8 * bound * static_cast<double>(std::numeric_limits<Scalar>::epsilon());
}

template <class Scalar>
class CombineFactors : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CombineFactors, Scalars);

TYPED_TEST(CombineFactors, WeightOneOfOneAdapterReproducesItWithoutPruning) {
  Adapters<TypeParam> one({3});
  one.weight = {1.0};
  for (const auto type : all_types) {
    for (const auto compatibility : {Compatibility::exact, Compatibility::peft}) {
      CombineOptions options = options_of(type);
      options.compatibility = compatibility;
      EXPECT_LT((delta_of(combine(one, options)) - one.delta(0)).norm(), tolerance(one)) << name_of(type);
    }
  }
}

TYPED_TEST(CombineFactors, LinearAndCatAreTheSumOfDeltas) {
  const Adapters<TypeParam> adapters({2, 3, 1});
  for (const auto type : {CombinationType::linear, CombinationType::cat}) {
    const auto result = combine(adapters, options_of(type));
    EXPECT_EQ(result.A.rows(), 6);
    EXPECT_EQ(result.scaling, 1.0);
    EXPECT_LT((delta_of(result) - adapters.sum()).norm(), tolerance(adapters));
  }
}

TYPED_TEST(CombineFactors, CatLosesNothingWhereWeightTimesScalingIsAPowerOfTwo) {
  Adapters<TypeParam> adapters({2, 3});
  adapters.scaling = {2.0, 0.5};
  adapters.weight = {0.5, -4.0};
  const auto result = combine(adapters, options_of(CombinationType::cat));
  EXPECT_EQ(result.A.topRows(2), adapters.A[0]);
  EXPECT_EQ(result.A.bottomRows(3), TypeParam(-2) * adapters.A[1]);
  EXPECT_EQ(result.B.leftCols(2), adapters.B[0]);
  EXPECT_EQ(result.B.rightCols(3), adapters.B[1]);
}

TYPED_TEST(CombineFactors, SvdOfFullRankIsTheSum) {
  const Adapters<TypeParam> adapters({2, 3, 1});
  CombineOptions options = options_of(CombinationType::svd);
  options.svd_rank = 6;
  EXPECT_LT((delta_of(combine(adapters, options)) - adapters.sum()).norm(), tolerance(adapters));
}

TYPED_TEST(CombineFactors, SvdIsTheNearestOfItsRank) {
  const Adapters<TypeParam> adapters({2, 3, 1});
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(Eigen::MatrixXd(adapters.sum()));
  for (const Index rank : {1, 2, 3}) {
    CombineOptions options = options_of(CombinationType::svd);
    options.svd_rank = rank;
    const auto result = combine(adapters, options);
    EXPECT_EQ(result.A.rows(), rank);
    EXPECT_NEAR((delta_of(result) - adapters.sum()).norm(), svd.singularValues().tail(out_features - rank).norm(),
                tolerance(adapters));
  }
}

TYPED_TEST(CombineFactors, TheDefaultSvdRankIsTheLargestAndNeverMoreThanThereIs) {
  const Adapters<TypeParam> adapters({2, 3, 1});
  EXPECT_EQ(combine(adapters, options_of(CombinationType::svd)).A.rows(), 3);
  EXPECT_EQ(combine(adapters, options_of(CombinationType::ties_svd)).A.rows(), 3);
  CombineOptions large = options_of(CombinationType::svd);
  large.svd_rank = 100;
  EXPECT_EQ(combine(adapters, large).A.rows(), 6);
  large.combination_type = CombinationType::ties_svd;
  EXPECT_EQ(combine(adapters, large).A.rows(), out_features);
}

TYPED_TEST(CombineFactors, WithoutPruningDareAndMagnitudePruneAreLinear) {
  const Adapters<TypeParam> adapters({3, 3, 3});
  for (const auto compatibility : {Compatibility::exact, Compatibility::peft}) {
    CombineOptions options = options_of(CombinationType::linear);
    options.compatibility = compatibility;
    const auto linear = combine(adapters, options);
    for (const auto type : {CombinationType::dare_linear, CombinationType::magnitude_prune}) {
      options.combination_type = type;
      EXPECT_EQ(combine(adapters, options).A, linear.A) << name_of(type);
      EXPECT_EQ(combine(adapters, options).B, linear.B) << name_of(type);
    }
  }
}

TYPED_TEST(CombineFactors, WithoutPruningTheSvdsOfSumsAreSvd) {
  const Adapters<TypeParam> adapters({3, 2, 1});
  for (const auto compatibility : {Compatibility::exact, Compatibility::peft}) {
    CombineOptions options = options_of(CombinationType::svd);
    options.compatibility = compatibility;
    const Matrix<double> svd = delta_of(combine(adapters, options));
    for (const auto type : {CombinationType::dare_linear_svd, CombinationType::magnitude_prune_svd}) {
      options.combination_type = type;
      EXPECT_LT((delta_of(combine(adapters, options)) - svd).norm(), 4 * tolerance(adapters)) << name_of(type);
    }
  }
}

TYPED_TEST(CombineFactors, PermutingTheAdaptersChangesNothing) {
  const Adapters<TypeParam> adapters({2, 2, 2});
  auto inputs = adapters.inputs();
  for (const auto type : all_types) {
    if (detail::drops_at_random(type)) continue;
    for (const auto compatibility : {Compatibility::exact, Compatibility::peft}) {
      CombineOptions options = options_of(type, 0.5);
      options.compatibility = compatibility;
      const Matrix<double> before = delta_of(combine(inputs, options));
      std::rotate(inputs.begin(), inputs.begin() + 1, inputs.end());
      EXPECT_LT((delta_of(combine(inputs, options)) - before).norm(), 4 * tolerance(adapters)) << name_of(type);
    }
  }
}

TYPED_TEST(CombineFactors, SplittingAWeightChangesNothingInSums) {
  const Adapters<TypeParam> adapters({2, 3});
  auto inputs = adapters.inputs();
  inputs.push_back(inputs[0]);
  inputs[0].weight = 0.2;
  inputs[2].weight = 0.5;
  for (const auto type : {CombinationType::linear, CombinationType::cat}) {
    EXPECT_LT((delta_of(combine(inputs, options_of(type))) - adapters.sum()).norm(), tolerance(adapters));
  }
}

TYPED_TEST(CombineFactors, AnAdapterMinusItselfIsNothing) {
  const Adapters<TypeParam> adapters({2});
  auto inputs = adapters.inputs();
  inputs.push_back(inputs[0]);
  inputs[1].weight = -inputs[0].weight;
  for (const auto type : {CombinationType::linear, CombinationType::cat, CombinationType::svd}) {
    EXPECT_LT(delta_of(combine(inputs, options_of(type))).norm(), tolerance(adapters)) << name_of(type);
  }
}

// sum sqrt|c_i| B_i times sum sgn(c_i) sqrt|c_i| A_i, with a negative weight among them.
TYPED_TEST(CombineFactors, PeftsLinearPutsTheSignOnOneSide) {
  const Adapters<TypeParam> adapters({2, 2, 2});
  Matrix<double> a = Matrix<double>::Zero(2, in_features);
  Matrix<double> b = Matrix<double>::Zero(out_features, 2);
  for (std::size_t i = 0; i < 3; ++i) {
    const double c = adapters.weight[i] * adapters.scaling[i];
    a += std::copysign(std::sqrt(std::abs(c)), c) * adapters.A[i].template cast<double>();
    b += std::sqrt(std::abs(c)) * adapters.B[i].template cast<double>();
  }
  CombineOptions options = options_of(CombinationType::linear);
  options.compatibility = Compatibility::peft;
  const auto result = combine(adapters, options);
  EXPECT_LT((result.A.template cast<double>() - a).norm(), tolerance(adapters));
  EXPECT_LT((result.B.template cast<double>() - b).norm(), tolerance(adapters));
}

TYPED_TEST(CombineFactors, TiesOnDeltasFollowsItsDefinition) {
  const Adapters<TypeParam> adapters({3, 2, 4});
  constexpr double density = 0.4;
  std::vector<Matrix<TypeParam>> pruned;
  for (std::size_t i = 0; i < 3; ++i) {
    pruned.push_back(adapters.delta(i).template cast<TypeParam>());
    prune_by_magnitude<TypeParam>({pruned[i].data(), static_cast<std::size_t>(pruned[i].size())}, density);
  }
  Matrix<double> expected(out_features, in_features);
  for (Index j = 0; j < expected.size(); ++j) {
    double total = 0;
    for (const auto& one : pruned) total += static_cast<double>(one.data()[j]);
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      const auto value = static_cast<double>(pruned[i].data()[j]);
      if (value == 0.0 || (value > 0.0) != (total >= 0.0)) continue;
      sum += adapters.weight[i] * value;
      count += 1;
    }
    expected.data()[j] = count > 0 ? sum / count : 0.0;
  }
  CombineOptions options = options_of(CombinationType::ties_svd, density);
  options.svd_rank = out_features;
  EXPECT_LT((delta_of(combine(adapters, options)) - expected).norm(), 4 * tolerance(adapters));
}

TYPED_TEST(CombineFactors, AMergedModelOfEqualAdaptersIsTheAdapter) {
  Adapters<TypeParam> adapters({2});
  adapters.weight = {1.0};
  auto inputs = adapters.inputs();
  inputs.push_back(inputs[0]);
  for (const auto type : {CombinationType::ties, CombinationType::ties_svd}) {
    EXPECT_LT((delta_of(combine(inputs, options_of(type))) - adapters.delta(0)).norm(), tolerance(adapters));
  }
}

TYPED_TEST(CombineFactors, SvdClampBoundsTheFactors) {
  const Adapters<TypeParam> adapters({3, 3});
  CombineOptions options = options_of(CombinationType::svd);
  const auto free = combine(adapters, options);
  options.svd_clamp = 0.9;
  const auto clamped = combine(adapters, options);
  const auto limit = std::max(clamped.A.maxCoeff(), clamped.B.maxCoeff());
  EXPECT_LT(limit, std::max(free.A.maxCoeff(), free.B.maxCoeff()));
  EXPECT_GE(std::min(clamped.A.minCoeff(), clamped.B.minCoeff()), -limit);
  EXPECT_EQ(clamped.A, free.A.cwiseMin(limit).cwiseMax(-limit));
  EXPECT_EQ(clamped.B, free.B.cwiseMin(limit).cwiseMax(-limit));
}

TYPED_TEST(CombineFactors, ReadsFactorsOfAnyStrides) {
  const Adapters<TypeParam> adapters({2, 3});
  auto inputs = adapters.inputs();
  const Matrix<TypeParam> transposed = adapters.A[0].transpose();
  inputs[0].A = view_of(transposed).transpose();
  const auto type = options_of(CombinationType::svd);
  EXPECT_EQ(combine(inputs, type).A, combine(adapters, type).A);
}

TYPED_TEST(CombineFactors, RankZeroContributesNothing) {
  const Adapters<TypeParam> adapters({2, 0});
  for (const auto type :
       {CombinationType::linear, CombinationType::cat, CombinationType::svd, CombinationType::magnitude_prune_svd}) {
    EXPECT_LT((delta_of(combine(adapters, options_of(type))) - adapters.sum()).norm(), tolerance(adapters));
  }
  const Adapters<TypeParam> nothing({0, 0});
  for (const auto type : all_types) EXPECT_EQ(combine(nothing, options_of(type)).A.rows(), 0) << name_of(type);
}

TEST(Dare, TheSeedAndTheStreamDecide) {
  const Adapters<float> adapters({3, 3});
  const auto inputs = adapters.inputs();
  CombineOptions options = options_of(CombinationType::dare_linear, 0.5);
  const auto draw = [&](std::uint64_t stream) {
    return combine_factors<float>(std::span<const WeightedFactors<float>>(inputs), options, stream).A;
  };
  const Matrix<float> first = draw(0);
  EXPECT_EQ(draw(0), first);
  EXPECT_NE(draw(1), first);
  options.seed = 6;
  EXPECT_NE(draw(0), first);
}

TEST(Dare, EveryAdapterAndFactorDrawsForItself) {
  Adapters<float> adapters({7, 7});
  for (auto& a : adapters.A) a = Matrix<float>::Ones(7, in_features);
  for (auto& b : adapters.B) b = Matrix<float>::Ones(out_features, 7);
  adapters.scaling = adapters.weight = {1.0, 1.0};
  const auto result = combine(adapters, options_of(CombinationType::dare_linear, 0.5));
  EXPECT_NE(result.A.topRows(7), result.A.bottomRows(7));
  EXPECT_NE(result.B.leftCols(7), result.B.rightCols(7));
  // In the order in which elements are drawn, row by row.
  const Matrix<float> b = result.B.leftCols(7);
  EXPECT_FALSE(std::equal(b.data(), b.data() + std::min(b.size(), 7 * in_features), result.A.data()));
}

// E[P(B_i) P(A_i)] = B_i A_i, since the factors draw independently. An element of one draw has a deviation below
// its bound |B||A|/density^2 by Cauchy-Schwarz; five deviations of the mean.
TEST(Dare, KeepsTheExpectationOfTheSum) {
  constexpr int seeds = 4000;
  constexpr double density = 0.5;
  const Adapters<double> adapters({2, 2, 2});
  for (const auto type : {CombinationType::dare_linear, CombinationType::dare_linear_svd}) {
    CombineOptions options = options_of(type, density);
    options.svd_rank = out_features;
    Matrix<double> mean = Matrix<double>::Zero(out_features, in_features);
    for (int seed = 0; seed < seeds; ++seed) {
      options.seed = static_cast<std::uint64_t>(seed);
      mean += delta_of(combine(adapters, options)) / seeds;
    }
    Matrix<double> variance = Matrix<double>::Zero(out_features, in_features);
    for (std::size_t i = 0; i < 3; ++i) {
      const double c = adapters.weight[i] * adapters.scaling[i];
      variance += c * c * 2 * (adapters.B[i].cwiseAbs2() * adapters.A[i].cwiseAbs2()) / (density * density);
    }
    const Matrix<double> deviations =
        (mean - adapters.sum()).cwiseAbs().cwiseQuotient((variance / double{seeds}).cwiseSqrt());
    EXPECT_LT(deviations.maxCoeff(), 5.0) << name_of(type);
  }
}

/// The message of the error that combining raises.
template <class Raised>
std::string refusal(const std::vector<WeightedFactors<float>>& inputs, const CombineOptions& options) {
  try {
    static_cast<void>(combine(inputs, options));
    return "";
  } catch (const Raised& error) {
    return error.what();
  }
}

TEST(CombineFactorsRefuses, NoAdapter) {
  EXPECT_NE(refusal<ConfigError>({}, options_of(CombinationType::cat)).find("at least one adapter"), std::string::npos);
}

TEST(CombineFactorsRefuses, ShapesThatDiffer) {
  const Adapters<float> adapters({2, 3});
  auto inputs = adapters.inputs();
  inputs[1].A.cols -= 1;
  EXPECT_NE(refusal<ShapeError>(inputs, options_of(CombinationType::cat)).find("adapter 1, A: expected N x 11"),
            std::string::npos);
  inputs = adapters.inputs();
  inputs[1].B.cols -= 1;
  EXPECT_NE(refusal<ShapeError>(inputs, options_of(CombinationType::cat)).find("adapter 1, B: expected 7 x 3"),
            std::string::npos);
}

TEST(CombineFactorsRefuses, RanksThatDifferWhereElementsAreMerged) {
  const Adapters<float> adapters({2, 3});
  CombineOptions options = options_of(CombinationType::ties);
  EXPECT_NE(refusal<ShapeError>(adapters.inputs(), options).find("expected 2 x 11, got 3 x 11"), std::string::npos);
  options = options_of(CombinationType::linear);
  EXPECT_EQ(refusal<ShapeError>(adapters.inputs(), options), "");
  options.compatibility = Compatibility::peft;
  EXPECT_NE(refusal<ShapeError>(adapters.inputs(), options), "");
}

TEST(CombineFactorsRefuses, NumbersThatAreNotFinite) {
  Adapters<float> adapters({2, 2});
  const auto linear = options_of(CombinationType::linear);
  adapters.weight[1] = std::numeric_limits<double>::infinity();
  EXPECT_NE(refusal<ConfigError>(adapters.inputs(), linear).find("adapter 1, weight"), std::string::npos);
  adapters.weight[1] = 1;
  adapters.A[0](1, 1) = std::numeric_limits<float>::quiet_NaN();
  for (const auto type : all_types) {
    EXPECT_NE(refusal<StateError>(adapters.inputs(), options_of(type)).find("adapter 0"), std::string::npos);
  }
}

TEST(CombineFactorsRefuses, AResultThatIsNotFinite) {
  Adapters<float> adapters({2, 2});
  adapters.scaling[0] = 1e80;  // its root is beyond float, too
  for (const auto type : all_types) {
    EXPECT_NE(refusal<StateError>(adapters.inputs(), options_of(type)), "") << name_of(type);
  }
}

}  // namespace
}  // namespace lora::testing
