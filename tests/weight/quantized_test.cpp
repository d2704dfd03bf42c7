// SPDX-License-Identifier: MIT
// Weights of fewer bits: a product has the bits of a packed weight of the decoded values.
#include "lora/weight/quantized.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "format/format_cases.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/transposed.hpp"
#include "support/allocation_count.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/random_blocks.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace quantized_test {
namespace {

using testing::decoded;
using testing::message_of;
using testing::random_blocks;
using testing::random_matrix;
using testing::same_bits;

MatrixView<const float> in(const Matrix<float>& m) { return view_of(m); }

/// What both products of a weight compute from one batch, with a bias and a low-rank term.
template <class Weight>
std::pair<Matrix<float>, Matrix<float>> products(const Weight& weight, Index samples, Index rank, bool by_columns,
                                                 Executor& executor) {
  const Index d = weight.out_features();
  const Index k = weight.in_features();
  const auto x = random_matrix<float>(samples, k, 2);
  const Matrix<float> turned = x.transpose();
  const auto dy = random_matrix<float>(samples, d, 3);
  const auto bias = random_matrix<float>(1, d, 4);
  const auto u = random_matrix<float>(samples, rank, 5);
  const auto b = random_matrix<float>(d, rank, 6);
  const auto a = random_matrix<float>(rank, k, 7);
  Workspace workspace(executor);
  Matrix<float> y(samples, d);
  Matrix<float> dx(samples, k);
  weight.product(by_columns ? in(turned).transpose() : in(x), bias.data(), {in(u), in(b).transpose()}, view_of(y),
                 workspace);
  weight.product_transposed(in(dy), {in(u), in(a)}, view_of(dx), workspace);
  return {y, dx};
}

template <class Format>
class QuantizedWeightTest : public ::testing::Test {
 protected:
  using Weight = QuantizedWeight<Format>;
  static constexpr Index d = 101;
  static constexpr Index k = Format::block_size == 1 ? 75 : Format::block_size * (Format::block_size < 64 ? 3 : 2);

