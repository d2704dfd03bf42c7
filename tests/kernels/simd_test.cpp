// SPDX-License-Identifier: MIT
#include "lora/kernels/simd.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <memory>
#include <vector>

#include "support/kernel_oracle.hpp"

namespace lora {

/// Operations of one instruction set.
template <class Scalar>
struct SimdOperations {
  Index lanes;
  void (*copy_first)(const Scalar*, Scalar*, Index);
  void (*keep)(const Scalar*, unsigned, Scalar*, Scalar*);
  Scalar (*sum)(const Scalar*);
  bool (*any_negative)(const Scalar*);
  void (*copy_bytes)(const std::int8_t*, std::int8_t*);
};

}  // namespace lora

#define LORA_KERNEL_SOURCE "kernels/simd_test.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora {
namespace {

template <class Scalar>
SimdOperations<Scalar> operations(Isa isa) {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return kernels::avx512::operations<Scalar>();
  if (isa == Isa::avx2) return kernels::avx2::operations<Scalar>();
#elif LORA_NEON_KERNELS
  if (isa == Isa::neon) return kernels::neon::operations<Scalar>();
#endif
  return kernels::portable::operations<Scalar>();
}

template <class Scalar>
std::vector<Scalar> counting(Index count) {
  std::vector<Scalar> values;
  for (Index i = 0; i < count; ++i) values.push_back(static_cast<Scalar>(i + 1));
  return values;
}

template <class Scalar>
class SimdTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SimdTest, Scalars);

TYPED_TEST(SimdTest, PartialLoadsAndStoresTouchOnlyTheirLanes) {
  for (const Isa isa : testing::supported_isas()) {
    const auto simd = operations<TypeParam>(isa);
    for (Index count = 0; count <= simd.lanes; ++count) {
      const auto size = static_cast<std::size_t>(count);
      const auto from = std::make_unique<TypeParam[]>(size);  // exact: a sanitizer sees a lane too many
      const auto to = std::make_unique<TypeParam[]>(size);
      for (std::size_t i = 0; i < size; ++i) from[i] = static_cast<TypeParam>(i + 1);
      simd.copy_first(from.get(), to.get(), count);
      for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(to[i], from[i]) << isa_name(isa) << " count " << count;
    }
  }
}

TYPED_TEST(SimdTest, KeepsTheLanesWhoseBitIsSet) {
  for (const Isa isa : testing::supported_isas()) {
    const auto simd = operations<TypeParam>(isa);
    const auto from = counting<TypeParam>(simd.lanes);
    std::vector<TypeParam> kept(from.size());
    std::vector<TypeParam> loaded(from.size());
    for (unsigned bits = 0; bits < (1U << static_cast<unsigned>(simd.lanes)); bits += 7) {
      simd.keep(from.data(), bits, kept.data(), loaded.data());
      for (std::size_t i = 0; i < from.size(); ++i) {
        ASSERT_EQ(kept[i], ((bits >> i) & 1U) != 0 ? from[i] : TypeParam(0)) << isa_name(isa) << " bits " << bits;
      }
      ASSERT_EQ(loaded, kept);
    }
  }
}

TYPED_TEST(SimdTest, SumsAllLanes) {
  for (const Isa isa : testing::supported_isas()) {
    const auto simd = operations<TypeParam>(isa);
    const auto from = counting<TypeParam>(simd.lanes);
    EXPECT_EQ(simd.sum(from.data()), static_cast<TypeParam>(simd.lanes * (simd.lanes + 1) / 2)) << isa_name(isa);
  }
}

TYPED_TEST(SimdTest, FindsANegativeInAnyLane) {
  for (const Isa isa : testing::supported_isas()) {
    const auto simd = operations<TypeParam>(isa);
    auto from = counting<TypeParam>(simd.lanes);
    EXPECT_FALSE(simd.any_negative(from.data()));
    for (auto& value : from) {
      value = -value;
      EXPECT_TRUE(simd.any_negative(from.data())) << isa_name(isa);
      value = -value;
    }
  }
}

TYPED_TEST(SimdTest, EveryByteSurvivesTheLanes) {
  for (const Isa isa : testing::supported_isas()) {
    const auto simd = operations<TypeParam>(isa);
    for (int first = -128; first <= 127; ++first) {
      std::vector<std::int8_t> from;
      for (Index i = 0; i < simd.lanes; ++i) {
        from.push_back(static_cast<std::int8_t>((first + 128 + 37 * static_cast<int>(i)) % 256 - 128));
      }
      std::vector<std::int8_t> to(from.size());
      simd.copy_bytes(from.data(), to.data());
      ASSERT_EQ(to, from) << isa_name(isa);
    }
  }
}

}  // namespace
}  // namespace lora
