// SPDX-License-Identifier: MIT
// What every kind of frozen weight must do, written once.
#include "lora/weight/frozen_weight.hpp"

#include <gtest/gtest.h>
#include <thread>
#include <vector>

#include "lora/weight/tile_pieces.hpp"
#include "support/allocation_counter.hpp"
#include "support/bits.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"
#include "support/thread_executor.hpp"
#include "weight/weight_kinds.hpp"

namespace lora {
namespace frozen_weight_test {
namespace {

using testing::for_each_kind;
using testing::HeldWeight;
using testing::random_matrix;
using testing::same_bits;

static_assert(MergeableWeight<DenseWeight<float>> && MergeableWeight<DenseWeight<double>>);
static_assert(MergeableWeight<PackedWeight<float>> && MergeableWeight<PackedWeight<double>>);
static_assert(MergeableWeight<MatrixWeight<float>> && MergeableWeight<MatrixWeight<double>>);
static_assert(ReadableWeight<WeightRef<float>>);
static_assert(!FrozenWeight<Matrix<float>>);
static_assert(std::is_trivially_copyable_v<WeightRef<float>>);
static_assert(!std::is_convertible_v<PackedWeight<float>&, WeightRef<double>>);

template <class Scalar>
class FrozenWeightLaws : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(FrozenWeightLaws, Scalars);

struct Extents {
  Index d, k;
};
const std::vector<Extents> extents = {{1, 1},   {1, 40},   {40, 1},   {5, 7},     {47, 3},
                                      {48, 48}, {49, 130}, {200, 97}, {20000, 2}, {2, 20000}};

// How often each element of W is met, given a tile; its value must be that of `w`.
template <class Element, class Scalar>
void count_visits(const WeightTile<Element>& tile, const Matrix<Scalar>& w, Matrix<int>& visits) {
  const auto value = [](Element element) {
    if constexpr (sizeof(Element) == 2)
      return float_from_bf16(element);
    else
      return element;
  };
  for (Index l = 0; l < tile.lines; ++l) {
    for (Index p = 0; p < tile.length; ++p) {
      const Index line = tile.first_line + l;
      const Index position = tile.first_position + p;
      const Index i = tile.lines_are_outputs ? line : position;
      const Index j = tile.lines_are_outputs ? position : line;
      ASSERT_EQ(value(tile.data[l * tile.line_stride + p]), w(i, j)) << i << ", " << j;
      ++visits(i, j);
    }
  }
}

template <class Element, class Scalar>
void expect_every_element_once(const WeightRef<Scalar>& weight, const Matrix<Scalar>& w) {
  Matrix<int> visits = Matrix<int>::Zero(w.rows(), w.cols());
  for (Index t = 0; t < weight.tile_count(); ++t) {
    const auto tile = weight.template tile<Element>(t);
    EXPECT_LE(tile.lines * tile.length, max_tile_size);
    EXPECT_EQ(tile.data, weight.template const_tile<Element>(t).data);
    count_visits(tile, w, visits);
  }
  EXPECT_TRUE((visits.array() == 1).all());
  visits.setZero();
  TilePieces<const Element, Scalar> pieces(weight);
  while (pieces.next()) {
    const auto& piece = pieces.piece();
    EXPECT_TRUE(piece.lines * piece.length > 0 && piece.lines * piece.length <= max_piece_size);
    count_visits(piece, w, visits);
  }
  EXPECT_TRUE((visits.array() == 1).all());
}

TYPED_TEST(FrozenWeightLaws, TilesAndPiecesHoldEveryElementOnce) {
  for (const auto& [d, k] : extents) {
    const auto w = random_matrix<TypeParam>(d, k, 1);
    for_each_kind(w, [&](HeldWeight<TypeParam>& held) {
      const WeightRef<TypeParam> weight = held.weight();
      ASSERT_EQ(weight.out_features(), w.rows());
      ASSERT_EQ(weight.in_features(), w.cols());
      ASSERT_TRUE(weight.readable() && weight.mergeable());
      if (weight.storage() == WeightStorage::scalars) {
        expect_every_element_once<TypeParam>(weight, w);
      } else {
        expect_every_element_once<std::uint16_t>(weight, held.stored(w));
      }
    });
  }
}

// Whole, single rows, single columns, and blocks that cross panels, to memory of any strides.
TYPED_TEST(FrozenWeightLaws, ReadsAnyBlockIntoAnyStrides) {
  for (const auto& [d, k] : extents) {
    const auto w = random_matrix<TypeParam>(d, k, 1);
    const Index half_d = d / 2;
    const Index half_k = k / 2;
    const Index blocks[][4] = {{0, 0, d, k},
                               {d - 1, 0, 1, k},
                               {0, k - 1, d, 1},
                               {half_d, half_k, 1, 1},
                               {half_d, 0, d - half_d, k},
                               {0, half_k, d, k - half_k},
                               {d / 3, k / 3, d / 2, k / 2},
                               {0, 0, 0, k},
                               {0, 0, d, 0}};
    for_each_kind(w, [&](HeldWeight<TypeParam>& held) {
      for (const auto& [first_output, first_input, rows, cols] : blocks) {
        const Matrix<TypeParam> expected = held.stored(w).block(first_output, first_input, rows, cols);
        Matrix<TypeParam> by_rows(rows, cols), by_columns(cols, rows), strided(rows, 2 * cols + 1);
        strided.setConstant(7);
        held.const_weight().read(first_output, first_input, view_of(by_rows));
        held.const_weight().read(first_output, first_input, view_of(by_columns).transpose());
        held.const_weight().read(first_output, first_input, {strided.data(), rows, cols, 2 * cols + 1, 2});
        EXPECT_TRUE(same_bits(by_rows, expected));
        EXPECT_TRUE(same_bits(by_columns.transpose().eval(), expected));
        for (Index j = 0; j < cols; ++j) {
          ASSERT_TRUE(same_bits(strided.col(2 * j).eval(), expected.col(j).eval()));
          ASSERT_TRUE((strided.col(2 * j + 1).array() == 7).all());
        }
      }
      EXPECT_TRUE(same_bits(held.values(), held.stored(w)));
    });
  }
}

TYPED_TEST(FrozenWeightLaws, ABlockOutsideTheWeightIsRefused) {
  for_each_kind(random_matrix<TypeParam>(5, 7, 1), [&](HeldWeight<TypeParam>& held) {
    Matrix<TypeParam> out = Matrix<TypeParam>::Constant(2, 3, 7);
    const Index outside[][2] = {{4, 0}, {-1, 0}, {0, 5}, {0, -1}, {6, 0}, {0, 8}};
    for (const auto& at : outside) {
      EXPECT_THROW(held.const_weight().read(at[0], at[1], view_of(out)), ShapeError) << at[0] << ", " << at[1];
    }
    EXPECT_TRUE((out.array() == 7).all());
    EXPECT_THROW(read_back(held.const_weight(), view_of(out)), ShapeError);
  });
}

template <class Scalar>
struct Products {
  Matrix<Scalar> y, dx;
};

template <class Scalar>
struct ProductCase {
  Matrix<Scalar> x, dy, bias, down, up, down_back, up_back;
  ProductCase(Index n, Index d, Index k, Index r)
      : x(random_matrix<Scalar>(n, k, 2)),
        dy(random_matrix<Scalar>(n, d, 3)),
        bias(random_matrix<Scalar>(1, d, 4)),
        down(random_matrix<Scalar>(n, r, 5)),
        up(random_matrix<Scalar>(r, d, 6)),
        down_back(random_matrix<Scalar>(n, r, 7)),
        up_back(random_matrix<Scalar>(r, k, 8)) {}
  [[nodiscard]] Products<Scalar> of(const WeightRef<Scalar>& weight, Workspace& workspace) const {
    Products<Scalar> products{Matrix<Scalar>(x.rows(), dy.cols()), Matrix<Scalar>(x.rows(), x.cols())};
    run(weight, products, workspace);
    return products;
  }
  void run(const WeightRef<Scalar>& weight, Products<Scalar>& products, Workspace& workspace) const {
    weight.product(view_of(x), bias.data(), {view_of(down), view_of(up)}, view_of(products.y), workspace);
    weight.product_transposed(view_of(dy), {view_of(down_back), view_of(up_back)}, view_of(products.dx), workspace);
  }
};

template <class Scalar>
[[nodiscard]] Matrix<testing::Wide> wide(const Matrix<Scalar>& m) {
  return m.template cast<testing::Wide>();
}

// The bits of PackedWeight, which has the oracle's values up to rounding, with any number of workers.
TYPED_TEST(FrozenWeightLaws, EveryKindHasTheSameProductsWhateverTheNumberOfWorkers) {
  for (const auto& [n, d, k, r] : {std::array<Index, 4>{9, 70, 90, 3}, {1, 5, 7, 2}, {3, 130, 1, 0}, {40, 1, 33, 4}}) {
    const auto w = random_matrix<TypeParam>(d, k, 1);
    const ProductCase<TypeParam> c(n, d, k, r);
    Workspace serial;
    const PackedWeight<TypeParam> packed{view_of(w)};
    const auto expected = c.of(packed, serial);
    const Matrix<testing::Wide> up = wide(c.up);
    const Matrix<testing::Wide> exact =
        (wide(c.x) * wide(w).transpose() + wide(c.down) * up).rowwise() + wide(c.bias).row(0);
    const Matrix<testing::Wide> size =
        (wide(c.x).cwiseAbs() * wide(w).transpose().cwiseAbs() + wide(c.down).cwiseAbs() * up.cwiseAbs()).rowwise() +
        wide(c.bias).cwiseAbs().row(0);
    EXPECT_TRUE(testing::within_rounding(expected.y, exact, size, k + r + 2));
    const Matrix<testing::Wide> exact_dx = wide(c.dy) * wide(w) + wide(c.down_back) * wide(c.up_back);
    const Matrix<testing::Wide> size_dx =
        wide(c.dy).cwiseAbs() * wide(w).cwiseAbs() + wide(c.down_back).cwiseAbs() * wide(c.up_back).cwiseAbs();
    EXPECT_TRUE(testing::within_rounding(expected.dx, exact_dx, size_dx, d + r + 2));
    testing::ThreadExecutor threads(3);
    Workspace parallel(threads);
    for_each_kind(w, [&](HeldWeight<TypeParam>& held) {
      const Matrix<TypeParam> stored = held.stored(w);
      const auto of_stored = c.of(PackedWeight<TypeParam>(view_of(stored)), serial);
      for (Workspace* workspace : {&serial, &parallel}) {
        const auto got = c.of(held.const_weight(), *workspace);
        EXPECT_TRUE(same_bits(got.y, of_stored.y));
        EXPECT_TRUE(same_bits(got.dx, of_stored.dx));
      }
    });
  }
}

TYPED_TEST(FrozenWeightLaws, ASteadyProductAndReadingAllocateNothing) {
  const ProductCase<TypeParam> c(9, 70, 90, 3);
  for_each_kind(random_matrix<TypeParam>(70, 90, 1), [&](HeldWeight<TypeParam>& held) {
    Workspace workspace;
    auto products = c.of(held.const_weight(), workspace);
    Matrix<TypeParam> out(70, 90);
    EXPECT_EQ(testing::allocations_of([&] {
                c.run(held.const_weight(), products, workspace);
                held.const_weight().read(0, 0, view_of(out));
              }),
              0);
  });
}

TYPED_TEST(FrozenWeightLaws, ConcurrentReadersEachHaveTheResultOfOne) {
  const ProductCase<TypeParam> c(5, 70, 90, 3);
  for_each_kind(random_matrix<TypeParam>(70, 90, 1), [&](HeldWeight<TypeParam>& held) {
    Workspace workspace;
    const auto expected = c.of(held.const_weight(), workspace);
    const auto values = held.values();
    bool same[4] = {};
    std::vector<std::thread> threads;
    for (bool& ok : same) {
      threads.emplace_back([&] {
        Workspace own;
        ok = true;
        for (int i = 0; i < 5; ++i) {
          const auto got = c.of(held.const_weight(), own);
          ok = ok && same_bits(got.y, expected.y) && same_bits(got.dx, expected.dx) && same_bits(held.values(), values);
        }
      });
    }
    for (auto& thread : threads) thread.join();
    for (const bool ok : same) EXPECT_TRUE(ok);
  });
}

TEST(WeightRef, AConstWeightIsReadAndNotMergedInto) {
  const auto w = random_matrix<float>(5, 7, 1);
  PackedWeight<float> packed{view_of(w)};
  const WeightRef<float> ref = std::as_const(packed);
  EXPECT_TRUE(ref.readable());
  EXPECT_FALSE(ref.mergeable());
  EXPECT_TRUE(ref.has_tiles());
  EXPECT_THROW((void)ref.tile(0), StateError);
  DenseWeight<float> view_of_const(view_of(w));
  EXPECT_FALSE(WeightRef<float>(view_of_const).mergeable());
  EXPECT_TRUE(WeightRef<float>(packed).mergeable());
  WeightRef<float> mutable_ref = packed;
  const WeightRef<float> copy = mutable_ref;  // refers to the weight, not to the reference
  EXPECT_EQ(copy.tile(0).data, packed.tile(0).data);
}

/// A kind that is multiplied with, and no more.
struct OperatorAlone {
  using Scalar = float;
  [[nodiscard]] Index out_features() const { return 3; }
  [[nodiscard]] Index in_features() const { return 2; }
  void product(const MatrixView<const float>& /*x*/, const float* /*bias*/, const LowRankTerm<float>& /*term*/,
               const MatrixView<float>& /*y*/, Workspace& /*workspace*/) const {}
  void product_transposed(const MatrixView<const float>& /*dy*/, const LowRankTerm<float>& /*term*/,
                          const MatrixView<float>& /*dx*/, Workspace& /*workspace*/) const {}
  [[nodiscard]] std::size_t bytes() const { return 5; }
};

TEST(WeightRef, SaysWhatToDoWhereAKindCannot) {
  static_assert(FrozenWeight<OperatorAlone> && !ReadableWeight<OperatorAlone>);
  OperatorAlone weight;
  const WeightRef<float> ref = weight;
  EXPECT_EQ(ref.out_features(), 3);
  EXPECT_EQ(ref.in_features(), 2);
  EXPECT_EQ(ref.bytes(), 5U);
  EXPECT_FALSE(ref.readable() || ref.mergeable() || ref.has_tiles());
  EXPECT_EQ(ref.tile_count(), 0);
  Matrix<float> out(3, 2);
  const auto message_of = [](const auto& call) {
    try {
      call();
    } catch (const StateError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(message_of([&] { ref.read(0, 0, view_of(out)); }).find("keep a copy"), std::string::npos);
  EXPECT_NE(message_of([&] { ref.require_mergeable("merge"); }).find("leave the adapter unmerged"), std::string::npos);
}

TEST(DenseWeight, ViewsTheCallersMemoryAndOwnsNone) {
  Matrix<float> w = random_matrix<float>(9, 13, 1);
  DenseWeight<float> weight(view_of(w));
  EXPECT_EQ(weight.view().data, w.data());
  EXPECT_EQ(weight.bytes(), 0U);
  weight.tile(0).data[0] = 42.0F;
  EXPECT_EQ(w(0, 0), 42.0F);
}

TEST(DenseWeight, CannotBeCopied) {
  static_assert(!std::is_copy_constructible_v<DenseWeight<float>>);
  static_assert(!std::is_copy_assignable_v<DenseWeight<float>>);
  static_assert(std::is_nothrow_move_constructible_v<DenseWeight<float>>);
}

// A raw buffer of contiguous rows needs no stride.
TEST(DenseWeight, AViewWithoutStridesIsContiguous) {
  Matrix<float> w = random_matrix<float>(9, 13, 1);
  const DenseWeight<float> weight(MatrixView<float>{w.data(), 9, 13});
  Matrix<float> out(9, 13);
  read_back(weight, view_of(out));
  EXPECT_TRUE(same_bits(out, w));
}

TEST(DenseWeight, RefusesMemoryWhoseLinesAreNotContiguousOrOverlap) {
  Matrix<float> memory = Matrix<float>::Zero(20, 20);
  float* const data = memory.data();
  const auto refused = [](const MatrixView<float>& view) {
    try {
      (void)DenseWeight<float>(view);
    } catch (const ShapeError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refused({data, 5, 5, 40, 2}).find("contiguous"), std::string::npos);
  EXPECT_NE(refused({data, 0, 5, 20, 1}).find("at least 1 x 1"), std::string::npos);
  EXPECT_NE(refused({nullptr, 5, 5}).find("null"), std::string::npos);
  EXPECT_EQ(refused({data, 5, 4, 3, 1}),
            "DenseWeight: weight: expected a stride of at least 4, the line's length, got strides 3 and 1");
  EXPECT_NE(refused({data, 5, 4, 0, 1}), "");
  EXPECT_NE(refused({data + 100, 5, 4, -4, 1}), "");
  EXPECT_NE(refused({data, 4, 5, 1, 3}), "");
  EXPECT_NE(refused({data + 100, 5, 4, 1, -5}), "");
  EXPECT_EQ(refused({data, 5, 4, 4, 1}), "");
  EXPECT_EQ(refused({data, 1, 4, 0, 1}), "");  // one line has no stride
  EXPECT_EQ(refused({data, 4, 1, 1, 0}), "");
}

TEST(DenseWeight, ConstMemoryIsNeverHandedOutForWriting) {
  const Matrix<float> w = random_matrix<float>(9, 13, 1);
  DenseWeight<float> weight(view_of(w));
  EXPECT_FALSE(weight.writable());
  EXPECT_THROW((void)weight.tile(0), StateError);
  EXPECT_EQ(std::as_const(weight).tile(0).data, w.data());
}

TEST(MatrixWeight, ATransposedTableIsAWeightWhoseColumnsAreItsRows) {
  const auto table = random_matrix<float>(11, 4, 1);  // num_embeddings x embedding_dim
  const MatrixWeight<float> weight(table, true);
  EXPECT_EQ(weight.out_features(), 4);
  EXPECT_EQ(weight.in_features(), 11);
  EXPECT_TRUE(same_bits(weight.matrix(), table));
  EXPECT_EQ(weight.view().row_stride, 1);
  EXPECT_EQ(weight.view().col_stride, 4);
  Matrix<float> row(1, 4);
  weight.read(0, 7, view_of(row).transpose());
  EXPECT_TRUE(same_bits(row, table.row(7).eval()));
  EXPECT_EQ(weight.bytes(), 44U * sizeof(float));
}

TEST(MatrixWeight, CopiesAreIndependentAndMovesKeepTheValues) {
  const auto w = random_matrix<float>(5, 7, 1);
  MatrixWeight<float> first(w);
  const MatrixWeight<float> copy = first;
  first.tile(0).data[0] += 1;
  EXPECT_TRUE(same_bits(copy.matrix(), w));
  MatrixWeight<float> moved = std::move(first);
  EXPECT_EQ(moved.tile(0).data, moved.view().data);
  EXPECT_EQ(moved.matrix()(0, 0), w(0, 0) + 1);
  EXPECT_EQ(MatrixWeight<float>().tile_count(), 0);
  EXPECT_TRUE(same_bits(MatrixWeight<float>(view_of(w)).matrix(), w));
}

}  // namespace
}  // namespace frozen_weight_test
}  // namespace lora
