// SPDX-License-Identifier: MIT
// Counts, and the line PEFT prints of them.
#include "lora/model/parameter_count.hpp"

#include <gtest/gtest.h>

namespace lora {
namespace {

TEST(ParameterCount, PrintsAsPeftDoes) {
  EXPECT_EQ((ParameterCount{576, 3605}.text()), "trainable params: 576 || all params: 3,605 || trainable%: 15.9778");
  EXPECT_EQ((ParameterCount{4194304, 6742609920}.text()),
            "trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622");
  EXPECT_EQ((ParameterCount{999, 1000}.text()), "trainable params: 999 || all params: 1,000 || trainable%: 99.9000");
}

TEST(ParameterCount, OfAnEmptyModelIsNoShare) { EXPECT_EQ(ParameterCount{}.percent(), 0.0); }

}  // namespace
}  // namespace lora
