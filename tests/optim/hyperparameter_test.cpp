// SPDX-License-Identifier: MIT
#include "lora/optim/hyperparameter.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>

namespace lora_hyperparameter_test {

using lora::ConfigError;
using lora::detail::require_below;
using lora::detail::require_not_negative;

constexpr double infinity = std::numeric_limits<double>::infinity();

TEST(RequireBelow, TakesTheHalfOpenInterval) {
  EXPECT_NO_THROW(require_below("test", "beta", 0.0, 1.0));
  EXPECT_NO_THROW(require_below("test", "beta", std::nextafter(1.0, 0.0), 1.0));
  for (const double value : {1.0, -std::numeric_limits<double>::denorm_min(), infinity, std::nan("")}) {
    EXPECT_THROW(require_below("test", "beta", value, 1.0), ConfigError) << value;
  }
}

TEST(RequireNotNegative, TakesWhatIsFiniteInTheScalar) {
  EXPECT_NO_THROW(require_not_negative<float>("test", "rate", 0.0));
  EXPECT_NO_THROW(require_not_negative<float>("test", "rate", std::numeric_limits<float>::max()));
  EXPECT_NO_THROW(require_not_negative<double>("test", "rate", 1e300));
  for (const double value : {1e300, -1e-300, infinity, -infinity, std::nan("")}) {
    EXPECT_THROW(require_not_negative<float>("test", "rate", value), ConfigError) << value;
  }
}

TEST(RequireNotNegative, NamesOperationArgumentAndValue) {
  try {
    require_not_negative<float>("AdamW", "epsilon", -0.25);
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()), "AdamW: epsilon: expected a finite number that is not negative, got -0.25");
  }
}

}  // namespace lora_hyperparameter_test
