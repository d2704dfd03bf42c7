// SPDX-License-Identifier: MIT
// What a tape says of the pass it holds; tests/layers/training_law_test.cpp has what layers make of it.
#include "lora/adapter/tape.hpp"

#include <cstddef>
#include <gtest/gtest.h>
#include <new>
#include <type_traits>

#include "support/allocation_counter.hpp"

namespace lora::tape_test {
namespace {

using testing::allocations_of;

// A pass of one adapter: U, and the bits where `cols` are dropped from.
template <class Scalar>
void fill(LoraTape<Scalar>& tape, Index rows, Index rank, Index cols) {
  tape.start(1, 1);
  tape.adapter(0).bits.clear();
  SerialExecutor executor;
  if (cols > 0) tape.adapter(0).bits.draw(0.1, 1, tape.position, rows, cols, executor);
  tape.pass(0).reserve_down(rows, rank);
  tape.finish({rows, cols});
}

TEST(LoraTape, IsEmptyBeforeTheFirstPassAndAfterClear) {
  LoraTape<float> tape;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(tape.rows(), -1);
    EXPECT_EQ(tape.bytes(), 0U);
    EXPECT_EQ(tape.adapter_count(), 0U);
    EXPECT_EQ(tape.pass_count(), 0U);
    fill(tape, 3, 2, 9);
    EXPECT_EQ(tape.rows(), 3);
    tape.clear();
  }
  static_assert(std::is_same_v<LoraRecord<float>, LoraTape<float>>);
}

TEST(LoraTape, IsNotCompleteBeforeThePassHasEnded) {
  LoraTape<float> tape;
  fill(tape, 3, 2, 9);
  tape.start(1, 1);
  tape.pass(0).reserve_down(5, 2);
  EXPECT_EQ(tape.rows(), -1);
  EXPECT_EQ(tape.bytes(), 0U);
}

// N r scalars + N ceil(k / 8), and no more: X itself is the caller's.
TEST(LoraTape, BytesAreThoseOfUAndABitForEveryElementOfX) {
  for (const Index rows : {0, 1, 5, 32}) {
    for (const Index rank : {1, 3, 8}) {
      for (const Index cols : {0, 1, 7, 8, 9, 100}) {
        LoraTape<float> tape;
        fill(tape, 40, 9, 120);
        fill(tape, rows, rank, cols);
        EXPECT_EQ(tape.bytes(), static_cast<std::size_t>(4 * rows * rank + rows * ((cols + 7) / 8)));
        EXPECT_EQ(tape.pass(0).down().rows, rows);
        EXPECT_EQ(tape.pass(0).down().cols, rank);
      }
    }
  }
  LoraTape<double> tape;
  fill(tape, 5, 3, 9);
  EXPECT_EQ(tape.bytes(), 8U * 5 * 3 + 5 * 2);
}

// With DoRA: Z, rows x out_features, and a norm in double for every output.
TEST(LoraTape, KeepsWhatAMagnitudeMultipliesUntilTheNextPass) {
  LoraTape<float> tape;
  fill(tape, 3, 2, 0);
  auto& pass = tape.pass(0);
  pass.reserve_unscaled(3, 5, 5);
  pass.unscaled().map().setConstant(7);
  pass.norms()[4] = 4;
  EXPECT_EQ(tape.bytes(), 4U * (3 * 2 + 3 * 5) + 8U * 5);
  fill(tape, 3, 2, 0);
  EXPECT_EQ(tape.pass(0).unscaled().cols, 0);
  EXPECT_EQ(tape.bytes(), 4U * 3 * 2);
}

TEST(LoraTape, CopiesAreApart) {
  LoraTape<float> tape;
  fill(tape, 4, 2, 9);
  tape.pass(0).down().map().setConstant(1);
  LoraTape<float> copy = tape;
  copy.pass(0).down().map().setConstant(7);
  EXPECT_EQ(tape.pass(0).down()(3, 1), 1);
  EXPECT_EQ(copy.rows(), 4);
}

TEST(LoraTape, GrowsOnly) {
  LoraTape<float> tape;
  fill(tape, 32, 8, 100);
  const float* const memory = tape.pass(0).down().data;
  EXPECT_EQ(allocations_of([&] {
              fill(tape, 1, 8, 100);
              fill(tape, 0, 8, 10);
              fill(tape, 64, 4, 40);
              fill(tape, 32, 8, 104);
            }),
            0);
  EXPECT_EQ(tape.pass(0).down().data, memory);
}

TEST(LoraTape, WithoutMemoryItIsIncomplete) {
  if (!testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  for (long n = 0; n < 3; ++n) {
    LoraTape<float> tape;
    fill(tape, 2, 3, 8);
    bool failed = false;
    {
      const testing::FailingAllocation failing(n);
      try {
        fill(tape, 1000, 8, 1000);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    }
    EXPECT_EQ(failed, n < 2);  // the bits, and U
    EXPECT_EQ(tape.rows(), failed ? -1 : 1000);
  }
}

}  // namespace
}  // namespace lora::tape_test
