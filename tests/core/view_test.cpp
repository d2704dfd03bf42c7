// SPDX-License-Identifier: MIT
#include "lora/core/view.hpp"

#include <gtest/gtest.h>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using lora::copy_elements;
using lora::Index;
using lora::Matrix;
using lora::MatrixView;
using lora::overlap;
using lora::view_of;

// Element (i, j) is 10 i + j, in either storage order.
template <class Plain>
Plain numbered(Index rows, Index cols) {
  return Plain::NullaryExpr(rows, cols, [](Index i, Index j) { return static_cast<float>(10 * i + j); });
}

// The law of a view: it has the object's shape and shares its elements.
template <class Object>
void expect_view_of(Object& object) {
  const auto view = view_of(object);
  ASSERT_EQ(view.rows, object.rows());
  ASSERT_EQ(view.cols, object.cols());
  for (Index i = 0; i < view.rows; ++i)
    for (Index j = 0; j < view.cols; ++j) EXPECT_EQ(&view(i, j), &object.coeffRef(i, j)) << i << ", " << j;
  EXPECT_EQ(view.map(), object.matrix());
}

template <class Plain>
class ViewOfStorage : public ::testing::Test {};

using StorageOrders = ::testing::Types<Matrix<float>, Eigen::MatrixXf, Eigen::Matrix<float, 6, 7, Eigen::RowMajor>,
                                       Eigen::Matrix<float, 6, 7>, Eigen::ArrayXXf>;
TYPED_TEST_SUITE(ViewOfStorage, StorageOrders);

TYPED_TEST(ViewOfStorage, Matrix) {
  auto matrix = numbered<TypeParam>(6, 7);
  expect_view_of(matrix);
}

TYPED_TEST(ViewOfStorage, Blocks) {
  auto matrix = numbered<TypeParam>(6, 7);
  auto block = matrix.block(1, 2, 3, 4);
  auto inner = block.block(1, 1, 2, 2);
  auto row = matrix.row(3);
  auto column = matrix.col(4);
  auto rows = matrix.middleRows(2, 3);
  expect_view_of(block);
  expect_view_of(inner);
  expect_view_of(row);
  expect_view_of(column);
  expect_view_of(rows);
}

TYPED_TEST(ViewOfStorage, MapsWithStrides) {
  using Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  std::vector<float> memory(6 * 40);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  Eigen::Map<TypeParam, Eigen::Unaligned, Strides> map(memory.data() + 1, 6, 7, Strides(21, 3));
  expect_view_of(map);
}

TYPED_TEST(ViewOfStorage, TransposedObject) {
  auto matrix = numbered<TypeParam>(6, 7);
  auto transposed = matrix.transpose();
  expect_view_of(transposed);
}

TEST(ViewOf, RefsShareTheMemoryTheyReferTo) {
  auto matrix = numbered<Matrix<float>>(4, 5);
  Eigen::Ref<Matrix<float>> ref(matrix);
  expect_view_of(ref);
  EXPECT_EQ(view_of(ref).data, matrix.data());
}

TEST(ViewOf, MayWriteWhatMayBeWritten) {
  auto matrix = numbered<Matrix<float>>(4, 5);
  const auto& read_only = matrix;
  const Eigen::Map<const Matrix<float>> map(matrix.data(), 4, 5);
  Eigen::Map<const Matrix<float>> named_map(matrix.data(), 4, 5);
  EXPECT_TRUE((std::is_same_v<decltype(view_of(matrix)), MatrixView<float>>));
  EXPECT_TRUE((std::is_same_v<decltype(view_of(read_only)), MatrixView<const float>>));
  EXPECT_TRUE((std::is_same_v<decltype(view_of(map)), MatrixView<const float>>));
  EXPECT_TRUE((std::is_same_v<decltype(view_of(named_map)), MatrixView<const float>>));
}

TEST(ViewOf, AnEmptyObjectIsAnEmptyView) {
  Matrix<float> empty(0, 5);
  const auto view = view_of(empty);
  EXPECT_EQ(view.rows, 0);
  EXPECT_EQ(view.cols, 5);
  EXPECT_EQ(view.map().size(), 0);
}

TEST(MatrixView, IsAnEmptyOneByDefault) {
  const MatrixView<float> view;
  EXPECT_EQ(view.rows * view.cols, 0);
  EXPECT_EQ(view.map().size(), 0);
}

