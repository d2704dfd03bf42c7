// SPDX-License-Identifier: MIT
#include "lora/core/random.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>

namespace {

using lora::Index;
using lora::Matrix;
using lora::RandomStream;

// 50-digit values of sqrt(2) * erfinv(2 p - 1), rounded.
TEST(NormalQuantile, AgreesWithTabulatedValues) {
  EXPECT_EQ(lora::normal_quantile(0.5), 0.0);
  EXPECT_NEAR(lora::normal_quantile(0.975), 1.959963984540054, 4e-16 * 4);
  EXPECT_NEAR(lora::normal_quantile(0.8413447460685429), 1.0, 4e-16 * 4);
  EXPECT_NEAR(lora::normal_quantile(1e-3), -3.090232306167813, 4e-16 * 8);
  EXPECT_NEAR(lora::normal_quantile(1e-10), -6.361340902404056, 4e-16 * 16);
}

TEST(NormalQuantile, InvertsTheDistributionFunction) {
  for (double p = 1e-15; p < 1.0; p = p < 0.01 ? p * 3 : p + 0.003) {
    const double back = 0.5 * std::erfc(-lora::normal_quantile(p) / std::sqrt(2.0));
    EXPECT_NEAR(back / p, 1.0, 2e-13) << p;  // d log(cdf) / d log(x) is up to x^2 = 63 here
  }
}

TEST(NormalQuantile, IsOddAroundOneHalf) {
  for (double p = 0x1p-20; p < 0.5; p += 0x1p-7) EXPECT_EQ(lora::normal_quantile(p), -lora::normal_quantile(1.0 - p));
}

TEST(ReproducibleLog, AgreesWithTheLibraryToTheLastPlaces) {
  for (double x = 1e-300; x < 1e300; x *= 1.37) {
    EXPECT_NEAR(lora::detail::reproducible_log(x), std::log(x), 4 * 0x1p-53 * std::max(1.0, std::abs(std::log(x))))
        << x;
  }
}

TEST(FillUniform, HasTheRightMomentsAndStaysInside) {
  Matrix<double> values(300, 1000);
  lora::fill_uniform(lora::view_of(values), 0.25, RandomStream(1, 2));
  const auto n = static_cast<double>(values.size());
  EXPECT_LE(values.cwiseAbs().maxCoeff(), 0.25);
  EXPECT_GT(values.maxCoeff(), 0.2499);
  EXPECT_LT(values.minCoeff(), -0.2499);
  const double deviation = 0.25 / std::sqrt(3.0);
  EXPECT_NEAR(values.mean(), 0.0, 5 * deviation / std::sqrt(n));
  EXPECT_NEAR(values.squaredNorm() / n, deviation * deviation, 5 * 0.9 * deviation * deviation / std::sqrt(n));
}

TEST(FillNormal, HasTheRightMoments) {
  Matrix<double> values(300, 1000);
  lora::fill_normal(lora::view_of(values), 2.0, RandomStream(7, 9));
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(values.mean(), 0.0, 5 * 2.0 / std::sqrt(n));
  EXPECT_NEAR(values.squaredNorm() / n, 4.0, 5 * 4.0 * std::sqrt(2.0 / n));
  EXPECT_NEAR(values.array().pow(4).mean() / 16.0, 3.0, 5 * std::sqrt(96.0 / n));
}

// Bits computed once; any platform, compiler or -ffp-contract setting must repeat them.
TEST(FillUniform, BitsAreTheSameEverywhere) {
  Matrix<float> single(1, 3);
  Matrix<double> twice(1, 3);
  lora::fill_uniform(lora::view_of(single), 0.1, RandomStream(42, 0));
  lora::fill_uniform(lora::view_of(twice), 0.1, RandomStream(42, 0));
  for (Index j = 0; j < 3; ++j) EXPECT_EQ(single(0, j), static_cast<float>(twice(0, j)));
  EXPECT_EQ(twice(0, 0), 0x1.72259dc5ff76dp-6);
  EXPECT_EQ(twice(0, 2), 0x1.8f8a03b10bee2p-4);
}

// Two elements share a block: each takes two of its words, the upper half of the number first.
TEST(FillUniform, EveryElementHasWordsOfItsOwn) {
  Matrix<double> values(1, 5);
  const RandomStream stream(42, 3);
  lora::fill_uniform(lora::view_of(values), 1.0, stream);
  for (Index j = 0; j < 5; ++j) {
    const auto words = stream.block(static_cast<std::uint64_t>(j / 2));
    const auto first = static_cast<std::size_t>(j % 2 * 2);
    const std::uint64_t bits = std::uint64_t{words[first]} << 32U | words[first + 1];
    EXPECT_EQ(values(0, j), static_cast<double>(bits >> 11U) * 0x1p-52 - 1.0) << j;
  }
}

TEST(FillNormal, BitsAreTheSameEverywhere) {
  Matrix<double> values(1, 64);
  lora::fill_normal(lora::view_of(values), 1.0, RandomStream(42, 0));
  EXPECT_EQ(values(0, 0), 0x1.25ee4fdbb73d7p-2);
  std::uint64_t hash = 0;
  for (Index j = 0; j < 64; ++j) hash = hash * 1099511628211U ^ std::bit_cast<std::uint64_t>(values(0, j));
  EXPECT_EQ(hash, 0x21b3b670ec37761cU);
}

TEST(FillUniform, ReadsRowByRowWhateverTheStorageOrder) {
  Matrix<double> rows(5, 7);
  Eigen::MatrixXd columns(5, 7);
  lora::fill_uniform(lora::view_of(rows), 1.0, RandomStream(3, 0));
  lora::fill_uniform(lora::view_of(columns), 1.0, RandomStream(3, 0));
  EXPECT_EQ(rows, columns);
}

}  // namespace
