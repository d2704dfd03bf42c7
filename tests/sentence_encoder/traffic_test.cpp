// SPDX-License-Identifier: MIT
// Bytes and seconds of a step, against numbers worked out by hand.
#include "sentence_encoder/traffic.hpp"

#include <gtest/gtest.h>
#include <vector>

namespace traffic_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test

TEST(Traffic, EveryRankSendsNearlyTwiceTheGradients) {
  EXPECT_EQ(step_traffic(1000, 1), 0);
  EXPECT_EQ(step_traffic(1000, 2), 1000);
  EXPECT_EQ(step_traffic(1000, 4), 1500);
  EXPECT_EQ(step_traffic(6400, 64), 12600);
  EXPECT_THROW(static_cast<void>(step_traffic(1000, 0)), lora::ConfigError);
}

TEST(Traffic, SecondsAreThoseOfTheMessages) {
  const Link link{.latency = 1e-6, .byte_time = 1e-9};
  EXPECT_DOUBLE_EQ(link.bandwidth(), 1e9);
  EXPECT_EQ(reduction_seconds(link, 1e6, 1), 0);
  EXPECT_DOUBLE_EQ(reduction_seconds(link, 1e6, 2), 2e-6 + 1e-3);
  EXPECT_DOUBLE_EQ(reduction_seconds(link, 64e6, 64), 2 * 63 * 1e-6 + 2 * 63e6 * 1e-9);
}

std::vector<ReductionTime> times(const Link& link, int ranks, const std::vector<double>& sizes) {
  std::vector<ReductionTime> result;
  for (const double bytes : sizes) result.push_back({bytes, reduction_seconds(link, bytes, ranks)});
  return result;
}

TEST(FitLink, RecoversTheLinkThatMadeTheTimes) {
  const Link link{.latency = 30e-6, .byte_time = 1e-10};
  for (const int ranks : {2, 3, 64}) {
    const Link fitted = fit_link(times(link, ranks, {1e3, 1e5, 1e7, 1e8}), ranks);
    EXPECT_NEAR(fitted.latency / link.latency, 1, 1e-9);
    EXPECT_NEAR(fitted.byte_time / link.byte_time, 1, 1e-9);
  }
}

TEST(FitLink, AnErrorOfTenPercentMovesItByAboutAsMuch) {
  const Link link{.latency = 30e-6, .byte_time = 1e-10};
  auto measured = times(link, 4, {1e3, 1e4, 1e5, 1e6, 1e7, 1e8});
  for (std::size_t i = 0; i < measured.size(); ++i) measured[i].seconds *= i % 2 == 0 ? 1.1 : 0.9;
  const Link fitted = fit_link(measured, 4);
  EXPECT_NEAR(fitted.latency / link.latency, 1, 0.15);
  EXPECT_NEAR(fitted.byte_time / link.byte_time, 1, 0.15);
}

TEST(FitLink, NeitherNumberIsNegative) {
  const Link no_latency = fit_link(std::vector<ReductionTime>{{1e3, 1e-7}, {1e6, 1e-3}}, 2);
  EXPECT_EQ(no_latency.latency, 0);
  EXPECT_GT(no_latency.byte_time, 0);
  const Link no_byte_time = fit_link(std::vector<ReductionTime>{{1e3, 2e-3}, {1e6, 1e-3}}, 2);
  EXPECT_GT(no_byte_time.latency, 0);
  EXPECT_EQ(no_byte_time.byte_time, 0);
}

TEST(FitLink, RefusesWhatTellsNothing) {
  EXPECT_THROW(static_cast<void>(fit_link(times({1e-6, 1e-9}, 2, {1e3, 1e6}), 1)), lora::ConfigError);
  EXPECT_THROW(static_cast<void>(fit_link({}, 2)), lora::ConfigError);
  EXPECT_THROW(static_cast<void>(fit_link(times({1e-6, 1e-9}, 2, {1e3, 1e3}), 2)), lora::ConfigError);
  EXPECT_THROW(static_cast<void>(fit_link(std::vector<ReductionTime>{{1e3, 0}, {1e6, 1}}, 2)), lora::ConfigError);
}

}  // namespace
}  // namespace traffic_test