TEST(MatrixView, TransposeSwapsIndicesAndIsItsOwnInverse) {
  auto matrix = numbered<Matrix<float>>(3, 4);
  const auto view = view_of(matrix);
  const auto transposed = view.transpose();
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 4; ++j) EXPECT_EQ(&transposed(j, i), &view(i, j));
  EXPECT_EQ(transposed.transpose().map(), view.map());
  EXPECT_EQ(transposed.map(), matrix.transpose());
}

TEST(MatrixView, MiddleRowsAndColsAreTheBlocksOfTheSameElements) {
  auto matrix = numbered<Matrix<float>>(5, 6);
  for (const auto& view : {view_of(matrix), view_of(matrix).transpose()}) {
    EXPECT_EQ(view.middle_rows(1, 3).map(), view.map().middleRows(1, 3));
    EXPECT_EQ(view.middle_cols(2, 3).map(), view.map().middleCols(2, 3));
    EXPECT_EQ(view.middle_rows(1, 3).middle_cols(2, 2).map(), view.map().block(1, 2, 3, 2));
    EXPECT_EQ(view.middle_rows(1, 3).transpose().map(), view.transpose().middle_cols(1, 3).map());
    EXPECT_EQ(view.middle_rows(view.rows, 0).rows, 0);
  }
}

// Defect: a raw buffer without strides was taken for rows that lie on top of each other.
TEST(MatrixView, RowsAreContiguousUnlessAStrideIsGiven) {
  float data[12] = {};
  EXPECT_EQ((MatrixView<float>{data, 3, 4}.row_stride), 4);
  EXPECT_EQ((MatrixView<float>{.data = data, .rows = 3, .cols = 4}.row_stride), 4);
  EXPECT_EQ((MatrixView<float>{.data = data, .rows = 3, .cols = 4}.col_stride), 1);
  EXPECT_EQ((MatrixView<float>{data, 3, 2, 4}.row_stride), 4);
  EXPECT_EQ((MatrixView<float>{data, 3, 2, 1, 3}.col_stride), 3);
  EXPECT_EQ(MatrixView<float>{}.row_stride, 0);
  EXPECT_EQ((&MatrixView<float>{data, 3, 4}(2, 3)), data + 11);
}

// Any two layouts, and sizes around the rectangles that copying goes by.
TEST(CopyElements, CopiesBetweenAnyStrides) {
  for (const Index rows : {0, 1, 7, 8, 9, 33}) {
    for (const Index cols : {0, 1, 15, 16, 17, 40}) {
      Matrix<float> wide(rows, 2 * cols + 1);
      for (Index i = 0; i < wide.size(); ++i) wide.data()[i] = static_cast<float>(i);
      const Matrix<float> whole = wide.leftCols(cols);
      const Eigen::MatrixXf turned = whole;
      const MatrixView<const float> sources[] = {view_of(whole), view_of(turned),
                                                 view_of(std::as_const(wide)).middle_cols(0, cols)};
      for (const auto& source : sources) {
        Matrix<float> by_rows(rows, cols);
        Eigen::MatrixXf by_columns(rows, cols);
        Matrix<float> spread = Matrix<float>::Constant(2 * rows, 3 * cols, -1);
        copy_elements(source, view_of(by_rows));
        copy_elements(source, view_of(by_columns));
        copy_elements(source, MatrixView<float>{spread.data(), rows, cols, 6 * cols, 3});
        EXPECT_EQ(by_rows, whole);
        EXPECT_EQ(by_columns, whole);
        for (Index i = 0; i < spread.rows(); ++i)
          for (Index j = 0; j < spread.cols(); ++j) {
            ASSERT_EQ(spread(i, j), i % 2 == 0 && j % 3 == 0 ? whole(i / 2, j / 3) : -1);
          }
      }
    }
  }
}

TEST(MatrixView, RowMajorMeansContiguousRows) {
  auto rows = numbered<Matrix<float>>(3, 4);
  auto columns = numbered<Eigen::MatrixXf>(3, 4);
  EXPECT_TRUE(view_of(rows).row_major());
  EXPECT_FALSE(view_of(rows).transpose().row_major());
  EXPECT_FALSE(view_of(columns).row_major());
  EXPECT_TRUE(view_of(columns).transpose().row_major());
}

TEST(MatrixView, TheMapWritesThrough) {
  auto matrix = numbered<Matrix<float>>(3, 4);
  view_of(matrix).transpose().map()(3, 1) = 99;
  EXPECT_EQ(matrix(1, 3), 99);
}

