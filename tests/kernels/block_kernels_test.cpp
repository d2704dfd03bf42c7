// SPDX-License-Identifier: MIT
// The decoding kernels of every format and instruction set, against the traits.
#include "lora/kernels/block_kernels.hpp"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <random>
#include <utility>
#include <vector>

#include "format/format_cases.hpp"
#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_blocks.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace block_kernels_test {
namespace {

using testing::decoded;
using testing::random_blocks;
using testing::same_bits;
using testing::supported_isas;

/// A weight with four whole panels and the start of another, as rows and as chunks.
template <class Format>
struct Stored {
  static constexpr Index outputs = 4 * kernels::panel_width<float> + 21;

  explicit Stored(Index inputs) : Stored(inputs, random_blocks<Format>(outputs, inputs, 1)) {}
  Stored(Index inputs, std::vector<std::uint8_t> bytes)
      : layout{{outputs, inputs}},
        blocks(std::move(bytes)),
        chunks(static_cast<std::size_t>(layout.bytes()), 0xA5),
        values(decoded<Format>(blocks, outputs, inputs)) {
    for (Index b = 0; b < layout.panels.panels(); ++b) {
      for (Index c = 0; c < layout.blocks(); ++c) {
        kernels::pack_chunk<Format>(blocks.data() + layout.offset(b) + c * Format::block_bytes, layout.row_bytes(),
                                    layout.panels.columns(b), layout.panels.width(b), chunk(b, c));
      }
    }
  }

  [[nodiscard]] std::uint8_t* chunk(Index b, Index c) {
    return chunks.data() + layout.offset(b) + c * layout.chunk_bytes(b);
  }
  [[nodiscard]] Matrix<float> panel(Index b) const {
    return values.middleRows(layout.panels.first_output(b), layout.panels.columns(b));
  }

  kernels::BlockLayout<Format> layout;
  std::vector<std::uint8_t> blocks;
  std::vector<std::uint8_t> chunks;
  Matrix<float> values;
};

template <class Format>
constexpr Index few_inputs = Format::block_size == 1 ? 67 : 3 * Format::block_size;

template <class Format>
class BlockKernelsTest : public ::testing::Test {};
TYPED_TEST_SUITE(BlockKernelsTest, testing::NumberFormats, testing::FormatName);

TYPED_TEST(BlockKernelsTest, DecodeWhatTheTraitDecodesFromAnyGroupOn) {
  Stored<TypeParam> stored(few_inputs<TypeParam>);
  constexpr Index group = kernels::block_group<TypeParam>();
  const Index inputs = few_inputs<TypeParam>;
  const std::vector<std::pair<Index, Index>> parts = {
      {0, inputs}, {0, group}, {group, inputs - group}, {inputs - group, group}};
  for (const Isa isa : supported_isas()) {
    for (Index b = 0; b < stored.layout.panels.panels(); ++b) {
      const Index width = stored.layout.panels.width(b);
      for (const auto& [first, count] : parts) {
        Matrix<float> lines(count, width);
        kernels::block_kernels<TypeParam>(isa).decode(stored.chunk(b, 0), width, first, count, lines.data());
        ASSERT_TRUE(same_bits(lines.leftCols(stored.layout.panels.columns(b)),
                              stored.panel(b).middleCols(first, count).transpose()))
            << isa_name(isa) << " panel " << b << " from " << first;
      }
    }
  }
}

// A damaged file may hold any bytes: scales that are infinite or NaN too. Which sign a NaN has depends on the order in
// which an instruction takes its operands; a fuzzer found Q5_K's signs to differ.
TYPED_TEST(BlockKernelsTest, DecodeAnyBytesAsTheTraitDoesUpToTheSignOfNaN) {
  const Index inputs = few_inputs<TypeParam>;
  std::vector<std::uint8_t> bytes(
      static_cast<std::size_t>(Stored<TypeParam>::outputs * formats::row_bytes<TypeParam>(inputs)));
  std::mt19937 random(7);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random() & 0xFFU);
  Stored<TypeParam> stored(inputs, bytes);
  ASSERT_FALSE(stored.values.allFinite());
  for (const Isa isa : supported_isas()) {
    for (Index b = 0; b < stored.layout.panels.panels(); ++b) {
      const Index width = stored.layout.panels.width(b);
      Matrix<float> lines(inputs, width);
      kernels::block_kernels<TypeParam>(isa).decode(stored.chunk(b, 0), width, 0, inputs, lines.data());
      const Matrix<float> expected = stored.panel(b).transpose();
      for (Index i = 0; i < expected.rows(); ++i) {
        for (Index j = 0; j < expected.cols(); ++j) {
          if (std::isnan(expected(i, j))) {
            ASSERT_TRUE(std::isnan(lines(i, j))) << isa_name(isa) << " panel " << b << " at " << i << " " << j;
          } else {
            ASSERT_EQ(std::bit_cast<std::uint32_t>(lines(i, j)), std::bit_cast<std::uint32_t>(expected(i, j)))
                << isa_name(isa) << " panel " << b << " at " << i << " " << j;
          }
        }
      }
    }
  }
}

