// SPDX-License-Identifier: MIT
// Products with packed panels and with dense weights: the tiles, the layout of panels, and whole products.
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/kernels/dense_product.hpp"
#include "lora/kernels/packed_product.hpp"
#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora {
namespace {

using kernels::even_block;
using kernels::PanelCall;
using kernels::PanelLayout;
using kernels::PanelProduct;
using testing::ExactArray;
using testing::Oracle;
using testing::same_bits;
using testing::Storage;
using testing::supported_isas;
using testing::ThreadExecutor;

using Scalars = ::testing::Types<float, double>;

template <class Scalar>
class TileTest : public ::testing::Test {};
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
          const ExactArray<TypeParam> more_left(rows, 3, Storage::row_major, 5);
          const ExactArray<TypeParam> more_right(3, panels * width, Storage::row_major, 6);
          const ExactArray<TypeParam> together(rows, panels * width, Storage::row_major, 4);
          const ExactArray<TypeParam> apart(rows, panels * width, Storage::row_major, 4);
          PanelProduct<TypeParam> product;
          product.rows = rows;
          product.width = width;
          product.columns = width;
          product.panels = panels;
          product.terms = {left.input().data, left.input().row_stride, left.input().col_stride, right.input().data,
                           depth};
          product.extra = {more_left.input().data, 3, 1, more_right.input().data, 3, panels * width};
          product.initial = start == 1 ? initial.input().data : nullptr;
          product.accumulate = start == 2;
          product.out = together.view().data;
          product.out_stride = panels * width;
          multiply(product);

