// SPDX-License-Identifier: MIT
#include "lora/kernels/isa.hpp"

#include <cstdlib>
#include <gtest/gtest.h>
#include <string>

namespace lora {
namespace {

TEST(Isa, PortableIsAlwaysSupported) { EXPECT_TRUE(isa_supported(Isa::portable)); }

TEST(Isa, BestIsTheHighestSupportedWithinTheLimit) {
  for (const Isa limit : all_isas) {
    const Isa best = best_isa(limit);
    EXPECT_TRUE(isa_supported(best));
    EXPECT_LE(best, limit);
    for (const Isa higher : all_isas) {
      if (higher > best && higher <= limit) {
        EXPECT_FALSE(isa_supported(higher));
      }
    }
  }
}

// Each choice in a process of its own, since it is made once.

void exit_with_active_isa(const char* variable) {
  if (variable == nullptr) {
    unsetenv("LORA_ISA");
  } else {
    setenv("LORA_ISA", variable, 1);
  }
  std::exit(static_cast<int>(active_isa()));
}

TEST(IsaDeathTest, TheEnvironmentChooses) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  for (const Isa isa : all_isas) {
    const std::string name(isa_name(isa));
    EXPECT_EXIT(exit_with_active_isa(name.c_str()), ::testing::ExitedWithCode(static_cast<int>(best_isa(isa))), "");
  }
}

TEST(IsaDeathTest, WithoutAKnownNameTheBestIsChosen) {
  ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(exit_with_active_isa(nullptr), ::testing::ExitedWithCode(static_cast<int>(best_isa())), "");
  EXPECT_EXIT(exit_with_active_isa("pentium"), ::testing::ExitedWithCode(static_cast<int>(best_isa())), "");
}

}  // namespace
}  // namespace lora
