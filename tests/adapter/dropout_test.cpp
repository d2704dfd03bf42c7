// SPDX-License-Identifier: MIT
#include "lora/adapter/dropout.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <utility>

#include "support/fnv1a.hpp"
#include "support/thread_executor.hpp"

namespace {

using lora::DropoutBits;
using lora::DropoutPosition;
using lora::Index;
using lora::Matrix;
using lora::testing::fnv1a;
using lora::testing::ThreadExecutor;

constexpr std::uint64_t seed = 0x0123456789abcdef;

DropoutBits drawn(double probability, const DropoutPosition& position, Index rows, Index cols,
                  std::uint64_t with_seed = seed) {
  DropoutBits bits;
  lora::SerialExecutor executor;
  bits.draw(probability, with_seed, position, rows, cols, executor);
  return bits;
}

// 1 where an element is kept.
Matrix<double> kept(const DropoutBits& bits, Index rows, Index cols) {
  const auto mask = bits.mask<double>(0.5);
  return Matrix<double>::NullaryExpr(rows, cols, [&](Index i, Index j) { return mask.keeps(i, j) ? 1.0 : 0.0; });
}

Matrix<double> kept(double probability, const DropoutPosition& position, Index rows, Index cols,
                    std::uint64_t with_seed = seed) {
  return kept(drawn(probability, position, rows, cols, with_seed), rows, cols);
}

TEST(DropoutBits, KeepRateIsOneMinusPWithinFiveSigma) {
  const Index rows = 500;
  const Index cols = 1001;
  const auto n = static_cast<double>(rows * cols);
  for (const double p : {0.001, 0.05, 0.1, 0.5, 0.9, 0.999}) {
    EXPECT_NEAR(kept(p, {3, 0}, rows, cols).mean(), 1 - p, 5 * std::sqrt(p * (1 - p) / n)) << "p = " << p;
  }
}

TEST(DropoutBits, KeepRateIsTheSameInEveryRowAndColumnClass) {
  const Index rows = 400;
  const Index cols = 800;
  const double p = 0.3;
  const auto mask = kept(p, {1, 0}, rows, cols);
  for (Index lane = 0; lane < 8; ++lane) {  // a block has 4 words, a byte 8 bits
    double sum = 0;
    for (Index j = lane; j < cols; j += 8) sum += mask.col(j).sum();
    const auto n = static_cast<double>(rows * cols / 8);
    EXPECT_NEAR(sum / n, 1 - p, 5 * std::sqrt(p * (1 - p) / n)) << "lane " << lane;
  }
  for (Index i = 0; i < rows; ++i) {
    EXPECT_NEAR(mask.row(i).mean(), 1 - p, 5 * std::sqrt(p * (1 - p) / static_cast<double>(cols))) << "row " << i;
  }
}

TEST(DropoutBits, NeighboursAreIndependent) {
  const Index rows = 600;
  const Index cols = 600;
  const double p = 0.2;
  const Matrix<double> centred = kept(p, {2, 0}, rows, cols).array() - (1 - p);
  for (const Index right : {0, 1, 2, 3, 4, 7, 8, 32}) {
    for (const Index down : {0, 1, 2, 8}) {
      if (right == 0 && down == 0) continue;
      const auto here = centred.topLeftCorner(rows - down, cols - right);
      const auto there = centred.bottomRightCorner(rows - down, cols - right);
      const double correlation = here.cwiseProduct(there).mean() / (p * (1 - p));
      EXPECT_LT(std::abs(correlation), 5 / std::sqrt(static_cast<double>(here.size()))) << right << ", " << down;
    }
  }
}

TEST(DropoutBits, StepsAndSeedsAreIndependent) {
  const Index rows = 300;
  const Index cols = 300;
  const double p = 0.5;
  const auto centred = [&](std::uint64_t step, std::uint64_t with_seed) -> Matrix<double> {
    return kept(p, {step, 0}, rows, cols, with_seed).array() - (1 - p);
  };
  const Matrix<double> base = centred(0, seed);
  const double bound = 5 / std::sqrt(static_cast<double>(rows * cols));
  for (const std::uint64_t step : {1ULL, 2ULL, 1ULL << 32U, (1ULL << 63U) - 1}) {
    EXPECT_LT(std::abs(base.cwiseProduct(centred(step, seed)).mean() / (p * (1 - p))), bound) << "step " << step;
  }
  for (const std::uint64_t other : {seed + 1, seed ^ (std::uint64_t{1} << 63U), std::uint64_t{0}}) {
    EXPECT_LT(std::abs(base.cwiseProduct(centred(0, other)).mean() / (p * (1 - p))), bound) << "seed " << other;
  }
}

TEST(DropoutBits, AreAFunctionOfSeedStepAndElement) {
  EXPECT_EQ(kept(0.4, {9, 2}, 13, 29), kept(0.4, {9, 2}, 13, 29));
  EXPECT_NE(kept(0.4, {9, 2}, 13, 29), kept(0.4, {10, 2}, 13, 29));
  EXPECT_NE(kept(0.4, {9, 2}, 13, 29), kept(0.4, {9, 2}, 13, 29, seed + 1));
}

TEST(DropoutBits, DoNotDependOnTheNumberOfWorkers) {
  const Index rows = 37;
  const Index cols = 53;
  const auto expected = kept(0.3, {4, 11}, rows, cols);
  for (int workers = 1; workers <= 9; ++workers) {
    ThreadExecutor executor(workers);
    DropoutBits bits;
    bits.draw(0.3, seed, {4, 11}, rows, cols, executor);
    EXPECT_EQ(kept(bits, rows, cols), expected) << workers << " workers";
  }
}

TEST(DropoutBits, TheUnionOfPartsIsTheWhole) {
  const Index rows = 24;
  const Index cols = 19;
  const auto whole = kept(0.3, {5, 100}, rows, cols);
  for (Index first = 0; first <= rows; ++first) {
    EXPECT_EQ(kept(0.3, {5, 100}, first, cols), whole.topRows(first));
    EXPECT_EQ(kept(0.3, {5, 100 + first}, rows - first, cols), whole.bottomRows(rows - first));
  }
}

TEST(DropoutBits, ANarrowerBatchSeesTheSameElements) {
  const auto wide = kept(0.3, {6, 0}, 5, 70);
  for (Index cols = 1; cols < 70; ++cols) EXPECT_EQ(kept(0.3, {6, 0}, 5, cols), wide.leftCols(cols)) << cols;
}

TEST(DropoutBits, RowsFarIntoABatchAreNotThoseOfItsBeginning) {
  const auto beginning = kept(0.5, {0, 0}, 4, 64);
  for (const Index first : {Index{4}, Index{1} << 20, Index{1} << 32, (Index{1} << 34) - 4}) {
    EXPECT_NE(kept(0.5, {0, first}, 4, 64), beginning) << first;
  }
}

TEST(DropoutBits, TheWordDecidesByComparisonWithP) {
  const Index rows = 3;
  const Index cols = 11;
  const double p = 0.25;
  const auto mask = kept(p, {7, 40}, rows, cols);
  const lora::RandomStream stream(seed, 7);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      const auto block = stream.block((static_cast<std::uint64_t>(40 + i) << 30U) + static_cast<std::uint64_t>(j / 4));
      EXPECT_EQ(mask(i, j) == 1.0, block[static_cast<std::size_t>(j % 4)] >= 0x40000000U) << i << ", " << j;
    }
  }
}