TYPED_TEST(BlockKernelsTest, MultiplyARowInOneChainOfMultiplyAdds) {
  Stored<TypeParam> stored(few_inputs<TypeParam>);
  const Index inputs = few_inputs<TypeParam>;
  const auto x = testing::random_matrix<float>(1, inputs, 3);
  const Matrix<float> strided = x.transpose().replicate(1, 2);  // its elements are 2 apart
  for (const Isa isa : supported_isas()) {
    if (isa == Isa::portable) continue;  // may round differently
    for (Index b = 0; b < stored.layout.panels.panels(); ++b) {
      const Matrix<float> panel = stored.panel(b);
      const Index columns = panel.rows();
      const auto initial = testing::random_matrix<float>(1, stored.layout.panels.width(b), 5);
      Matrix<float> expected = initial.leftCols(columns);
      for (Index j = 0; j < columns; ++j)
        for (Index q = 0; q < inputs; ++q) expected(0, j) = std::fma(x(0, q), panel(j, q), expected(0, j));
      Matrix<float> y = Matrix<float>::Constant(1, columns + 1, 7);
      kernels::BlockRow row{.chunks = stored.chunk(b, 0),
                            .width = stored.layout.panels.width(b),
                            .blocks = stored.layout.blocks(),
                            .x = strided.data(),
                            .x_step = 2,
                            .initial = {initial.data(), nullptr},
                            .out = y.data(),
                            .columns = columns};
      kernels::block_kernels<TypeParam>(isa).multiply_row(row);
      ASSERT_TRUE(same_bits(y.leftCols(columns), expected)) << isa_name(isa) << " panel " << b;
      ASSERT_EQ(y(0, columns), 7);

      row.blocks = 1;
      row.accumulate = true;
      y.leftCols(columns) = initial.leftCols(columns);
      for (Index c = 0; c < stored.layout.blocks(); ++c) {
        kernels::block_kernels<TypeParam>(isa).multiply_row(row);
        row.chunks += stored.layout.chunk_bytes(b);
        row.x += 2 * TypeParam::block_size;
      }
      ASSERT_TRUE(same_bits(y.leftCols(columns), expected)) << isa_name(isa) << " in parts, panel " << b;
    }
  }
}

TYPED_TEST(BlockKernelsTest, MultiplyARowWithSeveralPanelsAsWithEachAlone) {
  Stored<TypeParam> stored(few_inputs<TypeParam>);
  constexpr Index width = kernels::panel_width<float>;
  const auto x = testing::random_matrix<float>(1, few_inputs<TypeParam>, 3);
  for (const Isa isa : supported_isas()) {
    const auto& table = kernels::block_kernels<TypeParam>(isa);
    const Index panels = table.row_panels;
    ASSERT_LE(panels, kernels::most_row_panels);
    const auto initial = testing::random_matrix<float>(1, panels * width, 5);
    kernels::BlockRow row{.chunks = stored.chunk(0, 0),
                          .panel_bytes = stored.layout.offset(1) - stored.layout.offset(0),
                          .panels = panels,
                          .width = width,
                          .blocks = stored.layout.blocks(),
                          .x = x.data(),
                          .columns = panels * width - 1};
    Matrix<float> single(1, panels * width);
    for (Index b = 0; b < panels; ++b) {
      row.initial[b] = initial.data() + b * width;
      kernels::BlockRow alone = row;
      alone.chunks = stored.chunk(b, 0);
      alone.panels = 1;
      alone.initial[0] = row.initial[b];
      alone.out = single.data() + b * width;
      alone.columns = width;
      table.multiply_row(alone);
    }
    Matrix<float> together = Matrix<float>::Constant(1, panels * width, 7);
    row.out = together.data();
    table.multiply_row(row);
    EXPECT_TRUE(same_bits(together.leftCols(row.columns), single.leftCols(row.columns))) << isa_name(isa);
    EXPECT_EQ(together(0, row.columns), 7);
  }
}

TYPED_TEST(BlockKernelsTest, UnpackingGivesTheBlocksBack) {
  Stored<TypeParam> stored(few_inputs<TypeParam>);
  const auto& layout = stored.layout;
  std::vector<std::uint8_t> back(stored.blocks.size());
  for (Index b = 0; b < layout.panels.panels(); ++b) {
    for (Index c = 0; c < layout.blocks(); ++c) {
      kernels::unpack_chunk<TypeParam>(stored.chunk(b, c), layout.panels.width(b), layout.panels.columns(b),
                                       back.data() + layout.offset(b) + c * TypeParam::block_bytes, layout.row_bytes());
    }
  }
  EXPECT_EQ(back, stored.blocks);
}

}  // namespace
}  // namespace block_kernels_test
}  // namespace lora
