#include "lora/weight/dense.hpp"

#include <gtest/gtest.h>
#include <type_traits>

#include "support/bits.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

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

TEST(DenseWeight, BlocksOfEitherStorageOrderMultiplyAsTheirCopies) {
  const Matrix<double> rows = random_matrix<double>(20, 30, 1);
  const Eigen::MatrixXd columns = rows;
  const auto x = random_matrix<double>(7, 11, 2);
  const Matrix<double> w = rows.block(3, 5, 9, 11);
  Workspace workspace;
  Matrix<double> expected(7, 9), from_rows(7, 9), from_columns(7, 9);
  DenseWeight<double>(view_of(w)).product(view_of(x), nullptr, {}, view_of(expected), workspace);
  DenseWeight<double>(view_of(rows.block(3, 5, 9, 11))).product(view_of(x), nullptr, {}, view_of(from_rows), workspace);
  DenseWeight<double>(view_of(columns.block(3, 5, 9, 11)))
      .product(view_of(x), nullptr, {}, view_of(from_columns), workspace);
  EXPECT_TRUE(same_bits(from_rows, expected));
  EXPECT_TRUE(same_bits(from_columns, expected));
  const Matrix<testing::Wide> exact = x.cast<testing::Wide>() * w.cast<testing::Wide>().transpose();
  const Matrix<testing::Wide> size =
      x.cwiseAbs().cast<testing::Wide>() * w.cwiseAbs().cast<testing::Wide>().transpose();
  EXPECT_TRUE(testing::within_rounding(expected, exact, size, 11 + 2));
}

TEST(DenseWeight, RefusesMemoryWithoutContiguousLines) {
  Matrix<float> memory = Matrix<float>::Zero(20, 20);
  const MatrixView<float> every_other{memory.data(), 5, 5, 40, 2};
  EXPECT_THROW(DenseWeight<float>{every_other}, ShapeError);
  EXPECT_THROW((DenseWeight<float>{MatrixView<float>{memory.data(), 0, 5, 20, 1}}), ShapeError);
}

TEST(DenseWeight, ConstMemoryIsNeverHandedOutForWriting) {
  const Matrix<float> w = random_matrix<float>(9, 13, 1);
  DenseWeight<float> weight(view_of(w));
  EXPECT_THROW((void)weight.tile(0), StateError);
  EXPECT_EQ(std::as_const(weight).tile(0).data, w.data());
}

}  // namespace
}  // namespace lora
