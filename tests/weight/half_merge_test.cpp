// SPDX-License-Identifier: MIT
// Merging into weights of 16 bits: every element is rounded once, and any number of cycles leaves the same bits.
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "lora/weight/merge_stack.hpp"
#include "lora/weight/merge_undo.hpp"
#include "lora/weight/quantized.hpp"
#include "support/message_of.hpp"
#include "support/random_matrix.hpp"
#include "weight/weight_kinds.hpp"

namespace lora {
namespace half_merge_test {
namespace {

using testing::half_weight;
using testing::message_of;
using testing::random_matrix;

static_assert(MergeableWeight<QuantizedWeight<formats::F16>> && MergeableWeight<QuantizedWeight<formats::BF16>>);
static_assert(!MergeableWeight<QuantizedWeight<formats::Q8_0>> && !MergeableWeight<QuantizedWeight<formats::NF4<64>>>);

using Bytes = std::vector<std::uint8_t>;
using Bits = std::vector<std::uint16_t>;

template <class Format>
QuantizedWeight<Format> weight_of(const Bits& bits, Index rows, Index cols) {
  Bytes blocks(2 * bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) formats::detail::put_u16(bits[i], blocks.data() + 2 * i);
  return QuantizedWeight<Format>::from_blocks(blocks, rows, cols);
}

template <class Format>
Bits bits_of(const QuantizedWeight<Format>& weight) {
  Bits bits(static_cast<std::size_t>(weight.out_features() * weight.in_features()));
  Bytes blocks(2 * bits.size());
  weight.write_blocks(blocks);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = formats::detail::u16_at(blocks.data() + 2 * i);
  return bits;
}

/// The place of a number among all of its format, in their order; -0 is just before 0.
template <class Format>
int place_of(float value) {
  std::uint8_t block[2];
  Format::encode(&value, block);
  const int bits = formats::detail::u16_at(block);
  return bits < 0x8000 ? bits : 0x8000 - bits - 1;
}

/// The bits after merging `delta` into a weight: five of them, four of which are updated together.
template <class Format>
std::uint16_t merged_bits(std::uint16_t weight, float delta) {
  const Bits five(5, weight);
  auto weights = weight_of<Format>(five, 5, 1);
  const Matrix<float> a = Matrix<float>::Constant(1, 1, delta);
  const Matrix<float> b = Matrix<float>::Ones(5, 1);
  const auto undo = MergeUndo<float>::merge("test", weights, {view_of(a), view_of(b), 1.0F});
  const std::uint16_t merged = bits_of(weights)[4];
  EXPECT_EQ(bits_of(weights), Bits(5, merged));
  undo.unmerge(weights);
  EXPECT_EQ(bits_of(weights), five);
  return merged;
}

template <class Format>
class HalfMerge : public ::testing::Test {
 protected:
  static constexpr WeightStorage storage = QuantizedWeight<Format>::storage;
  static constexpr std::uint16_t infinity = Format::name == "F16" ? 0x7C00 : 0x7F80;
  static constexpr float last_place = Format::name == "F16" ? 0x1p-10F : 0x1p-7F;  ///< of 1
  static constexpr std::uint16_t one = Format::name == "F16" ? 0x3C00 : 0x3F80;
  const Matrix<float> usual_w = random_matrix<float>(70, 90, 1);
  const Matrix<float> usual_a = random_matrix<float>(4, 90, 2);
  const Matrix<float> usual_b = random_matrix<float>(70, 4, 3);
  [[nodiscard]] LowRankUpdate<float> update(double scale) const {
    return {view_of(usual_a), view_of(usual_b), static_cast<float>(scale)};
  }
};
using Halves = ::testing::Types<formats::F16, formats::BF16>;
TYPED_TEST_SUITE(HalfMerge, Halves);

TYPED_TEST(HalfMerge, ElementsAreTheExactSumsRoundedOnce) {
  Matrix<float> delta(70, 90);
  for (const double scale : {1e-6, 1e-3, 0.1, 1.0, 100.0}) {
    auto weight = half_weight<TypeParam>(this->usual_w);
    Matrix<float> before(70, 90), after(70, 90);
    read_back(weight, view_of(before));
    write_delta(this->update(scale), view_of(delta));
    static_cast<void>(MergeUndo<float>::merge("test", weight, this->update(scale)));
    read_back(weight, view_of(after));
    for (Index i = 0; i < after.size(); ++i) {
      EXPECT_EQ(after.data()[i], testing::merged_half(this->storage, before.data()[i], delta.data()[i], 1.0F));
    }
  }
}

// A double holds none of these sums; rounded to it, they would be the middle between two numbers of 16 bits.
TYPED_TEST(HalfMerge, ASumJustBesideTheMiddleOfTwoNumbersIsNotTakenForIt) {
  const float middle = 1.0F + this->last_place / 2;
  const auto next = static_cast<std::uint16_t>(this->one + 1);
  const std::uint16_t sign = 0x8000;
  EXPECT_EQ(merged_bits<TypeParam>(0, middle), this->one);  // the even one
  const std::uint16_t tiny = 1;                             // 2^-24 or 2^-133
  if (TypeParam::name == "BF16") {
    EXPECT_EQ(merged_bits<TypeParam>(tiny, middle), next);
    EXPECT_EQ(merged_bits<TypeParam>(tiny, -middle), static_cast<std::uint16_t>(sign | this->one));
    EXPECT_EQ(merged_bits<TypeParam>(tiny | sign, middle), this->one);
    EXPECT_EQ(merged_bits<TypeParam>(tiny | sign, -middle), static_cast<std::uint16_t>(sign | next));
  }
  EXPECT_EQ(merged_bits<TypeParam>(this->one, 0x1p-149F), this->one);
  EXPECT_EQ(merged_bits<TypeParam>(this->one, -0x1p-149F), this->one);
  EXPECT_EQ(merged_bits<TypeParam>(this->one, this->last_place / 2), this->one);
  EXPECT_EQ(merged_bits<TypeParam>(this->one, std::nextafter(this->last_place / 2, 1.0F)), next);
}

// All numbers that do not overflow, infinities and NaNs of any payload, as codes and as a copy.
TYPED_TEST(HalfMerge, EveryBitPatternIsRestored) {
  const auto largest = static_cast<std::uint16_t>(this->infinity - (TypeParam::name == "F16" ? 0x0C00 : 0x0180));
  Bits bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const auto pattern = static_cast<std::uint16_t>(i);
    const bool big = (pattern & 0x7FFFU) > largest && (pattern & 0x7FFFU) < this->infinity;
    bits[i] = big ? largest : pattern;
  }
  const auto a = random_matrix<float>(2, 256, 2);
  const auto b = random_matrix<float>(256, 2, 3);
  const std::vector<float> factors(256, 0.97F);
  for (const float scale : {0.0F, 1e-40F, 1e-30F, 1e-7F, 1e-3F, 1.0F, 100.0F}) {
    for (const bool scaled : {false, true}) {
      auto weight = weight_of<TypeParam>(bits, 256, 256);
      auto undo = MergeUndo<float>::merge("test", weight, {view_of(a), view_of(b), scale},
                                          scaled ? std::span<const float>(factors) : std::span<const float>());
      const Bits merged = bits_of(weight);
      undo.unmerge(weight);
      EXPECT_EQ(bits_of(weight), bits) << scale;
      undo.merge_again(weight);
      EXPECT_EQ(bits_of(weight), merged) << scale;
    }
  }
}

TYPED_TEST(HalfMerge, TenThousandCyclesDoNotDrift) {
  const auto w = random_matrix<float>(20, 33, 1);
  const auto a = random_matrix<float>(2, 33, 2);
  const auto b = random_matrix<float>(20, 2, 3);
  const std::vector<float> factors(20, 1.03F);
  auto weight = half_weight<TypeParam>(w);
  const Bits start = bits_of(weight);
  Bits merged[2];
  for (int cycle = 0; cycle < 10000; ++cycle) {
    const bool scaled = cycle % 2 == 1;
    const auto undo = MergeUndo<float>::merge("test", weight, {view_of(a), view_of(b), 0.3F},
                                              scaled ? std::span<const float>(factors) : std::span<const float>());
    Bits& first = merged[cycle % 2];
    if (first.empty()) first = bits_of(weight);
    ASSERT_EQ(bits_of(weight), first) << cycle;
    undo.unmerge(weight);
    ASSERT_EQ(bits_of(weight), start) << cycle;
  }
  EXPECT_NE(merged[0], start);
}

TYPED_TEST(HalfMerge, HoldsOneByteForEachWeightAndTwoForEachException) {
  for (const double scale : {1e-3, 0.1, 1.0}) {
    auto weight = half_weight<TypeParam>(this->usual_w);
    Matrix<float> delta(70, 90), before(70, 90), after(70, 90);
    write_delta(this->update(scale), view_of(delta));
    read_back(weight, view_of(before));
    const auto undo = MergeUndo<float>::merge("test", weight, this->update(scale));
    read_back(weight, view_of(after));
    std::size_t exceptions = 0;
    for (Index i = 0; i < before.size(); ++i) {
      const float back = testing::merged_half(this->storage, after.data()[i], -delta.data()[i], 1.0F);
      const int distance = place_of<TypeParam>(before.data()[i]) - place_of<TypeParam>(back);
      exceptions += std::abs(distance) > 127 ? 1 : 0;
    }
    EXPECT_EQ(undo.bytes(), static_cast<std::size_t>(before.size()) + 2 * exceptions) << scale;
    EXPECT_LE(exceptions, static_cast<std::size_t>(before.size() / 20)) << scale;
  }
}

TYPED_TEST(HalfMerge, AnOverflowIsRefusedAndEveryByteStays) {
  const auto largest = static_cast<std::uint16_t>(this->infinity - 1);
  Bits bits = bits_of(half_weight<TypeParam>(this->usual_w));
  bits.back() = largest;
  auto weight = weight_of<TypeParam>(bits, 70, 90);
  const float top = TypeParam::name == "F16" ? 65504.0F : 0x1.FEp127F;
  Matrix<float> a = Matrix<float>::Zero(1, 90);
  Matrix<float> b = Matrix<float>::Ones(70, 1);
  for (const bool copied : {false, true}) {
    a.setConstant(copied ? top / 2 : 0.0F);
    a(0, 89) = top / 256;
    const std::string message = message_of<StateError>([&] {
      static_cast<void>(MergeUndo<float>::merge("the operation", weight, {view_of(a), view_of(b), 1.0F}));
    });
    EXPECT_NE(message.find("the operation: s*B*A"), std::string::npos) << message;
    EXPECT_EQ(bits_of(weight), bits);
  }
}

TYPED_TEST(HalfMerge, ACopyHasMemoryOfItsOwn) {
  auto weight = half_weight<TypeParam>(this->usual_w);
  const Bits start = bits_of(weight);
  auto copy = weight;
  EXPECT_EQ(copy.bytes(), weight.bytes());
  auto undo = MergeUndo<float>::merge("test", copy, this->update(0.5));
  EXPECT_EQ(bits_of(weight), start);
  auto moved = std::move(copy);
  EXPECT_NE(bits_of(moved), start);
  undo.unmerge(moved);
  EXPECT_EQ(bits_of(moved), start);
}

TYPED_TEST(HalfMerge, BlocksReadInPlaceAreNotWritten) {
  const Bytes blocks(2 * 12, 1);
  auto weight = QuantizedWeight<TypeParam>::in_place(blocks, 3, 4);
  const auto a = random_matrix<float>(1, 4, 1);
  const auto b = random_matrix<float>(3, 1, 2);
  EXPECT_FALSE(weight.writable());
  EXPECT_THROW(static_cast<void>(weight.tile(0)), StateError);
  EXPECT_THROW(static_cast<void>(MergeUndo<float>::merge("test", weight, {view_of(a), view_of(b), 1.0F})), StateError);
  EXPECT_EQ(blocks, Bytes(2 * 12, 1));
}

}  // namespace
}  // namespace half_merge_test
}  // namespace lora