TEST(DropoutBits, KeptElementsStayKeptAsPFalls) {
  auto more = kept(0.999, {8, 0}, 20, 50);
  for (const double p : {0.9, 0.5, 0.1, 0.01, 0.0}) {
    const auto fewer_dropped = kept(p, {8, 0}, 20, 50);
    EXPECT_TRUE((fewer_dropped.array() >= more.array()).all()) << p;
    more = fewer_dropped;
  }
}

TEST(DropoutBits, AtPZeroAllAreKept) {
  EXPECT_EQ(kept(0.0, {0, 0}, 40, 77), (Matrix<double>::Ones(40, 77)));
  EXPECT_EQ(drawn(0.0, {0, 0}, 1, 1).mask<float>(0.0).scale, 1.0F);
}

TEST(DropoutBits, BitsBeyondTheLastColumnAreZero) {
  for (Index cols = 1; cols <= 33; ++cols) {
    const Index rows = 6;
    const DropoutBits bits = drawn(0.0, {1, 0}, rows, cols);
    const auto mask = bits.mask<float>(0.0);
    ASSERT_EQ(mask.row_bytes, (cols + 7) / 8);
    for (Index i = 0; i < rows; ++i) {
      int count = 0;
      for (Index byte = 0; byte < mask.row_bytes; ++byte) count += std::popcount(mask.row(i)[byte]);
      EXPECT_EQ(count, cols);
    }
  }
}