TEST(MatrixView, AMutableViewConvertsToAConstOneAndNotBack) {
  auto matrix = numbered<Matrix<float>>(3, 4);
  const MatrixView<const float> read_only = view_of(matrix).transpose();
  EXPECT_EQ(read_only.map(), matrix.transpose());
  EXPECT_TRUE((std::is_convertible_v<MatrixView<float>, MatrixView<const float>>));
  EXPECT_FALSE((std::is_convertible_v<MatrixView<const float>, MatrixView<float>>));
}

TEST(Overlap, AnArrayOverlapsItselfItsTransposeAndItsBlocks) {
  auto matrix = numbered<Matrix<float>>(4, 6);
  const auto view = view_of(matrix);
  EXPECT_TRUE(overlap(view, view));
  EXPECT_TRUE(overlap(view, view.transpose()));
  EXPECT_TRUE(overlap(view, view.middle_rows(3, 1)));
  EXPECT_TRUE(overlap(view.middle_cols(5, 1), view));
}

TEST(Overlap, SharingOneElementIsOverlap) {
  auto matrix = numbered<Matrix<float>>(4, 6);
  const auto view = view_of(matrix);
  EXPECT_TRUE(overlap(view.middle_rows(0, 2), view.middle_rows(1, 2)));
  EXPECT_TRUE(overlap(view.middle_rows(2, 1).middle_cols(0, 3), view.middle_rows(2, 1).middle_cols(2, 3)));
}

TEST(Overlap, SeparateObjectsAndAdjacentRowsDoNot) {
  auto one = numbered<Matrix<float>>(4, 6);
  auto other = numbered<Matrix<float>>(4, 6);
  const auto view = view_of(one);
  EXPECT_FALSE(overlap(view, view_of(other)));
  EXPECT_FALSE(overlap(view.middle_rows(0, 2), view.middle_rows(2, 2)));
  EXPECT_FALSE(overlap(view.middle_rows(2, 2), view.middle_rows(0, 2)));
  EXPECT_FALSE(overlap(view.middle_rows(1, 1).middle_cols(0, 3), view.middle_rows(1, 1).middle_cols(3, 3)));
}

TEST(Overlap, ColumnsOfAColumnMajorMatrixDoNot) {
  auto matrix = numbered<Eigen::MatrixXf>(4, 6);
  const auto view = view_of(matrix);
  EXPECT_FALSE(overlap(view.middle_cols(0, 3), view.middle_cols(3, 3)));
  EXPECT_TRUE(overlap(view.middle_cols(0, 4), view.middle_cols(3, 3)));
}

// Defect: infer(buffer.leftCols(4), buffer.rightCols(4)) was refused.
TEST(Overlap, HalvesOfOneBufferDoNot) {
  Matrix<float> buffer(5, 8);
  const auto view = view_of(buffer);
  EXPECT_FALSE(overlap(view.middle_cols(0, 4), view.middle_cols(4, 4)));
  EXPECT_FALSE(overlap(view.middle_cols(4, 4), view.middle_cols(0, 4)));
  EXPECT_FALSE(overlap(view.middle_cols(0, 3), view.middle_cols(5, 3)));
  EXPECT_FALSE(overlap(view.middle_rows(1, 3).middle_cols(5, 3), view.middle_cols(0, 5)));
  EXPECT_FALSE(overlap(view.transpose().middle_rows(0, 4), view.transpose().middle_rows(4, 4)));
  EXPECT_TRUE(overlap(view.middle_cols(0, 5), view.middle_cols(4, 4)));
  EXPECT_TRUE(overlap(view.middle_cols(4, 4), view.middle_cols(0, 5)));
  EXPECT_TRUE(overlap(view.middle_rows(2, 2).middle_cols(4, 4), view.middle_cols(0, 5)));
}

