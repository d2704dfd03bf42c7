#include "lora/core/large_page_bytes.hpp"

#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <utility>

namespace lora {
namespace {

TEST(LargePageBytes, AreWritableFromTheFirstToTheLast) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{63}, std::size_t{5000}, LargePageBytes::large_page - 1,
                                 LargePageBytes::large_page, 2 * LargePageBytes::large_page + 12345}) {
    const LargePageBytes bytes(size);
    ASSERT_EQ(bytes.size(), size);
    std::memset(bytes.data(), 7, size);
    EXPECT_EQ(bytes.data()[0], 7);
    EXPECT_EQ(bytes.data()[size - 1], 7);
  }
}

TEST(LargePageBytes, BeginOnALargePageWhereTheyFillOne) {
  const LargePageBytes bytes(3 * LargePageBytes::large_page / 2);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(bytes.data()) % LargePageBytes::large_page, 0U);
}

TEST(LargePageBytes, NoBytesAreNoMemory) {
  EXPECT_EQ(LargePageBytes().data(), nullptr);
  EXPECT_EQ(LargePageBytes(0).data(), nullptr);
}

TEST(LargePageBytes, MovingLeavesNone) {
  LargePageBytes first(100);
  std::int8_t* const data = first.data();
  LargePageBytes second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(first.size(), 0U);  // NOLINT(bugprone-use-after-move): defined to be empty
  first = std::move(second);
  EXPECT_EQ(first.data(), data);
  EXPECT_EQ(first.size(), 100U);
}

template <class Scalar>
struct Holder {
  LargePageBytes bytes{100};
  void release() { bytes = {}; }
};

// The address sanitizer finds the block that clang 14 leaked where the assignment took its argument by value.
TEST(LargePageBytes, AssigningNothingInATemplateFreesTheBlock) {
  Holder<float> holder;
  holder.release();
  EXPECT_EQ(holder.bytes.data(), nullptr);
  EXPECT_EQ(holder.bytes.size(), 0U);
}

}  // namespace
}  // namespace lora
