// SPDX-License-Identifier: MIT
#include "lora/layers/rows.hpp"

#include <array>
#include <gtest/gtest.h>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using lora::Index;
using lora::Matrix;
using lora::MatrixView;
using lora::output_rows;
using lora::RowsOf;
using lora::RowVector;
using lora::with_rows;

template <class Plain = Matrix<float>>
Plain numbered(Index rows, Index cols) {
  return Plain::NullaryExpr(rows, cols, [](Index i, Index j) { return static_cast<float>(10 * i + j); });
}

// What a layer reads: copied out of the view, and where it stands.
struct Read {
  Matrix<float> values;
  const float* data = nullptr;
};

template <class Input>
Read read(const Input& input) {
  Read result;
  int calls = 0;
  with_rows<float>(input, [&](const MatrixView<const float>& rows) {
    result = {rows.map(), rows.data};
    ++calls;
  });
  EXPECT_EQ(calls, 1);
  return result;
}

// The law for what has storage: read in place, without a copy.
template <class Input>
void expect_read_in_place(const Input& input, const Matrix<float>& values) {
  const Read result = read(input);
  EXPECT_EQ(result.values, values);
  EXPECT_EQ(result.data, input.data());
}

TEST(WithRows, MatricesOfBothOrdersAreReadInPlace) {
  expect_read_in_place(numbered<Matrix<float>>(3, 4), numbered(3, 4));
  expect_read_in_place(numbered<Eigen::MatrixXf>(3, 4), numbered(3, 4));
  expect_read_in_place(numbered<Eigen::Matrix<float, 3, 4>>(3, 4), numbered(3, 4));
  expect_read_in_place(numbered<Eigen::ArrayXXf>(3, 4), numbered(3, 4));
}

TEST(WithRows, BlocksTransposesAndRefsAreReadInPlace) {
  const auto rows = numbered(5, 6);
  const auto columns = numbered<Eigen::MatrixXf>(5, 6);
  const Eigen::Ref<const Matrix<float>> ref(rows);
  expect_read_in_place(rows.block(1, 2, 3, 4), rows.block(1, 2, 3, 4));
  expect_read_in_place(columns.block(1, 2, 3, 4), rows.block(1, 2, 3, 4));
  expect_read_in_place(rows.transpose(), rows.transpose());
  expect_read_in_place(columns.transpose(), rows.transpose());
  expect_read_in_place(rows.middleRows(2, 2), rows.middleRows(2, 2));
  expect_read_in_place(ref, rows);
}

TEST(WithRows, MapsAreReadInPlaceWhateverTheirStrides) {
  std::vector<float> memory(60);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  using Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::Map<const Matrix<float>> plain(memory.data(), 3, 4);
  const Eigen::Map<Matrix<float>, Eigen::Unaligned, Strides> strided(memory.data() + 1, 3, 4, Strides(17, 3));
  expect_read_in_place(plain, plain);
  expect_read_in_place(strided, strided);
}

TEST(WithRows, AVectorIsOneSampleWhicheverWayItStands) {
  const Eigen::VectorXf column = Eigen::VectorXf::LinSpaced(5, 1, 5);
  const RowVector<float> row = column.transpose();
  const Eigen::Vector3f fixed(7, 8, 9);
  expect_read_in_place(column, row);
  expect_read_in_place(row, row);
  expect_read_in_place(fixed, fixed.transpose());
}

TEST(WithRows, ARowOrColumnOfAMatrixIsOneSample) {
  const auto rows = numbered(5, 6);
  const auto columns = numbered<Eigen::MatrixXf>(5, 6);
  expect_read_in_place(rows.row(2), rows.row(2));
  expect_read_in_place(rows.col(2), rows.col(2).transpose());
  expect_read_in_place(columns.row(2), rows.row(2));
  expect_read_in_place(columns.col(2), rows.col(2).transpose());
}

TEST(EigenDense, IsEveryEigenObjectWithRowsAndColumns) {
  Matrix<float> matrix(5, 6);
  EXPECT_TRUE(lora::EigenDense<Matrix<float>>);
  EXPECT_TRUE(lora::EigenDense<decltype(matrix.row(2))>);
  EXPECT_TRUE(lora::EigenDense<decltype(matrix.topRows(2))>);
  EXPECT_TRUE(lora::EigenDense<Eigen::Ref<const Matrix<float>>>);
  EXPECT_TRUE(lora::EigenDense<Eigen::Map<const Matrix<float>>>);
  EXPECT_TRUE(lora::EigenDense<Eigen::ArrayXXf>);
  EXPECT_FALSE(lora::EigenDense<std::vector<float>>);
  EXPECT_FALSE(lora::EigenDense<const float*>);
}