// Compares with the set of addresses: exact for lines of one stride, and never "no" where an element is shared.
TEST(Overlap, IsNeverDeniedAndExactForBlocksOfOneArray) {
  float memory[64] = {};
  const auto shares = [](const MatrixView<float>& a, const MatrixView<float>& b) {
    for (Index i = 0; i < a.rows; ++i)
      for (Index j = 0; j < a.cols; ++j)
        for (Index p = 0; p < b.rows; ++p)
          for (Index q = 0; q < b.cols; ++q)
            if (&a(i, j) == &b(p, q)) return true;
    return false;
  };
  for (Index stride = 1; stride <= 5; ++stride) {
    for (Index a_first = 0; a_first < 8; ++a_first) {
      for (Index b_first = 0; b_first < 8; ++b_first) {
        for (Index a_cols = 1; a_cols <= 4; ++a_cols) {
          for (Index b_cols = 1; b_cols <= 4; ++b_cols) {
            for (const Index rows : {1, 2, 4}) {
              const MatrixView<float> a{memory + a_first, rows, a_cols, stride, 1};
              const MatrixView<float> b{memory + b_first, 3, b_cols, stride, 1};
              const MatrixView<float> strided{memory + b_first, 2, b_cols, stride, 2};
              ASSERT_TRUE(overlap(a, b) || !shares(a, b));
              ASSERT_TRUE(overlap(a, strided) || !shares(a, strided));
              ASSERT_TRUE(overlap(a.transpose(), b.transpose()) || !shares(a, b));
              // Blocks of an array of `stride` columns, whose ranges meet.
              const bool blocks = a_first % stride + a_cols <= stride && b_first % stride + b_cols <= stride;
              const bool inside = rows >= 4 && a_first / stride == 0 && b_first / stride == 0;
              if (blocks && inside) {
                ASSERT_EQ(overlap(a, b), shares(a, b)) << stride << " " << a_first << " " << b_first;
              }
            }
          }
        }
      }
    }
  }
}

// Every other column: "may share" is the answer that is always safe.
TEST(Overlap, InterleavedElementsMayShareMemory) {
  std::vector<float> memory(24);
  const MatrixView<float> even{memory.data(), 3, 4, 8, 2};
  const MatrixView<float> odd{memory.data() + 1, 3, 4, 8, 2};
  EXPECT_TRUE(overlap(even, odd));
}

TEST(Overlap, NegativeStridesSpanWhatLiesBelow) {
  std::vector<float> memory(24);
  const MatrixView<float> upwards{memory.data() + 20, 3, 4, -8, 1};
  EXPECT_TRUE(overlap(upwards, MatrixView<float>{memory.data() + 4, 1, 4}));
  EXPECT_FALSE(overlap(upwards, MatrixView<float>{memory.data(), 1, 4}));
}

// The stride of the last row spans memory that is no part of the view.
TEST(Overlap, TheGapAfterTheLastElementIsNotPartOfAView) {
  std::vector<float> memory(24);
  const MatrixView<float> strided{memory.data(), 2, 3, 8, 1};
  const MatrixView<float> behind{memory.data() + 11, 1, 5, 5, 1};
  EXPECT_FALSE(overlap(strided, behind));
  EXPECT_TRUE(overlap(strided, MatrixView<float>{memory.data() + 10, 1, 5, 5, 1}));
}

TEST(Overlap, EmptyViewsOverlapNothing) {
  auto matrix = numbered<Matrix<float>>(4, 6);
  const auto view = view_of(matrix);
  EXPECT_FALSE(overlap(view, view.middle_rows(1, 0)));
  EXPECT_FALSE(overlap(view.middle_cols(1, 0), view));
  EXPECT_FALSE(overlap(MatrixView<float>{}, MatrixView<float>{}));
}

TEST(Overlap, ComparesAddressesWhateverTheScalarsAre) {
  std::vector<double> memory(8);
  const MatrixView<const double> wide{memory.data(), 1, 4, 4, 1};
  const MatrixView<float> narrow{reinterpret_cast<float*>(memory.data() + 3), 1, 2, 2, 1};
  EXPECT_TRUE(overlap(wide, narrow));
  EXPECT_FALSE(overlap(wide, MatrixView<float>{reinterpret_cast<float*>(memory.data() + 4), 1, 2, 2, 1}));
}

// The undefined-behaviour sanitizer finds an address that moves from nowhere.
TEST(MatrixView, APartOfNothingHasNoAddress) {
  const MatrixView<float> nothing{nullptr, 0, 12, 12, 1};
  const auto columns = nothing.middle_cols(4, 8);
  EXPECT_EQ(columns.data, nullptr);
  EXPECT_EQ(columns.rows, 0);
  EXPECT_EQ(columns.cols, 8);
  EXPECT_EQ((MatrixView<float>{nullptr, 12, 0, 4, 1}.middle_rows(4, 8).data), nullptr);
}

}  // namespace
