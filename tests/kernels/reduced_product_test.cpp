// SPDX-License-Identifier: MIT
// Products in bf16 and in 8-bit integers, bit for bit against their definitions, for every instruction set.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <vector>

#include "lora/core/half.hpp"
#include "lora/kernels/bf16_product.hpp"
#include "lora/kernels/int8_product.hpp"
#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_blocks.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace reduced_product_test {
namespace {

using testing::decoded;
using testing::random_blocks;
using testing::random_matrix;
using testing::same_bits;
using testing::supported_isas;

/// A weight of two whole panels and a bit, in rows and laid out.
template <class Format>
struct Stored {
  explicit Stored(Index inputs)
      : blocks(random_blocks<Format>(2 * kernels::panel_width<float> + 21, inputs, 1)),
        values(decoded<Format>(blocks, 2 * kernels::panel_width<float> + 21, inputs)),
        stored{{{values.rows(), inputs}}, nullptr, blocks.data()},
        chunks(static_cast<std::size_t>(stored.layout.bytes())),
        laid_out{stored.layout, chunks.data(), nullptr} {
    for (Index b = 0; b < stored.layout.panels.panels(); ++b) {
      for (Index c = 0; c < stored.layout.blocks(); ++c) {
        stored.pack(b, c, chunks.data() + stored.layout.offset(b) + c * stored.layout.chunk_bytes(b));
      }
    }
  }

  [[nodiscard]] kernels::PanelCall<float> call(const Matrix<float>& x, const Matrix<float>& bias, Matrix<float>& y,
                                               Isa isa) const {
    return {stored.layout.panels, view_of(x), bias.data(), {}, {}, view_of(y), kernels::multiply_kernel<float>(isa)};
  }

