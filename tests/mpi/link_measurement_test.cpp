// SPDX-License-Identifier: MIT
// Measured times are positive, in the order of the sizes, and the same on every rank.
#include "sentence_encoder/link_measurement.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "mpi/ranks.hpp"

namespace lora::testing::link_measurement_test {
namespace {

using namespace examples::sentence_encoder;

TEST(MeasureReductions, OneTimeForEachSize) {
  const std::vector<Index> sizes = {1, 1000, 100000};
  const auto measured = measure_reductions(world(), sizes, 3);
  ASSERT_EQ(measured.size(), sizes.size());
  Matrix<double> times(1, 3);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(measured[i].bytes, 4.0 * static_cast<double>(sizes[i]));
    EXPECT_GT(measured[i].seconds, 0);
    times(0, static_cast<Index>(i)) = measured[i].seconds;
  }
  EXPECT_TRUE(same_on_all_ranks(times));
  if (world().size() > 1) {
    EXPECT_GT(fit_link(measured, world().size()).bandwidth(), 0);
  }
}

TEST(MeasureReductions, RefusesWhatCannotBeMeasured) {
  EXPECT_THROW(static_cast<void>(measure_reductions(world(), std::vector<Index>{10}, 0)), ConfigError);
  EXPECT_THROW(static_cast<void>(measure_reductions(world(), std::vector<Index>{0}, 3)), ConfigError);
}

}  // namespace
}  // namespace lora::testing::link_measurement_test