// Eigen's VectorBlock derives from Block, and is a DenseBase of that only.
TEST(EigenDense, APartOfAVectorIsOneToo) {
  Eigen::VectorXf vector(6);
  Matrix<float> matrix(5, 6);
  EXPECT_TRUE(lora::EigenDense<decltype(vector.head(2))>);
  EXPECT_TRUE(lora::EigenDense<decltype(vector.segment<3>(1))>);
  EXPECT_TRUE(lora::EigenDense<decltype(matrix.row(1).tail(2))>);
}

TEST(WithRows, ABlockOfOneColumnThatIsOneOnlyAtRunTimeIsAMatrix) {
  const auto rows = numbered(5, 6);
  expect_read_in_place(rows.middleCols(2, 1), rows.middleCols(2, 1));
  EXPECT_EQ(read(rows.middleCols(2, 1)).values.rows(), 5);
}

TEST(WithRows, ExpressionsAreEvaluatedOnce) {
  int evaluations = 0;
  const auto expression = Matrix<float>::NullaryExpr(3, 4, [&evaluations](Index i, Index j) {
    ++evaluations;
    return static_cast<float>(10 * i + j);
  });
  EXPECT_EQ(read(expression).values, numbered(3, 4));
  EXPECT_EQ(evaluations, 12);
  const auto matrix = numbered(3, 3);
  EXPECT_EQ(read(matrix * matrix).values, matrix * matrix);
  EXPECT_EQ(read((2 * matrix.col(1)).eval()).values, 2 * matrix.col(1).transpose());
  EXPECT_EQ(read(2 * matrix.col(1)).values, 2 * matrix.col(1).transpose());
}

TEST(WithRows, AViewIsReadInPlaceWhateverItsStrides) {
  Matrix<float> matrix = numbered(5, 6);
  const MatrixView<float> all = lora::view_of(matrix);
  const MatrixView<const float> part = all.middle_rows(1, 3).middle_cols(2, 4);
  EXPECT_EQ(read(all).values, matrix);
  EXPECT_EQ(read(all).data, matrix.data());
  EXPECT_EQ(read(part).values, matrix.block(1, 2, 3, 4));
  EXPECT_EQ(read(part).data, &matrix(1, 2));
  EXPECT_EQ(read(all.transpose()).values, matrix.transpose());
}

TEST(WithRows, AnEmptyBatchHasNoRows) {
  const Matrix<float> empty(0, 4);
  const Read result = read(empty);
  EXPECT_EQ(result.values.rows(), 0);
  EXPECT_EQ(result.values.cols(), 4);
}

TEST(MakeOutput, AnswersVectorsWithVectorsAndMatricesWithRowMajorMatrices) {
  const Eigen::MatrixXf matrix(3, 4);
  const Eigen::VectorXf column(4);
  const RowVector<float> row(4);
  EXPECT_TRUE((std::is_same_v<RowsOf<Eigen::MatrixXf>::Output, Matrix<float>>));
  EXPECT_TRUE((std::is_same_v<RowsOf<Eigen::VectorXf>::Output, Eigen::VectorXf>));
  EXPECT_TRUE((std::is_same_v<RowsOf<RowVector<float>>::Output, RowVector<float>>));
  EXPECT_TRUE((std::is_same_v<RowsOf<Eigen::Matrix<double, 3, 4>>::Output, Matrix<double>>));
  const auto answer = RowsOf<Eigen::MatrixXf>::make_output(matrix, 7);
  EXPECT_EQ(answer.rows(), 3);
  EXPECT_EQ(answer.cols(), 7);
  EXPECT_EQ(RowsOf<Eigen::VectorXf>::make_output(column, 7).size(), 7);
  EXPECT_EQ(RowsOf<RowVector<float>>::make_output(row, 7).size(), 7);
  EXPECT_EQ(RowsOf<Eigen::MatrixXf>::make_output(Eigen::MatrixXf(0, 4), 7).rows(), 0);
}

TEST(MakeOutput, AnswersMapsAndExpressionsWithMatricesOfTheirOwn) {
  using Product = std::remove_const_t<decltype(std::declval<Matrix<float>&>() * std::declval<Matrix<float>&>())>;
  EXPECT_TRUE((std::is_same_v<RowsOf<Eigen::Map<const Matrix<float>>>::Output, Matrix<float>>));
  EXPECT_TRUE((std::is_same_v<RowsOf<Eigen::Block<const Matrix<float>>>::Output, Matrix<float>>));
  EXPECT_TRUE((std::is_same_v<RowsOf<Product>::Output, Matrix<float>>));
}

