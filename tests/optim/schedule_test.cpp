// SPDX-License-Identifier: MIT
#include "lora/optim/schedule.hpp"

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>

#include "lora/optim/sgd.hpp"

namespace {

using lora::ConfigError;
using lora::WarmupCosine;

constexpr double unit = std::numeric_limits<double>::epsilon();

TEST(WarmupCosineTest, MeetsItsBoundariesExactly) {
  const WarmupCosine rate({.learning_rate = 0.3, .floor = 0.007, .warmup_steps = 10, .total_steps = 100});
  EXPECT_EQ(rate(0), 0.0);
  EXPECT_LT(rate(9), 0.3);
  EXPECT_EQ(rate(10), 0.3);
  EXPECT_LT(rate(11), 0.3);
  EXPECT_GT(rate(99), 0.007);
  EXPECT_EQ(rate(100), 0.007);
  EXPECT_EQ(rate(101), 0.007);
  EXPECT_EQ(rate(std::numeric_limits<std::int64_t>::max()), 0.007);
}

TEST(WarmupCosineTest, RisesInEqualSteps) {
  const WarmupCosine rate({.learning_rate = 0.3, .warmup_steps = 10, .total_steps = 100});
  for (int step = 0; step < 10; ++step) EXPECT_NEAR(rate(step), 0.03 * step, 2 * unit * 0.3) << step;
}

// cos(pi/3) = 1/2, cos(pi/2) = 0, cos(2 pi/3) = -1/2; the argument of the cosine is at most pi and rounds twice.
TEST(WarmupCosineTest, FallsAlongACosine) {
  const WarmupCosine rate({.learning_rate = 0.8, .warmup_steps = 10, .total_steps = 100});
  EXPECT_NEAR(rate(40), 0.75 * 0.8, 8 * unit);
  EXPECT_NEAR(rate(55), 0.5 * 0.8, 8 * unit);
  EXPECT_NEAR(rate(70), 0.25 * 0.8, 8 * unit);
  const WarmupCosine floored({.learning_rate = 0.8, .floor = 0.4, .warmup_steps = 10, .total_steps = 100});
  EXPECT_NEAR(floored(40), 0.7, 8 * unit);
  EXPECT_NEAR(floored(55), 0.6, 8 * unit);
}

TEST(WarmupCosineTest, NeverRisesAfterTheWarmupNorLeavesItsRange) {
  const WarmupCosine rate({.learning_rate = 0.3, .floor = 0.1, .warmup_steps = 3, .total_steps = 1000});
  for (int step = 3; step < 1010; ++step) {
    EXPECT_LE(rate(step + 1), rate(step)) << step;
    EXPECT_GE(rate(step), 0.1) << step;
  }
}

TEST(WarmupCosineTest, WithoutWarmupStartsAtThePeak) {
  const WarmupCosine rate({.learning_rate = 0.3, .floor = 0.1, .total_steps = 1});
  EXPECT_EQ(rate(0), 0.3);
  EXPECT_EQ(rate(1), 0.1);
}

// Defect: refused, for the cosine would divide 0 by 0.
TEST(WarmupCosineTest, AWarmupThatFillsTheWholeRunEndsAtTheFloor) {
  const WarmupCosine rate({.learning_rate = 0.3, .floor = 0.1, .warmup_steps = 4, .total_steps = 4});
  EXPECT_EQ(rate(0), 0.0);
  EXPECT_EQ(rate(2), 0.15);
  EXPECT_LT(rate(3), 0.3);
  EXPECT_EQ(rate(4), 0.1);
  EXPECT_EQ(rate(5), 0.1);
}

TEST(WarmupCosineTest, WithTheFloorAtThePeakIsConstantAfterTheWarmup) {
  const WarmupCosine rate({.learning_rate = 0.3, .floor = 0.3, .warmup_steps = 2, .total_steps = 9});
  EXPECT_EQ(rate(1), 0.15);
  for (int step = 2; step < 12; ++step) EXPECT_EQ(rate(step), 0.3) << step;
}

TEST(WarmupCosineTest, DependsOnTheStepAlone) {
  const WarmupCosine rate({.learning_rate = 0.3, .warmup_steps = 5, .total_steps = 50});
  const double late = rate(40);
  const double early = rate(3);
  EXPECT_EQ(rate(40), late);
  EXPECT_EQ(rate(3), early);
}

TEST(WarmupCosineTest, GivesRatesThatAnOptimizerTakes) {
  const WarmupCosine rate({.learning_rate = 0.3, .warmup_steps = 5, .total_steps = 50});
  lora::SGD<float> optimizer;
  for (int step = 0; step < 60; ++step) {
    optimizer.set_learning_rate(rate(step));
    EXPECT_EQ(optimizer.learning_rate(), rate(step));
  }
}

TEST(WarmupCosineTest, RefusesOptionsOutOfRange) {
  const double nan = std::nan("");
  const double infinite = std::numeric_limits<double>::infinity();
  for (const double bad : {-0.1, nan, infinite}) {
    EXPECT_THROW(WarmupCosine({.learning_rate = bad, .total_steps = 9}), ConfigError) << bad;
    EXPECT_THROW(WarmupCosine({.floor = bad, .total_steps = 9}), ConfigError) << bad;
  }
  EXPECT_THROW(WarmupCosine({.learning_rate = 0.1, .floor = 0.2, .total_steps = 9}), ConfigError);
  EXPECT_THROW(WarmupCosine({.warmup_steps = -1, .total_steps = 9}), ConfigError);
  EXPECT_THROW(WarmupCosine({.warmup_steps = 10, .total_steps = 9}), ConfigError);
  EXPECT_THROW(WarmupCosine({.total_steps = 0}), ConfigError);
  EXPECT_THROW(static_cast<void>(WarmupCosine({.total_steps = 9})(-1)), ConfigError);
}

}  // namespace