  std::vector<std::uint8_t> blocks = random_blocks<Format>(d, k, 1);
  Matrix<float> values = decoded<Format>(blocks, d, k);
  /// Laid out for the kernels, and read in place.
  std::array<Weight, 2> weights = {Weight::from_blocks(blocks, d, k), Weight::in_place(blocks, d, k)};
};
TYPED_TEST_SUITE(QuantizedWeightTest, testing::NumberFormats, testing::FormatName);

TYPED_TEST(QuantizedWeightTest, ProductsAreThoseOfAPackedWeightOfTheDecodedValues) {
  const PackedWeight<float> packed(in(this->values));
  SerialExecutor serial;
  testing::ThreadExecutor threads(3);
  for (const Index samples : {0, 1, 2, 7, 40}) {
    for (const Index rank : {0, 3}) {
      for (const bool by_columns : {false, true}) {
        const auto expected = products(packed, samples, rank, by_columns, serial);
        for (Executor* executor : {static_cast<Executor*>(&serial), static_cast<Executor*>(&threads)}) {
          for (const auto& weight : this->weights) {
            const auto got = products(weight, samples, rank, by_columns, *executor);
            ASSERT_TRUE(same_bits(got.first, expected.first)) << samples << " rows, rank " << rank;
            ASSERT_TRUE(same_bits(got.second, expected.second)) << samples << " rows, rank " << rank << ", transposed";
          }
        }
      }
    }
  }
}

TYPED_TEST(QuantizedWeightTest, ReadsAnyPart) {
  const std::vector<std::array<Index, 4>> parts = {
      {0, 0, this->d, this->k}, {5, 0, 1, this->k}, {0, 7, this->d, 1}, {40, 3, 30, 29},
      {100, 9, 1, 3},           {0, 0, 0, 3},       {3, 3, 2, 0}};
  for (const auto& weight : this->weights) {
    for (const auto& [i, j, rows, cols] : parts) {
      const Matrix<float> expected = this->values.block(i, j, rows, cols);
      Matrix<float> out(rows, cols);
      weight.read(i, j, view_of(out));
      ASSERT_TRUE(same_bits(out, expected)) << i << " " << j << " " << rows << " " << cols;
      Matrix<float> turned(cols, rows);
      weight.read(i, j, view_of(turned).transpose());
      ASSERT_TRUE(same_bits(turned, expected.transpose())) << i << " " << j << " " << rows << " " << cols;
    }
    Matrix<float> out(2, 2);
    EXPECT_THROW(weight.read(this->d - 1, 0, view_of(out)), ShapeError);
  }
}

TYPED_TEST(QuantizedWeightTest, GivesItsBlocksBack) {
  for (const auto& weight : this->weights) {
    std::vector<std::uint8_t> back(this->blocks.size());
    weight.write_blocks(back);
    EXPECT_EQ(back, this->blocks);
    back.pop_back();
    EXPECT_THROW(weight.write_blocks(back), ShapeError);
  }
}

TYPED_TEST(QuantizedWeightTest, HoldsTheBytesOfTheFormatAndThePaddingOfTheLastPanel) {
  const auto row = static_cast<std::size_t>(formats::row_bytes<TypeParam>(this->k));
  EXPECT_GE(this->weights[0].bytes(), row * 112);
  EXPECT_LT(this->weights[0].bytes(), row * 112 + 4096);
  EXPECT_EQ(this->weights[1].bytes(), 0U);
}

TYPED_TEST(QuantizedWeightTest, RefusesAnotherNumberOfBytes) {
  using Quantized = QuantizedWeight<TypeParam>;
  std::vector<std::uint8_t> less = this->blocks;
  less.pop_back();
  EXPECT_THROW(static_cast<void>(Quantized::from_blocks(less, this->d, this->k)), ShapeError);
  EXPECT_THROW(static_cast<void>(Quantized::from_blocks(this->blocks, this->d + 1, this->k)), ShapeError);
  EXPECT_THROW(static_cast<void>(Quantized::in_place(this->blocks, -1, this->k)), ShapeError);
  EXPECT_THROW(static_cast<void>(Quantized::from_blocks(this->blocks, Index{1} << 62, this->k)), ShapeError);
}

TYPED_TEST(QuantizedWeightTest, ASteadyProductAllocatesNothing) {
  const auto x = random_matrix<float>(9, this->k, 2);
  const auto dy = random_matrix<float>(9, this->d, 3);
  Matrix<float> y(9, this->d);
  Matrix<float> dx(9, this->k);
  for (const auto& weight : this->weights) {
    Workspace workspace;
    const auto step = [&] {
      weight.product(in(x), nullptr, {}, view_of(y), workspace);
      weight.product_transposed(in(dy), {}, view_of(dx), workspace);
    };
    step();
    EXPECT_EQ(testing::allocations_of(step), 0);
  }
}

TEST(QuantizedWeight, WithoutInputsHasAnyNumberOfOutputs) {
  const auto weight = QuantizedWeight<formats::Q4_K>::from_blocks({}, Index{1} << 62, 0);
  EXPECT_EQ(weight.out_features(), Index{1} << 62);
  EXPECT_EQ(weight.bytes(), 0U);
}

TEST(QuantizedWeight, WhatIsMovedFromIsEmptyAndCopiesShare) {
  using Weight = QuantizedWeight<formats::Q8_0>;
  const auto values = random_matrix<float>(20, 64, 1);
  Weight weight = Weight::quantize(in(values));
  const Weight copy = weight;
  Matrix<float> before(20, 64);
  read_back(weight, view_of(before));
  const Weight taken = std::move(weight);
  EXPECT_EQ(weight.out_features(), 0);  // NOLINT(bugprone-use-after-move): what it promises
  EXPECT_EQ(weight.bytes(), 0U);
  for (const auto& other : {taken, copy}) {
    Matrix<float> after(20, 64);
    read_back(other, view_of(after));
    EXPECT_TRUE(same_bits(after, before));
  }
}

TEST(QuantizedWeight, KeepsTheMemoryOfItsBlocksAlive) {
  using Weight = QuantizedWeight<formats::BF16>;
  auto memory = std::make_shared<std::vector<std::uint8_t>>(random_blocks<formats::BF16>(5, 7, 1));
  const std::weak_ptr<const void> watched = memory;
  {
    const Weight weight = Weight::in_place(*memory, 5, 7, memory);
    memory.reset();
    EXPECT_FALSE(watched.expired());
  }
  EXPECT_TRUE(watched.expired());
}

TEST(QuantizedWeight, SaysWhatItRefuses) {
  using Weight = QuantizedWeight<formats::Q4_0>;
  Matrix<float> values = random_matrix<float>(3, 64, 1);
  EXPECT_EQ(message_of<ShapeError>([&] { static_cast<void>(Weight::quantize(in(values).middle_cols(0, 40))); }),
            "QuantizedWeight::quantize: in_features: expected a multiple of 32, the block size of Q4_0, got 40");
  const std::vector<std::uint8_t> short_block(17);
  EXPECT_EQ(message_of<ShapeError>([&] { static_cast<void>(Weight::from_blocks(short_block, 1, 32)); }),
            "QuantizedWeight::from_blocks: blocks: expected 1 rows of 18 bytes of Q4_0, got 17 bytes");
  values(2, 33) = std::numeric_limits<float>::infinity();
  EXPECT_THROW(static_cast<void>(Weight::quantize(in(values))), ConfigError);
  values(2, 33) = 1e30F;  // the scale is an F16
  EXPECT_THROW(static_cast<void>(Weight::quantize(in(values))), ConfigError);
}

// One row is multiplied block by block, and there is none here: the output was never written.
TEST(QuantizedWeights, ReadInPlaceWithoutInputsGiveTheBias) {
  using Weight = QuantizedWeight<formats::Q8_0>;
  const std::vector<std::uint8_t> memory(1);
  const Weight weight = Weight::in_place(std::span(memory).first(0), 5, 0);
  const auto bias = random_matrix<float>(1, 5, 1);
  Workspace workspace;
  Matrix<float> y = Matrix<float>::Constant(1, 5, -99);
  weight.product(in(Matrix<float>(1, 0)), bias.data(), {}, view_of(y), workspace);
  EXPECT_TRUE(same_bits(y, bias));
}

// The divisor of a block of zeros is denormal.
TEST(QuantizedWeights, BlocksOfZerosHaveTheSameBytesWhereDenormalsAreFlushed) {
#if defined(__SSE2__)
  using Weight = QuantizedWeight<formats::NF4<64>>;
  const Matrix<float> zeros = Matrix<float>::Zero(2, 64);
  Matrix<float> expected(2, 64), got(2, 64);
  read_back(Weight::quantize(in(zeros)), view_of(expected));
  const unsigned former = _mm_getcsr();
  _mm_setcsr(former | 0x8040U);
  const Weight flushed = Weight::quantize(in(zeros));
  _mm_setcsr(former);
  read_back(flushed, view_of(got));
  EXPECT_TRUE(same_bits(got, expected));
#else
  GTEST_SKIP() << "the environment is set by an instruction of x86";
#endif
}

TEST(TransposedWeight, IsTheSameWeightTheOtherWayRound) {
  using Weight = QuantizedWeight<formats::Q8_0>;
  const auto weight = Weight::quantize(in(random_matrix<float>(40, 32, 1)));
  const TransposedWeight<Weight> turned(weight);
  Matrix<float> values(40, 32);
  read_back(weight, view_of(values));
  Matrix<float> read(32, 40);
  read_back(turned, view_of(read));
  EXPECT_TRUE(same_bits(read, values.transpose()));
  SerialExecutor serial;
  const auto expected = products(PackedWeight<float>(in(values).transpose()), 5, 2, false, serial);
  const auto got = products(turned, 5, 2, false, serial);
  EXPECT_TRUE(got.first.isApprox(expected.first, 1e-5F));  // the bias comes after the inputs
  EXPECT_TRUE(same_bits(got.second, expected.second));
}

}  // namespace
}  // namespace quantized_test
}  // namespace lora