          product.panels = 1;
          for (Index b = 0; b < panels; ++b) {
            product.terms.right = right.input().data + b * depth * width;
            product.extra.right = more_right.input().data + b * width;
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

TEST(EvenBlock, CutsIntoAsFewPartsAsTheLimitAllows) {
  for (Index total = 0; total <= 100; ++total) {
    for (const Index limit : {1, 7, 32, 100}) {
      const Index block = even_block(total, limit);
      ASSERT_GE(block, 1);
      ASSERT_LE(block, limit);
      ASSERT_EQ(kernels::ceil_div(total, block), kernels::ceil_div(total, limit)) << total << " by " << limit;
    }
  }
}

template <class Scalar>
class PanelTest : public ::testing::Test {};
TYPED_TEST_SUITE(PanelTest, Scalars);

TYPED_TEST(PanelTest, PanelsFollowOneAnotherAndHoldEveryOutput) {
  for (const Index outputs : {0, 1, 16, 47, 48, 49, 100, 1000}) {
    const PanelLayout<TypeParam> layout{outputs, 7};
    Index end = 0;
    Index held = 0;
    for (Index b = 0; b < layout.panels(); ++b) {
      EXPECT_EQ(layout.offset(b), end);
      EXPECT_EQ(layout.first_output(b), held);
      EXPECT_GE(layout.width(b), layout.columns(b));
      EXPECT_LT(layout.width(b), layout.columns(b) + kernels::width_unit<TypeParam>);
      EXPECT_EQ(layout.width(b) % kernels::width_unit<TypeParam>, 0);
      end += layout.width(b) * layout.inputs;
      held += layout.columns(b);
    }
    EXPECT_EQ(layout.size(), end);
    EXPECT_EQ(held, outputs);
  }
}

TYPED_TEST(PanelTest, PackedElementsStandWhereTheLayoutSays) {
  const ExactArray<TypeParam> weight(101, 9, Storage::row_major, 1);
  const PanelLayout<TypeParam> layout{101, 9};
  for (const Isa isa : testing::supported_isas()) {
    for (Index b = 0; b < layout.panels(); ++b) {
      std::vector<TypeParam> panel(static_cast<std::size_t>(layout.width(b) * layout.inputs));
      kernels::pack_panel(isa, weight.input(), b, panel.data());
      for (Index q = 0; q < layout.inputs; ++q) {
        for (Index j = 0; j < layout.width(b); ++j) {
          const TypeParam expected = j < layout.columns(b) ? weight.input()(layout.first_output(b) + j, q) : 0;
          ASSERT_EQ(panel[static_cast<std::size_t>(q * layout.width(b) + j)], expected) << isa_name(isa);
        }
      }
    }
  }
}

template <class Scalar>
std::vector<Scalar> pack(Isa isa, const MatrixView<const Scalar>& weight) {
  const PanelLayout<Scalar> layout{weight.rows, weight.cols};
  std::vector<Scalar> panels(static_cast<std::size_t>(layout.size()));
  for (Index b = 0; b < layout.panels(); ++b) kernels::pack_panel(isa, weight, b, panels.data() + layout.offset(b));
  return panels;
}

template <class Scalar>
class PackedProductTest : public ::testing::Test {};
TYPED_TEST_SUITE(PackedProductTest, Scalars);

TYPED_TEST(PackedProductTest, BothProductsMatchTheOracleAcrossRowPasses) {
  for (const Isa isa : supported_isas()) {
    for (const Index rows : {Index{3}, kernels::rows_per_pass + 1, kernels::rows_per_packing_pass + 9}) {
      const ExactArray<TypeParam> weight(70, 30, Storage::row_major, 1);
      const std::vector<TypeParam> panels = pack(isa, weight.input());
      const PanelLayout<TypeParam> layout{70, 30};
      const auto multiply = kernels::multiply_kernel<TypeParam>(isa);
      testing::ThreadExecutor executor(3);
      Workspace workspace(executor);

      const ExactArray<TypeParam> x(rows, 30, Storage::row_major, 2);
      const ExactArray<TypeParam> y(rows, 70, Storage::row_major, 3);
      kernels::packed_product<TypeParam>({layout, x.input(), nullptr, {}, {}, y.view(), multiply}, panels.data(),
                                         workspace);
      Oracle forward(rows, 70);
      forward.add_product(1, x.input(), weight.input().transpose());
      forward.expect_near(y.view(), std::string(isa_name(isa)) + " product of rows " + std::to_string(rows));

      const ExactArray<TypeParam> dx(rows, 30, Storage::row_major, 4);
      kernels::packed_product_transposed<TypeParam>({{30, 70}, y.input(), nullptr, {}, {}, dx.view(), multiply}, layout,
                                                    panels.data(), isa, workspace);
      Oracle backward(rows, 30);
      backward.add_product(1, y.input(), weight.input());
      backward.expect_near(dx.view(), std::string(isa_name(isa)) + " transposed, rows " + std::to_string(rows));
    }
  }
}

TYPED_TEST(PackedProductTest, ASingleRowHasTheBitsOfTheSameRowInABatch) {
  constexpr Index width = kernels::panel_width<TypeParam>;
  for (const Isa isa : supported_isas()) {
    for (const Index outputs : {Index{1}, width, width + 5, 2 * width, 3 * width, 5 * width + 7}) {
      for (const Index inputs : {Index{0}, Index{1}, Index{37}, kernels::inner_block<TypeParam> + 11}) {
        for (const Index rank : {0, 1, 9}) {
          for (const bool biased : {false, true}) {
            const ExactArray<TypeParam> weight(outputs, inputs, Storage::row_major, 1);
            const ExactArray<TypeParam> x(2, inputs, Storage::strided, 2);
            const ExactArray<TypeParam> u(2, rank, Storage::column_major, 3);
            const ExactArray<TypeParam> up(rank, outputs, Storage::row_major, 4);
            const ExactArray<TypeParam> bias(1, outputs, Storage::row_major, 5);
            const ExactArray<TypeParam> batch(2, outputs, Storage::row_major, 6);
            const std::vector<TypeParam> panels = pack(isa, weight.input());
            PanelCall<TypeParam> call{
                {outputs, inputs}, x.input(),    biased ? bias.input().data : nullptr,    u.input(),
                up.input(),        batch.view(), kernels::multiply_kernel<TypeParam>(isa)};
            Workspace workspace;
            kernels::packed_product(call, panels.data(), workspace);
            Oracle oracle(2, outputs);
            if (biased) oracle.add_row(bias.input().data);
            oracle.add_product(1, x.input(), weight.input().transpose());
            oracle.add_product(1, u.input(), up.input());
            const std::string what = std::string(isa_name(isa)) + ", outputs " + std::to_string(outputs) + ", inputs " +
                                     std::to_string(inputs) + ", rank " + std::to_string(rank);
            oracle.expect_near(batch.view(), what);
            for (const int workers : {1, 2, 3}) {
              testing::ThreadExecutor executor(workers);
              Workspace parallel(executor);
              const ExactArray<TypeParam> single(1, outputs, Storage::row_major, 7);
              call.x = x.input().middle_rows(1, 1);
              call.down = u.input().middle_rows(1, 1);
              call.y = single.view();
              kernels::packed_product(call, panels.data(), parallel);
              ASSERT_EQ(single.view().map(), batch.view().map().row(1)) << what << ", workers " << workers;
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(PackedProductTest, AFactorMayLieTransposed) {
  for (const Isa isa : supported_isas()) {
    for (const Index rows : {1, 2, 11}) {
      for (const Index outputs : {1, 15, 48, 70, 150}) {
        for (const Index rank : {1, 3, 8, 17}) {
          const ExactArray<TypeParam> weight(outputs, 9, Storage::row_major, 1);
          const ExactArray<TypeParam> x(rows, 9, Storage::row_major, 2);
          const ExactArray<TypeParam> u(rows, rank, Storage::row_major, 3);
          const ExactArray<TypeParam> b(outputs, rank, Storage::row_major, 4);
          const Matrix<TypeParam> up = b.input().map().transpose();
          const ExactArray<TypeParam> expected(rows, outputs, Storage::row_major, 5);
          const ExactArray<TypeParam> got(rows, outputs, Storage::row_major, 6);
          const std::vector<TypeParam> panels = pack(isa, weight.input());
          Workspace workspace;
          PanelCall<TypeParam> call{{outputs, 9},
                                    x.input(),
                                    nullptr,
                                    u.input(),
                                    view_of(up),
                                    expected.view(),
                                    kernels::multiply_kernel<TypeParam>(isa)};
          kernels::packed_product(call, panels.data(), workspace);
          call.up = b.input().transpose();
          call.y = got.view();
          kernels::packed_product(call, panels.data(), workspace);
          ASSERT_EQ(got.view().map(), expected.view().map())
              << isa_name(isa) << " N " << rows << " d " << outputs << " r " << rank;
        }
      }
    }
  }
}

TYPED_TEST(PackedProductTest, ATransposedPanelHoldsTheRowsOfTheWeight) {
  const ExactArray<TypeParam> weight(101, 53, Storage::row_major, 1);
  const PanelLayout<TypeParam> layout{101, 53};
  const PanelLayout<TypeParam> transposed{53, 101};
  for (const Isa isa : supported_isas()) {
    const std::vector<TypeParam> panels = pack(isa, weight.input());
    for (Index b = 0; b < transposed.panels(); ++b) {
      std::vector<TypeParam> scratch(static_cast<std::size_t>(transposed.width(b) * 101));
      const kernels::TransposedPanel<TypeParam> panel{
          layout, panels.data(), transposed.first_output(b), transposed.columns(b), transposed.width(b),
          isa,    scratch.data()};
      const TypeParam* rows = panel.rows(0, 101);
      for (Index j = 0; j < 101; ++j) {
        for (Index q = 0; q < transposed.columns(b); ++q) {
          ASSERT_EQ(rows[j * transposed.width(b) + q], weight.input()(j, transposed.first_output(b) + q));
        }
      }
    }
  }
}

template <class Scalar>
void expect_products(Index rows, Index outputs, Index inputs, Index rank, Storage storage, Isa isa,
                     Workspace& workspace) {
  const std::string text = std::string(isa_name(isa)) + " N " + std::to_string(rows) + " d " + std::to_string(outputs) +
                           " k " + std::to_string(inputs) + " r " + std::to_string(rank);
  const ExactArray<Scalar> weight(outputs, inputs, storage, 1);
  const ExactArray<Scalar> x(rows, inputs, Storage::row_major, 2);
  const ExactArray<Scalar> bias(1, outputs, Storage::row_major, 3);
  const ExactArray<Scalar> down(rows, rank, Storage::row_major, 4);
  const ExactArray<Scalar> up(rank, outputs, Storage::row_major, 5);
  const ExactArray<Scalar> y(rows, outputs, Storage::row_major, 6);
  kernels::dense_product(weight.input(), x.input(), bias.input().data, down.input(), up.input(), y.view(), workspace,
                         isa);
  Oracle forward(rows, outputs);
  forward.add_row(bias.input().data);
  forward.add_product(1, x.input(), weight.input().transpose());
  forward.add_product(1, down.input(), up.input());
  forward.expect_near(y.view(), "dense_product " + text);

  const ExactArray<Scalar> dy(rows, outputs, Storage::row_major, 7);
  const ExactArray<Scalar> transposed_up(rank, inputs, Storage::row_major, 8);
  const ExactArray<Scalar> dx(rows, inputs, Storage::row_major, 9);
  kernels::dense_product_transposed(weight.input(), dy.input(), down.input(), transposed_up.input(), dx.view(),
                                    workspace, isa);
  Oracle backward(rows, inputs);
  backward.add_product(1, dy.input(), weight.input());
  backward.add_product(1, down.input(), transposed_up.input());
  backward.expect_near(dx.view(), "dense_product_transposed " + text);
}

template <class Scalar>
class DenseProductTest : public ::testing::Test {};
TYPED_TEST_SUITE(DenseProductTest, Scalars);

TYPED_TEST(DenseProductTest, MatchesTheOracleForEveryStorageAndTail) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    for (const Storage storage : {Storage::row_major, Storage::column_major, Storage::strided}) {
      for (const Index size : {1, 7, 16, 17, 47, 48, 49, 97}) {
        expect_products<TypeParam>(9, size, 50, 3, storage, isa, workspace);
        expect_products<TypeParam>(9, 50, size, 3, storage, isa, workspace);
      }
      for (const Index rows : {0, 1, 2, 13}) expect_products<TypeParam>(rows, 33, 20, 0, storage, isa, workspace);
    }
    expect_products<TypeParam>(5, 70, 2100, 4, Storage::row_major, isa, workspace);
    expect_products<TypeParam>(1100, 20, 30, 4, Storage::row_major, isa, workspace);
  }
}

TYPED_TEST(DenseProductTest, MatchesTheOracleOnManyWorkers) {
  for (const Isa isa : supported_isas()) {
    for (const int workers : {2, 5}) {
      ThreadExecutor executor(workers);
      Workspace workspace(executor);
      expect_products<TypeParam>(40, 500, 490, 3, Storage::row_major, isa, workspace);
      expect_products<TypeParam>(40, 50, 49, 3, Storage::row_major, isa, workspace);
    }
  }
}

// A product without a low-rank term, followed by add_low_rank, has the bits of the product with it.
template <class Scalar>
void expect_continued(Isa isa, Index rows, Index outputs, Index inputs, Index rank, Storage factor, bool dense,
                      int workers) {
  const ExactArray<Scalar> weight(outputs, inputs, Storage::row_major, 1);
  const ExactArray<Scalar> x(rows, inputs, Storage::row_major, 2);
  const ExactArray<Scalar> bias(1, outputs, Storage::row_major, 3);
  const ExactArray<Scalar> u(rows, rank, Storage::strided, 4);
  const ExactArray<Scalar> f(rank, outputs, factor, 5);
  const ExactArray<Scalar> expected(rows, outputs, Storage::row_major, 6);
  Matrix<Scalar> wide = Matrix<Scalar>::Constant(rows, outputs + 7, Scalar(9));  // Y is a block of its columns
  const MatrixView<Scalar> got = view_of(wide).middle_cols(3, outputs);
  const std::vector<Scalar> panels = pack(isa, weight.input());
  ThreadExecutor executor(workers);
  Workspace workspace(executor);
  const auto product = [&](bool with_term, const MatrixView<Scalar>& y) {
    const auto down = with_term ? u.input() : MatrixView<const Scalar>{};
    const auto up = with_term ? f.input() : MatrixView<const Scalar>{};
    if (dense) {
      kernels::dense_product(weight.input(), x.input(), bias.input().data, down, up, y, workspace, isa);
    } else {
      const PanelCall<Scalar> call{
          {outputs, inputs}, x.input(), bias.input().data, down, up, y, kernels::multiply_kernel<Scalar>(isa)};
      kernels::packed_product(call, panels.data(), workspace);
    }
  };
  product(true, expected.view());
  product(false, got);
  kernels::add_low_rank(u.input(), f.input(), got, workspace, isa);
  ASSERT_TRUE(same_bits(got.map(), expected.view().map()))
      << isa_name(isa) << " N " << rows << " d " << outputs << " k " << inputs << " r " << rank << " storage "
      << static_cast<int>(factor) << (dense ? " dense" : " packed") << ", workers " << workers;
  ASSERT_TRUE((wide.leftCols(3).array() == Scalar(9)).all() && (wide.rightCols(4).array() == Scalar(9)).all());
}

template <class Scalar>
class AddLowRankTest : public ::testing::Test {};
TYPED_TEST_SUITE(AddLowRankTest, Scalars);

TYPED_TEST(AddLowRankTest, ContinuesTheChainsOfABaseProduct) {
  for (const Isa isa : supported_isas()) {
    for (const bool dense : {false, true}) {
      for (const Storage factor : {Storage::row_major, Storage::column_major}) {
        for (const Index rows : {1, 2, 8, 9, 33}) {
          for (const Index outputs : {1, 17, 48, 53, 96, 150, 300}) {
            expect_continued<TypeParam>(isa, rows, outputs, 20, 5, factor, dense, 1);
          }
          for (const Index rank : {0, 1, 8, 65}) {
            expect_continued<TypeParam>(isa, rows, 200, 1030, rank, factor, dense, 3);
          }
        }
        expect_continued<TypeParam>(isa, 0, 30, 5, 2, factor, dense, 1);
        expect_continued<TypeParam>(isa, 1100, 50, 5, 2, factor, dense, 2);
      }
    }
  }
}

TYPED_TEST(AddLowRankTest, MatchesTheOracle) {
  Workspace workspace;
  for (const Isa isa : supported_isas()) {
    const ExactArray<TypeParam> u(10, 4, Storage::row_major, 1);
    const ExactArray<TypeParam> f(4, 70, Storage::row_major, 2);
    const ExactArray<TypeParam> y(10, 70, Storage::row_major, 3);
    Oracle oracle(10, 70);
    oracle.add_array(y.input());
    oracle.add_product(1, u.input(), f.input());
    kernels::add_low_rank(u.input(), f.input(), y.view(), workspace, isa);
    oracle.expect_near(y.view(), std::string(isa_name(isa)));
  }
}

}  // namespace
}  // namespace lora
