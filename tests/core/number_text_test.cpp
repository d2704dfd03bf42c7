// SPDX-License-Identifier: MIT
#include "lora/core/number_text.hpp"

#include <gtest/gtest.h>
#include <limits>

namespace lora {
namespace {

TEST(NumberText, IsShortForRoundNumbersAndPreciseNearALimit) {
  EXPECT_EQ(detail::number_text(0.5), "0.5");
  EXPECT_EQ(detail::number_text(1.0000001), "1.0000001");
  EXPECT_EQ(detail::number_text(-1e-9), "-1e-09");
  EXPECT_EQ(detail::number_text(std::numeric_limits<double>::infinity()), "inf");
  EXPECT_EQ(detail::number_text(-std::numeric_limits<double>::max()), "-1.79769313e+308");
}

}  // namespace
}  // namespace lora
