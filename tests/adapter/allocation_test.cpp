// SPDX-License-Identifier: MIT
// The memory of a dropout mask; that of whole layers is in tests/layers/layer_allocation_test.cpp.
#include <cstdint>
#include <gtest/gtest.h>
#include <new>

#include "lora/adapter/dropout.hpp"
#include "support/allocation_counter.hpp"

namespace lora::adapter_allocation_test {
namespace {

using testing::allocations_of;

TEST(DropoutBitsMemory, GrowsOnly) {
  DropoutBits bits;
  SerialExecutor executor;
  const auto draw = [&](Index rows, Index cols) { bits.draw(0.1, 1, {}, rows, cols, executor); };
  EXPECT_EQ(allocations_of([&] { draw(32, 100); }), 1);
  const std::uint8_t* memory = bits.mask<float>(0.1).bits;
  EXPECT_EQ(allocations_of([&] {
              draw(1, 100);
              draw(32, 50);
              draw(0, 100);
              draw(32, 104);
            }),
            0);
  EXPECT_EQ(bits.mask<float>(0.1).bits, memory);
}

// bytes() must never say more than there is, or a backward pass would read past the end.
TEST(DropoutBitsMemory, ADrawWithoutMemoryLeavesTheMaskAsItWas) {
  if (!testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  DropoutBits bits;
  SerialExecutor executor;
  bits.draw(0.1, 1, {}, 4, 16, executor);
  {
    const testing::FailingAllocation failing(0);
    EXPECT_THROW(bits.draw(0.1, 1, {}, 1000, 1000, executor), std::bad_alloc);
  }
  EXPECT_EQ(bits.bytes(), 4U * 2);
  EXPECT_EQ(bits.mask<float>(0.1).row_bytes, 2);
}

}  // namespace
}  // namespace lora::adapter_allocation_test
