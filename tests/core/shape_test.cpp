// SPDX-License-Identifier: MIT
#include "lora/core/shape.hpp"

#include <gtest/gtest.h>
#include <string>

#include "lora/core/view.hpp"

namespace {

using lora::check_shape;
using lora::Matrix;
using lora::shape_text;

TEST(ShapeText, PrintsExtentsAndTheFreeOne) {
  EXPECT_EQ(shape_text(4, 12), "4 x 12");
  EXPECT_EQ(shape_text(0, 0), "0 x 0");
  EXPECT_EQ(shape_text(-1, 12), "N x 12");
  EXPECT_EQ(shape_text(4, -1), "4 x N");
}

TEST(CheckShape, AcceptsTheExactShape) {
  EXPECT_NO_THROW(check_shape("operation", "x", Matrix<float>(3, 4), 3, 4));
  EXPECT_NO_THROW(check_shape("operation", "x", Matrix<float>(0, 4), 0, 4));
}

TEST(CheckShape, ANegativeExtentAcceptsAny) {
  for (const lora::Index rows : {0, 1, 7}) {
    EXPECT_NO_THROW(check_shape("operation", "x", Matrix<float>(rows, 4), -1, 4));
    EXPECT_NO_THROW(check_shape("operation", "x", Matrix<float>(4, rows), 4, -1));
  }
}

TEST(CheckShape, RefusesEachWrongExtent) {
  EXPECT_THROW(check_shape("operation", "x", Matrix<float>(3, 4), 2, 4), lora::ShapeError);
  EXPECT_THROW(check_shape("operation", "x", Matrix<float>(3, 4), 3, 5), lora::ShapeError);
  EXPECT_THROW(check_shape("operation", "x", Matrix<float>(3, 4), 4, 3), lora::ShapeError);
  EXPECT_THROW(check_shape("operation", "x", Matrix<float>(3, 4), -1, 0), lora::ShapeError);
  EXPECT_THROW(check_shape("operation", "x", Matrix<float>(3, 4), 0, -1), lora::ShapeError);
}

TEST(CheckShape, ReadsEigenObjectsExpressionsAndViewsAlike) {
  Matrix<double> matrix(3, 4);
  matrix.setZero();
  EXPECT_NO_THROW(check_shape("operation", "x", matrix.transpose(), 4, 3));
  EXPECT_NO_THROW(check_shape("operation", "x", matrix + matrix, 3, 4));
  EXPECT_NO_THROW(check_shape("operation", "x", lora::view_of(matrix), 3, 4));
  EXPECT_THROW(check_shape("operation", "x", lora::view_of(matrix).transpose(), 3, 4), lora::ShapeError);
}

TEST(CheckShape, MessageNamesOperationArgumentExpectedAndGot) {
  try {
    check_shape("LoraLinear::forward", "x", Matrix<float>(2, 5), -1, 4);
    FAIL() << "accepted";
  } catch (const lora::ShapeError& error) {
    EXPECT_STREQ(error.what(), "LoraLinear::forward: x: expected N x 4, got 2 x 5");
  }
}

}  // namespace
