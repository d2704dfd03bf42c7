#include "lora/kernels/tile.hpp"

#include <gtest/gtest.h>
#include <string>

#include "support/kernel_oracle.hpp"

namespace lora {
namespace {

using kernels::PanelProduct;
using testing::ExactArray;
using testing::Oracle;
using testing::Storage;
using testing::supported_isas;

template <class Scalar>
class TileTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(TileTest, Scalars);

template <class Scalar>
void expect_product(Isa isa, Index rows, Index width, Index columns, Index depth, Index extra, bool accumulate) {
  const ExactArray<Scalar> left(rows, depth, Storage::strided, 1);
  const ExactArray<Scalar> right(depth, width, Storage::row_major, 2);
  const ExactArray<Scalar> more_left(rows, extra, Storage::column_major, 3);
  const ExactArray<Scalar> more_right(extra, width, Storage::row_major, 4);
  const ExactArray<Scalar> initial(1, width, Storage::row_major, 5);
  const ExactArray<Scalar> out(rows, columns, Storage::row_major, 6);
  Oracle oracle(rows, columns);
  if (accumulate) {
    oracle.add_array(out.input());
  } else {
    oracle.add_row(initial.input().data);
  }
  oracle.add_product(1, left.input(), right.input().middle_cols(0, columns));
  oracle.add_product(1, more_left.input(), more_right.input().middle_cols(0, columns));

  PanelProduct<Scalar> product;
  product.rows = rows;
  product.width = width;
  product.columns = columns;
  product.terms = {left.input().data, left.input().row_stride, left.input().col_stride, right.input().data, depth};
  product.extra = {more_left.input().data, more_left.input().row_stride, more_left.input().col_stride,
                   more_right.input().data, extra};
  product.initial = initial.input().data;
  product.accumulate = accumulate;
  product.out = out.view().data;
  product.out_stride = columns;
  kernels::multiply_kernel<Scalar>(isa)(product);
  oracle.expect_near(out.view(), std::string(isa_name(isa)) + " " + std::to_string(rows) + " x " +
                                     std::to_string(columns) + " of " + std::to_string(width) + ", depth " +
                                     std::to_string(depth) + " + " + std::to_string(extra));
}

TYPED_TEST(TileTest, MatchesTheOracleForEveryTileShape) {
  constexpr Index unit = kernels::width_unit<TypeParam>;
  for (const Isa isa : supported_isas()) {
    for (Index rows = 0; rows <= 17; ++rows) {
      for (const Index width : {unit, 2 * unit, 3 * unit}) {
        for (const Index missing : {Index{0}, Index{1}, unit - 1}) {
          expect_product<TypeParam>(isa, rows, width, width - missing, 11, 3, false);
          expect_product<TypeParam>(isa, rows, width, width - missing, 11, 3, true);
          expect_product<TypeParam>(isa, rows, width, width - missing, 0, 0, false);
        }
      }
    }
  }
}

TYPED_TEST(TileTest, PanelsAtATimeGiveTheBitsOfOneAfterTheOther) {
  constexpr Index width = kernels::panel_width<TypeParam>;
  constexpr Index depth = 13;
  for (const Isa isa : supported_isas()) {
    const auto multiply = kernels::multiply_kernel<TypeParam>(isa);
    for (const Index panels : {2, 3, 5}) {
      for (const Index rows : {1, 3}) {
        for (const int start : {0, 1, 2}) {  // from zero, from `initial`, from `out`
          const ExactArray<TypeParam> left(rows, depth, Storage::strided, 1);
          const ExactArray<TypeParam> right(panels * depth, width, Storage::row_major, 2);
          const ExactArray<TypeParam> initial(1, panels * width, Storage::row_major, 3);
          const ExactArray<TypeParam> together(rows, panels * width, Storage::row_major, 4);
          const ExactArray<TypeParam> apart(rows, panels * width, Storage::row_major, 4);
          PanelProduct<TypeParam> product;
          product.rows = rows;
          product.width = width;
          product.columns = width;
          product.panels = panels;
          product.terms = {left.input().data, left.input().row_stride, left.input().col_stride, right.input().data,
                           depth};
          product.initial = start == 1 ? initial.input().data : nullptr;
          product.accumulate = start == 2;
          product.out = together.view().data;
          product.out_stride = panels * width;
          multiply(product);

          product.panels = 1;
          for (Index b = 0; b < panels; ++b) {
            product.terms.right = right.input().data + b * depth * width;
            product.initial = start == 1 ? initial.input().data + b * width : nullptr;
            product.out = apart.view().data + b * width;
            multiply(product);
          }
          ASSERT_EQ(together.view().map(), apart.view().map())
              << isa_name(isa) << ", panels " << panels << ", rows " << rows << ", start " << start;
        }
      }
    }
  }
}

TEST(Prefetch, SlicesCoverTheRunWithoutGapsWiderThanALine) {
  for (const Index samples : {64, 100, 256, 1000}) {
    const Index terms = 1024;
    const std::uintptr_t bytes = 1024 * 192;
    kernels::Prefetch prefetch;
    prefetch.spread(bytes, terms, samples);
    const auto last_tile = static_cast<std::uintptr_t>((samples - 1) / kernels::tallest_tile * kernels::tallest_tile);
    EXPECT_LE(prefetch.step, 64U);
    EXPECT_GE(last_tile * prefetch.row + static_cast<std::uintptr_t>(terms) * prefetch.step, bytes - 64) << samples;
    EXPECT_GE(static_cast<std::uintptr_t>(terms) * prefetch.step + 64, kernels::tallest_tile * prefetch.row);
  }
}

}  // namespace
}  // namespace lora