  std::vector<std::uint8_t> blocks;
  Matrix<float> values;
  kernels::StoredBlocks<Format> stored;
  std::vector<std::uint8_t> chunks;
  kernels::StoredBlocks<Format> laid_out;
};

/// Sums that start at zero and fill `out`, as wide as a panel.
kernels::TileSums sums_to(Matrix<float>& out) {
  return {.rows = out.rows(), .width = out.cols(), .columns = out.cols(), .out = out.data(), .out_stride = out.cols()};
}

float bf16(float value) {
  const std::uint16_t bits = bf16_from(static_cast<double>(value));
  return float_from_bf16(static_cast<std::uint16_t>((bits & 0x7F80U) != 0 ? bits : bits & 0x8000U));
}

/// bias + sum of x w, the second of each pair first. Products of bf16 numbers are exact in float.
float bf16_chain(const Matrix<float>& x, Index i, const Matrix<float>& w, Index j, float acc) {
  for (Index q = 0; q < w.cols(); q += 2) {
    if (q + 1 < w.cols()) acc = acc + bf16(x(i, q + 1)) * bf16(w(j, q + 1));
    acc = acc + bf16(x(i, q)) * bf16(w(j, q));
  }
  return acc;
}

TEST(Bf16Product, IsAChainOfExactProductsOfRoundedNumbers) {
  const Stored<formats::Q5_1> stored(544);  // more than a part that is decoded at a time
  const Stored<formats::F16> odd(75);
  const auto check = [](const auto& weight, Index samples) {
    auto x = random_matrix<float>(samples, weight.values.cols(), 2);
    x(0, 0) = 0x1p-130F;  // rounds to a denormal number, so to zero
    const auto bias = random_matrix<float>(1, weight.values.rows(), 3);
    Matrix<float> expected(samples, weight.values.rows());
    for (Index i = 0; i < samples; ++i)
      for (Index j = 0; j < expected.cols(); ++j) expected(i, j) = bf16_chain(x, i, weight.values, j, bias(0, j));
    for (const Isa isa : supported_isas()) {
      for (const auto* blocks : {&weight.stored, &weight.laid_out}) {
        Matrix<float> y(samples, expected.cols());
        Workspace workspace;
        kernels::bf16_product(weight.call(x, bias, y, isa), *blocks, isa, workspace);
        EXPECT_TRUE(same_bits(y, expected)) << isa_name(isa) << " " << samples;
      }
    }
  };
  for (const Index samples : {1, 2, 11}) {
    check(stored, samples);
    check(odd, samples);
  }
}

TEST(Bf16Product, TheInstructionAndItsTwinGiveTheSameBits) {
  if (!kernels::has_bf16_instruction()) GTEST_SKIP() << "no AVX512_BF16";
  constexpr Index width = 48;
  constexpr Index pairs = 37;
  constexpr Index rows = 13;
  const auto lines = random_matrix<float>(2 * pairs, width, 1);
  const auto x = random_matrix<float>(rows, 2 * pairs, 2);
  std::vector<std::uint32_t> w(static_cast<std::size_t>(pairs * width));
  std::vector<std::uint32_t> rounded(static_cast<std::size_t>(rows * pairs));
  Matrix<float> results[2] = {Matrix<float>(rows, width), Matrix<float>(rows, width)};
  for (const bool instruction : {false, true}) {
    const auto& kernels = kernels::pair_kernels(Isa::avx512, instruction);
    kernels.pair_lines(lines.data(), width, 2 * pairs, w.data());
    for (Index i = 0; i < rows; ++i) {
      kernels.round_row(&x(i, 0), 1, 2 * pairs, reinterpret_cast<std::uint16_t*>(rounded.data() + i * pairs));
    }
    kernels.multiply({.sums = sums_to(results[instruction ? 1 : 0]),
                      .x = rounded.data(),
                      .x_stride = pairs,
                      .w = w.data(),
                      .pairs = pairs});
  }
  EXPECT_TRUE(same_bits(results[0], results[1]));
}

TEST(Bf16Product, RoundingKeepsInfinitiesAndNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {infinity, -infinity, std::bit_cast<float>(0x7F800001U), 0x1.FFp127F, -0.0F,
                                1.0F,     -0x1p-140F};
  for (const Isa isa : supported_isas()) {
    std::vector<std::uint16_t> row(8, 7);
    kernels::pair_kernels(isa).round_row(x.data(), 1, 7, row.data());
    EXPECT_EQ(row, (std::vector<std::uint16_t>{0x7F80, 0xFF80, 0x7FC0, 0x7F80, 0x8000, 0x3F80, 0x8000, 0}))
        << isa_name(isa);
  }
}

/// The codes and the scale of a block, from its values and the F16 number it begins with.
template <class Format>
float int8_block_product(const float* x, const float* w, const std::uint8_t* block, float acc) {
  float largest = 0;
  for (Index q = 0; q < 32; ++q) largest = std::max(largest, std::abs(x[q]));
  const float x_scale = largest / 127.0F;
  const float w_scale = float_from_f16(static_cast<std::uint16_t>(block[0] | block[1] << 8));
  std::int32_t sum = 0;
  for (Index q = 0; q < 32; ++q) {
    const double factor = static_cast<double>(largest >= 0x1p-118F ? 1.0F / x_scale : 0.0F);
    const auto code = static_cast<std::int32_t>(std::nearbyint(static_cast<double>(x[q]) * factor));
    const double weight = w_scale == 0.0F ? 0.0 : static_cast<double>(w[q]) / static_cast<double>(w_scale);
    sum += code * static_cast<std::int32_t>(weight);
  }
  return std::fma(static_cast<float>(sum), x_scale * w_scale, acc);
}

template <class Format>
void expect_integer_sums() {
  const Stored<Format> weight(544);
  const Index outputs = weight.values.rows();
  const auto bias = random_matrix<float>(1, outputs, 3);
  for (const Index samples : {1, 3, 9}) {
    auto x = random_matrix<float>(samples, 544, 2);
    for (Index q = 32; q < 64; ++q) x(0, q) = 0;
    for (Index q = 64; q < 96; ++q) x(0, q) = 0x1p-120F;  // a scale below the normal range
    Matrix<float> expected(samples, outputs);
    for (Index i = 0; i < samples; ++i) {
      for (Index j = 0; j < outputs; ++j) {
        float acc = bias(0, j);
        for (Index q = 0; q < 544; q += 32) {
          const std::uint8_t* const block = weight.blocks.data() + (j * 17 + q / 32) * Format::block_bytes;
          acc = int8_block_product<Format>(&x(i, q), &weight.values(j, q), block, acc);
        }
        expected(i, j) = acc;
      }
    }
    for (const Isa isa : supported_isas()) {
      for (const auto* blocks : {&weight.stored, &weight.laid_out}) {
        Matrix<float> y(samples, outputs);
        Workspace workspace;
        kernels::int8_product(weight.call(x, bias, y, isa), *blocks, isa, workspace);
        EXPECT_TRUE(same_bits(y, expected)) << isa_name(isa) << " " << samples;
      }
    }
  }
}

TEST(Int8Product, SumsIntegersWithinABlockOfQ8_0) { expect_integer_sums<formats::Q8_0>(); }
TEST(Int8Product, SumsIntegersWithinABlockOfQ5_0) { expect_integer_sums<formats::Q5_0>(); }
TEST(Int8Product, SumsIntegersWithinABlockOfQ4_0) { expect_integer_sums<formats::Q4_0>(); }

TEST(Int8Product, TheInstructionAndItsTwinGiveTheSameBits) {
  if (!kernels::has_vnni_instruction()) GTEST_SKIP() << "no AVX512_VNNI";
  constexpr Index width = 48;
  constexpr Index rows = 7;
  std::vector<std::uint32_t> codes(static_cast<std::size_t>(2 * kernels::int8_words * width));
  std::vector<std::uint32_t> x(static_cast<std::size_t>(rows * 2 * kernels::int8_words));
  std::mt19937 random(1);
  for (auto& word : codes) word = static_cast<std::uint32_t>(random());
  for (auto& word : x) word = static_cast<std::uint32_t>(random());
  const std::vector<kernels::Int8Block> blocks(static_cast<std::size_t>(rows * 2), {0.5F, 3});
  const auto scales = random_matrix<float>(2, width, 3);
  Matrix<float> results[2] = {Matrix<float>(rows, width), Matrix<float>(rows, width)};
  for (const bool instruction : {false, true}) {
    kernels::byte_kernels<formats::Q8_0>(Isa::avx512, instruction)
        .multiply({.sums = sums_to(results[instruction ? 1 : 0]),
                   .x = x.data(),
                   .x_stride = 2 * kernels::int8_words,
                   .x_blocks = blocks.data(),
                   .x_blocks_stride = 2,
                   .codes = codes.data(),
                   .scales = scales.data(),
                   .zero_code = 128,
                   .blocks = 2});
  }
  EXPECT_TRUE(same_bits(results[0], results[1]));
}

TEST(Int8Product, ABlockThatIsNotFiniteGivesNaN) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const Isa isa : supported_isas()) {
      std::vector<float> x(32, 1.0F);
      x[5] = bad;
      std::int8_t codes[32];
      kernels::Int8Block block;
      kernels::byte_kernels<formats::Q8_0>(isa).round_block(x.data(), 1, codes, block);
      EXPECT_TRUE(std::isnan(block.scale)) << isa_name(isa);
      EXPECT_EQ(block.sum, 0);
      EXPECT_TRUE(std::all_of(codes, codes + 32, [](std::int8_t code) { return code == 0; }));
    }
  }
}

}  // namespace
}  // namespace reduced_product_test
}  // namespace lora