// The share of words that reach the threshold t is (2^32 - t) / 2^32 exactly, and the factor is its inverse.
TEST(DropoutBits, ScaleKeepsTheExpectation) {
  for (const double p : {0.0, 0.05, 0.1, 0.5, 0.75, 0.9}) {
    const DropoutBits bits = drawn(p, {0, 0}, 1, 1);
    EXPECT_NEAR(bits.mask<double>(p).scale, 1 / (1 - p), 0x1p-32 / ((1 - p) * (1 - p))) << p;
    EXPECT_FLOAT_EQ(bits.mask<float>(p).scale, static_cast<float>(1 / (1 - p))) << p;
  }
  const auto scale = [](double p) { return DropoutBits{}.mask<double>(p).scale; };
  EXPECT_EQ(scale(0x1p-34), 1);  // rounds to no dropout
  EXPECT_EQ(scale(0x1p-32), 0x1p32 / (0x1p32 - 1));
  EXPECT_EQ(scale(1 - 0x1p-24), 0x1p24);
  EXPECT_EQ(scale(1 - 3 * 0x1p-32), 0x1p32 / 3);
  EXPECT_EQ(scale(1 - 2.75 * 0x1p-32), 0x1p32 / 3);
  EXPECT_EQ(scale(1 - 2.25 * 0x1p-32), 0x1p32 / 2);  // the nearest threshold, and not the one below
  EXPECT_EQ(scale(0.75 * 0x1p-32), 0x1p32 / (0x1p32 - 1));
  EXPECT_EQ(scale(1 - 0x1p-32), 0x1p32);
  EXPECT_EQ(scale(1 - 0x1.8p-33), 0x1p32);
}

// At the ends of the range the share is too small to count. The words are drawn anew here, and those that are kept are
// exactly the ones that reach a threshold just below the largest of them, and none of the others.
TEST(DropoutBits, KeepRatesHoldAtTheEndsOfTheRange) {
  const Index rows = 50;
  const Index cols = 400;
  const lora::RandomStream stream(seed, 3);
  Matrix<double> words(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      const auto block = stream.block((static_cast<std::uint64_t>(i) << 30U) + static_cast<std::uint64_t>(j / 4));
      words(i, j) = block[static_cast<std::size_t>(j % 4)];
    }
  }
  for (const double threshold : {1.0, 0x1p32 - 1, words.minCoeff(), words.minCoeff() + 1, words.maxCoeff(),
                                 words.maxCoeff() + 1, 0x1p32 - 0x1p8, 0x1p32 - 0x1p16, 0x1p16}) {
    const double p = threshold * 0x1p-32;
    EXPECT_EQ(kept(p, {3, 0}, rows, cols), (words.array() >= threshold).cast<double>().matrix()) << threshold;
    const double share = (0x1p32 - threshold) * 0x1p-32;
    EXPECT_EQ(DropoutBits{}.mask<double>(p).scale, 1 / share) << threshold;
  }
}

TEST(DropoutBits, TakeOneBitPerElementAndWholeBytesPerRow) {
  EXPECT_EQ(drawn(0.1, {0, 0}, 5, 8).bytes(), 5U);
  EXPECT_EQ(drawn(0.1, {0, 0}, 5, 9).bytes(), 10U);
  EXPECT_EQ(drawn(0.1, {0, 0}, 0, 9).bytes(), 0U);
  EXPECT_EQ(DropoutBits{}.bytes(), 0U);
}

TEST(DropoutBits, AreDrawnAnewOverAnOlderMaskOfAnyShape) {
  DropoutBits bits;
  lora::SerialExecutor executor;
  for (const auto& [rows, cols] : {std::pair<Index, Index>{9, 40}, {3, 7}, {30, 5}, {1, 100}}) {
    bits.draw(0.4, seed, {2, 1}, rows, cols, executor);
    EXPECT_EQ(kept(bits, rows, cols), kept(0.4, {2, 1}, rows, cols));
    EXPECT_EQ(bits.bytes(), static_cast<std::size_t>(rows * ((cols + 7) / 8)));
  }
}

// The hash comes from a separate program in another language, which wrote Philox and the rule anew.
TEST(DropoutBits, AreTheSameEverywhere) {
  const DropoutBits bits = drawn(0.1, {7, 5}, 7, 37);
  EXPECT_EQ(fnv1a(bits.mask<float>(0.1).bits, bits.bytes()), 0x1100f4737cbde2d3U);
}

}  // namespace