TEST(MakeOutput, AnswersViewsWithMatrices) {
  Matrix<float> matrix(3, 4);
  EXPECT_TRUE((std::is_same_v<RowsOf<MatrixView<float>>::Output, Matrix<float>>));
  EXPECT_TRUE((std::is_same_v<RowsOf<MatrixView<const double>>::Output, Matrix<double>>));
  const auto answer = RowsOf<MatrixView<float>>::make_output(lora::view_of(matrix), 7);
  EXPECT_EQ(answer.rows(), 3);
  EXPECT_EQ(answer.cols(), 7);
}

// The law of an output: writing through the rows writes the object, sample by sample.
template <class Output>
void expect_written_in_place(Output&& output, Index rows, Index features) {
  const auto view = output_rows<float>({"test", "test"}, "y", output, rows, features);
  ASSERT_EQ(view.rows, rows);
  ASSERT_EQ(view.cols, features);
  EXPECT_TRUE(view.row_major() || features <= 1);
  EXPECT_EQ(view.data, output.data());
  view.map() = numbered(rows, features);
  EXPECT_EQ(read(output).values, numbered(rows, features));
}

TEST(OutputRows, AreTheObjectsOwnMemory) {
  Matrix<float> matrix(3, 4);
  Eigen::VectorXf column(4);
  RowVector<float> row(4);
  Matrix<float> frame(6, 8);
  std::vector<float> memory(12);
  Eigen::Map<Matrix<float>> map(memory.data(), 3, 4);
  Eigen::Ref<Matrix<float>> ref(matrix);
  expect_written_in_place(matrix, 3, 4);
  expect_written_in_place(column, 1, 4);
  expect_written_in_place(row, 1, 4);
  expect_written_in_place(map, 3, 4);
  expect_written_in_place(ref, 3, 4);
  expect_written_in_place(frame.block(1, 2, 3, 4), 3, 4);
  expect_written_in_place(frame.row(2), 1, 8);
}

TEST(OutputRows, OfAViewAreTheMemoryItPointsTo) {
  std::vector<float> memory(15);
  const MatrixView<float> view{memory.data(), 3, 4, /*row_stride=*/5};
  const auto rows = output_rows<float>({"test", "test"}, "y", view, 3, 4);
  EXPECT_EQ(rows.data, memory.data());
  rows.map() = numbered(3, 4);
  EXPECT_EQ(memory[6], 11.0F);
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", view, 3, 5), lora::ShapeError);
  const MatrixView<float> turned = view.transpose();
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", turned, 4, 3), lora::ShapeError);
}

TEST(OutputRows, RefuseTheWrongShape) {
  Matrix<float> matrix(3, 4);
  Eigen::VectorXf column(4);
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", matrix, 3, 5), lora::ShapeError);
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", matrix, 2, 4), lora::ShapeError);
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", column, 4, 1), lora::ShapeError);
  try {
    (void)output_rows<float>({"LoraLinear", "infer"}, "y", matrix, 3, 5);
    FAIL() << "accepted";
  } catch (const lora::ShapeError& error) {
    EXPECT_STREQ(error.what(), "LoraLinear::infer: y: expected 3 x 5, got 3 x 4");
  }
}

TEST(OutputRows, RefuseRowsThatAreNotContiguous) {
  Matrix<float> matrix(6, 8);
  auto column = matrix.col(2);
  std::array<float, 24> memory{};
  Eigen::Map<Matrix<float>, Eigen::Unaligned, Eigen::InnerStride<2>> spread(memory.data(), 3, 4);
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", column, 1, 6), lora::ShapeError);
  EXPECT_THROW((void)output_rows<float>({"test", "test"}, "y", spread, 3, 4), lora::ShapeError);
}

// The stride of one element does not matter.
TEST(OutputRows, OneFeatureHasContiguousRowsWhateverItsStride) {
  Matrix<float> matrix(1, 8);
  auto column = matrix.col(2);
  EXPECT_NO_THROW((void)output_rows<float>({"test", "test"}, "y", column, 1, 1));
}

TEST(OutputRows, TheMessageOfAStrideNamesOperationAndArgument) {
  Matrix<float> matrix(6, 8);
  auto column = matrix.col(2);
  try {
    (void)output_rows<float>({"LoraLinear", "infer"}, "dx", column, 1, 6);
    FAIL() << "accepted";
  } catch (const lora::ShapeError& error) {
    EXPECT_STREQ(error.what(), "LoraLinear::infer: dx: expected contiguous rows, got an inner stride of 8");
  }
}

}  // namespace
