// SPDX-License-Identifier: MIT
#include "sentence_encoder/step_cost.hpp"

#include <unistd.h>

#include <csignal>
#include <gtest/gtest.h>
#include <stdexcept>
#include <vector>

namespace step_cost_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test

TEST(Median, IsTheMiddleAndTheUpperOfTwo) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 3, 2}), 3);
  EXPECT_THROW(static_cast<void>(median({})), lora::ConfigError);
}

TEST(CostInChild, GivesBackWhatTheChildMeasured) {
  const StepCost cost = cost_in_child("test", [] { return StepCost{0.25, 17, 0}; });
  EXPECT_EQ(cost.median_seconds, 0.25);
  EXPECT_EQ(cost.trainable_parameters, 17);
}

TEST(CostInChild, SeesTheMemoryThatTheChildTouched) {
  constexpr std::size_t size = std::size_t{64} << 20U;
  const auto plain = cost_in_child("test", [] { return StepCost{}; });
  const auto large = cost_in_child("test", [] {
    const std::vector<char> touched(size, 1);
    return StepCost{0, touched[size / 2], 0};
  });
  EXPECT_GE(large.peak_bytes, plain.peak_bytes + size / 10 * 9);
}

TEST(CostInChild, AChildThatFailsIsAnError) {
  EXPECT_THROW(static_cast<void>(cost_in_child("test", []() -> StepCost { throw std::runtime_error("no"); })),
               lora::StateError);
}

// Ctrl-C while the parent waits used to be reported as a child that failed.
TEST(CostInChild, ASignalIsAnInterruptionAndNoFailureOfTheChild) {
  examples::handle_signals();
  const auto measure = [parent = ::getpid()] {
    ::kill(parent, SIGINT);
    ::usleep(100'000);
    return StepCost{};
  };
  EXPECT_THROW(static_cast<void>(cost_in_child("test", measure)), examples::Interrupted);
  examples::detail::received_signal.store(0);
  for (const int signal : {SIGINT, SIGTERM, SIGPIPE, SIGXFSZ}) ::signal(signal, SIG_DFL);
}

}  // namespace
}  // namespace step_cost_test
