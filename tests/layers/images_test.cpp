// SPDX-License-Identifier: MIT
// Matrices and tensors read as images.
#include "lora/layers/images.hpp"

#include <gtest/gtest.h>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

#include "lora/layers/tensor.hpp"

namespace lora {
namespace {

using Tensor = Eigen::Tensor<float, 4, Eigen::RowMajor>;

static_assert(TensorLike<Tensor>);
static_assert(TensorLike<Eigen::TensorMap<Tensor>>);
static_assert(TensorLike<Eigen::TensorMap<const Tensor>>);
static_assert(!TensorLike<Matrix<float>>);
static_assert(!TensorLike<std::array<Index, 2>>);

TEST(Images, OfATensorAreASampleARow) {
  Tensor tensor(2, 3, 4, 5);
  tensor.setZero();
  tensor(1, 2, 3, 4) = 7;
  EXPECT_EQ(extents_of<2>(tensor), (ImageExtents<2>{4, 5}));
  with_images<float, 2>(tensor, [&](const MatrixView<const float>& rows) {
    EXPECT_EQ(rows.data, tensor.data());
    EXPECT_EQ(rows.rows, 2);
    EXPECT_EQ(rows.cols, 60);
    EXPECT_EQ(rows(1, 59), 7);
  });
}

TEST(Images, OfAMatrixAreItsRowsInAnyStorageOrder) {
  const Eigen::MatrixXf matrix = Eigen::MatrixXf::Random(2, 60);
  with_images<float, 2>(matrix, [&](const MatrixView<const float>& rows) {
    EXPECT_EQ(rows.data, matrix.data());
    EXPECT_EQ(rows(1, 59), matrix(1, 59));
  });
}

TEST(Images, AnAnswerIsOfTheKindOfItsQuestion) {
  const Tensor tensor(2, 3, 4, 5);
  const auto answer = make_images<2>(tensor, 2, 7, {8, 9});
  static_assert(std::is_same_v<decltype(answer), const Tensor>);
  EXPECT_EQ(answer.dimension(1), 7);
  EXPECT_EQ(answer.dimension(3), 9);
  const auto rows = make_images<2>(Matrix<float>(2, 60), 2, 7, {8, 9});
  EXPECT_EQ(rows.cols(), 7 * 72);
  const auto one = make_images<2>(RowVector<float>(60), 1, 7, {8, 9});
  static_assert(std::is_same_v<decltype(one), const RowVector<float>>);
}

TEST(Images, OutputsOfWrongShapeAreRefused) {
  Tensor tensor(2, 3, 4, 5);
  EXPECT_EQ((output_images<float, 2>({"test", "call"}, "y", tensor, 2, 3, {4, 5}).cols), 60);
  EXPECT_THROW(static_cast<void>(output_images<float, 2>({"test", "call"}, "y", tensor, 2, 3, {5, 4})), ShapeError);
  Matrix<float> matrix(2, 60);
  EXPECT_EQ((output_images<float, 2>({"test", "call"}, "y", matrix, 2, 3, {5, 4}).cols), 60);
  EXPECT_THROW(static_cast<void>(output_images<float, 2>({"test", "call"}, "y", matrix, 2, 3, {5, 5})), ShapeError);
  EXPECT_NO_THROW(check_images<2>({"test", "call"}, "x", tensor, -1, 3, {4, 5}));
  EXPECT_THROW(check_images<2>({"test", "call"}, "x", tensor, 3, 3, {4, 5}), ShapeError);
  EXPECT_EQ(extents_text(ImageExtents<3>{1, 2, 3}), "1 x 2 x 3");
}

}  // namespace
}  // namespace lora
