// A steady pass of an adapter allocates nothing, and one that runs out of memory leaves its record consistent.
#include <cstdint>
#include <gtest/gtest.h>
#include <new>

#include "lora/adapter/adapter.hpp"
#include "support/allocation_counter.hpp"

namespace {

using lora::DropoutBits;
using lora::Index;
using lora::LoraAdapter;
using lora::LoraGradients;
using lora::LoraRecord;
using lora::Matrix;
using lora::view_of;
using lora::Workspace;
using lora::testing::allocations_of;
using lora::testing::FailingAllocation;

// Whether `body` threw std::bad_alloc when its allocation after `successes` failed.
template <class Body>
bool runs_out_of_memory(long successes, const Body& body) {
  const FailingAllocation failing(successes);
  try {
    body();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

TEST(DropoutBitsMemory, GrowsOnly) {
  DropoutBits bits;
  lora::SerialExecutor executor;
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

TEST(RecordMemory, GrowsOnly) {
  LoraRecord<float> record;
  EXPECT_EQ(allocations_of([&] { (void)record.prepare(32, 8); }), 1);
  const float* memory = record.down_projection().data;
  EXPECT_EQ(allocations_of([&] {
              (void)record.prepare(1, 8);
              (void)record.prepare(0, 8);
              (void)record.prepare(64, 4);
              (void)record.prepare(32, 8);
            }),
            0);
  EXPECT_EQ(record.down_projection().data, memory);
}

// bytes() must never say more than there is, or a backward pass would read past the end.
TEST(DropoutBitsMemory, ADrawWithoutMemoryLeavesTheMaskAsItWas) {
  if (!lora::testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  DropoutBits bits;
  lora::SerialExecutor executor;
  bits.draw(0.1, 1, {}, 4, 16, executor);
  EXPECT_TRUE(runs_out_of_memory(0, [&] { bits.draw(0.1, 1, {}, 1000, 1000, executor); }));
  EXPECT_EQ(bits.bytes(), 4U * 2);
  EXPECT_EQ(bits.mask<float>(0.1).row_bytes, 2);
}

TEST(RecordMemory, APrepareWithoutMemoryLeavesTheRecordAsItWas) {
  if (!lora::testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  LoraRecord<float> record;
  record.prepare(2, 3).map().setConstant(5);
  EXPECT_TRUE(runs_out_of_memory(0, [&] { (void)record.prepare(1000, 8); }));
  EXPECT_EQ(record.rows(), 2);
  EXPECT_EQ(record.down_projection().map(), (Matrix<float>::Constant(2, 3, 5)));
}

// After a forward pass that threw, a record that still claims rows must hold a mask for each of them.
TEST(AdapterMemory, AForwardPassWithoutMemoryLeavesNoRecordThatBackwardWouldOverrun) {
  if (!lora::testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  const LoraAdapter<float> adapter("test", 100, 6, {.rank = 2, .dropout = 0.1}, 1);
  const Matrix<float> small = Matrix<float>::Ones(4, 100);
  const Matrix<float> large = Matrix<float>::Ones(400, 100);
  for (long successes = 0; successes < 2; ++successes) {  // U, then the bits
    LoraRecord<float> record;
    Workspace workspace;
    (void)adapter.forward(view_of(small), record, workspace);
    EXPECT_TRUE(runs_out_of_memory(successes, [&] { (void)adapter.forward(view_of(large), record, workspace); }));
    EXPECT_TRUE(record.rows() <= 4) << "the record claims " << record.rows() << " rows after allocation " << successes;
  }
}

TEST(AdapterMemory, ASteadyStepAllocatesNothing) {
  const LoraAdapter<float> adapter("test", 40, 30, {.rank = 4, .dropout = 0.1, .lora_bias = true}, 1);
  const Matrix<float> x = Matrix<float>::Ones(16, 40);
  const Matrix<float> dy = Matrix<float>::Ones(16, 30);
  LoraGradients<float> gradients{
      Matrix<float>::Zero(4, 40), Matrix<float>::Zero(30, 4), lora::RowVector<float>::Zero(30), {}, {}};
  LoraRecord<float> record;
  Workspace workspace;
  const auto step = [&](Index rows) {
    (void)adapter.forward(view_of(x).middle_rows(0, rows), record, workspace);
    (void)adapter.backward(view_of(x).middle_rows(0, rows), record, view_of(dy).middle_rows(0, rows), gradients,
                           workspace);
    (void)adapter.infer(view_of(x).middle_rows(0, rows), workspace);
  };
  step(16);
  EXPECT_EQ(allocations_of([&] {
              for (const Index rows : {16, 1, 0, 15}) step(rows);
              gradients.set_zero();
            }),
            0);
}

}  // namespace
