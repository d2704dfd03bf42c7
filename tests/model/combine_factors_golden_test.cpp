// SPDX-License-Identifier: MIT
// combine_factors with Compatibility::peft against add_weighted_adapter of huggingface/peft, and what exact changes.
#include <Eigen/SVD>
#include <cmath>
#include <gtest/gtest.h>
#include <span>
#include <string>
#include <vector>

#include "lora/model/combine_factors.hpp"
#include "support/golden.hpp"

namespace lora::testing {
namespace {

using Input = WeightedFactors<float>;

/// The adapters and options of one file.
struct Case {
  explicit Case(const std::string& name)
      : golden(Golden::load(golden_path("combine_" + name))), lora(golden.description().at("lora")) {
    const std::size_t count = lora.at("ranks").size();
    for (std::size_t i = 0; i < count; ++i) {
      A.push_back(golden.matrix<float>("a" + std::to_string(i) + ".lora_A"));
      B.push_back(golden.matrix<float>("a" + std::to_string(i) + ".lora_B"));
      scaling.push_back(lora.at("alphas").at(i).get<double>() / lora.at("ranks").at(i).get<double>());
      weight.push_back(lora.at("weights").at(i));
    }
    for (std::size_t i = 0; i < count; ++i) inputs.push_back({view_of(A[i]), view_of(B[i]), scaling[i], weight[i]});
    options.combination_type = parse_combination_type(lora.at("combination_type").get<std::string>()).value();
    options.compatibility = Compatibility::peft;
    if (lora.contains("density")) options.density = lora.at("density").get<double>();
    if (lora.contains("svd_rank")) options.svd_rank = lora.at("svd_rank").get<Index>();
  }

  [[nodiscard]] CombinedFactors<float> run() const { return combine_factors<float>(std::span(inputs), options); }

  /// sum of w_i s_i^power B_i A_i, in double.
  [[nodiscard]] Matrix<double> weighted_deltas(int power) const {
    Matrix<double> sum = Matrix<double>::Zero(B.front().rows(), A.front().cols());
    for (std::size_t i = 0; i < A.size(); ++i) {
      sum += weight[i] * std::pow(scaling[i], power) * (B[i].cast<double>() * A[i].cast<double>());
    }
    return sum;
  }

  Golden golden;
  nlohmann::json lora;
  std::vector<Matrix<float>> A;
  std::vector<Matrix<float>> B;
  std::vector<double> scaling;
  std::vector<double> weight;
  std::vector<Input> inputs;
  CombineOptions options;
};

[[nodiscard]] Matrix<double> delta_of(const CombinedFactors<float>& factors) {
  return factors.scaling * factors.B.cast<double>() * factors.A.cast<double>();
}

/// |ours - theirs| relative to their norm.
[[nodiscard]] double distance(const Matrix<double>& ours, const Matrix<double>& theirs) {
  return (ours - theirs).norm() / theirs.norm();
}

class PeftCombination : public ::testing::TestWithParam<const char*> {};

TEST_P(PeftCombination, DeltaWeightIsPefts) {
  const Case golden(GetParam());
  const bool svd = std::string(GetParam()).find("svd") != std::string::npos;
  EXPECT_LT(distance(delta_of(golden.run()), golden.golden.matrix("mix.delta")), svd ? 1e-4 : 1e-5);
}

TEST_P(PeftCombination, RankAndScalingArePefts) {
  const Case golden(GetParam());
  const auto ours = golden.run();
  EXPECT_EQ(ours.A.rows(), golden.golden.shape("mix.lora_A").front());
  EXPECT_EQ(ours.B.cols(), golden.golden.shape("mix.lora_A").front());
  EXPECT_EQ(ours.scaling, golden.lora.at("mix_scaling").get<double>());
}

INSTANTIATE_TEST_SUITE_P(Golden, PeftCombination,
                         ::testing::Values("linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune",
                                           "magnitude_prune_svd"),
                         [](const auto& one) { return std::string(one.param); });

class PeftFactors : public ::testing::TestWithParam<const char*> {};

TEST_P(PeftFactors, AreUniqueWithoutAnSvd) {
  const Case golden(GetParam());
  const auto ours = golden.run();
  EXPECT_LT(distance(ours.A.cast<double>(), golden.golden.matrix("mix.lora_A")), 1e-6);
  EXPECT_LT(distance(ours.B.cast<double>(), golden.golden.matrix("mix.lora_B")), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Golden, PeftFactors, ::testing::Values("linear", "cat", "ties", "magnitude_prune"),
                         [](const auto& one) { return std::string(one.param); });

// PEFT's get_delta_weight has the scaling, and its weights have it again.
TEST(PeftSvd, CountsTheScalingTwice) {
  const Case golden("svd");
  const auto residual = [&](int power) {
    const Matrix<double> sum = golden.weighted_deltas(power);
    const Eigen::JacobiSVD<Eigen::MatrixXd> svd(sum);
    return std::abs((sum - golden.golden.matrix("mix.delta")).norm() - svd.singularValues().tail(8).norm()) /
           sum.norm();
  };
  EXPECT_LT(residual(2), 1e-5);
  EXPECT_GT(residual(1), 1e-2);
}

TEST(PeftSvd, ExactCountsTheScalingOnce) {
  Case golden("svd");
  golden.options.compatibility = Compatibility::exact;
  golden.options.svd_rank = 10;
  EXPECT_LT(distance(delta_of(golden.run()), golden.weighted_deltas(1)), 1e-6);
}

TEST(PeftLinear, HasCrossTermsThatExactHasNot) {
  Case golden("linear");
  Matrix<double> cross_terms = Matrix<double>::Zero(12, 16);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 3; ++j) {
      if (i == j) continue;
      const double root = std::sqrt(golden.weight[i] * golden.scaling[i] * golden.weight[j] * golden.scaling[j]);
      cross_terms += root * (golden.B[i].cast<double>() * golden.A[j].cast<double>());
    }
  }
  const Matrix<double> theirs = golden.golden.matrix("mix.delta");
  EXPECT_LT(distance(golden.weighted_deltas(1) + cross_terms, theirs), 1e-6);
  EXPECT_GT(cross_terms.norm() / theirs.norm(), 0.1);
  golden.options.compatibility = Compatibility::exact;
  EXPECT_LT(distance(delta_of(golden.run()), golden.weighted_deltas(1)), 1e-6);
}

}  // namespace
}  // namespace lora::testing
