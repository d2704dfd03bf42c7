// SPDX-License-Identifier: MIT
#include "lora/layers/tensor.hpp"

#include <gtest/gtest.h>
#include <numeric>
#include <type_traits>
#include <unsupported/Eigen/CXX11/Tensor>

namespace {

using lora::Index;
using lora::Matrix;
using lora::MatrixView;
using lora::output_rows;
using lora::RowsOf;
using lora::with_rows;

template <int rank, class Scalar = float, class IndexType = Index>
using Tensor = Eigen::Tensor<Scalar, rank, Eigen::RowMajor, IndexType>;

// Extents 3, 4, 5, ... of which the last is features.
template <int rank>
Eigen::array<Index, rank> extents(Index first = 3) {
  Eigen::array<Index, rank> result;
  std::iota(result.begin(), result.end(), first);
  return result;
}

template <int rank>
Tensor<rank> numbered() {
  Tensor<rank> tensor(extents<rank>());
  std::iota(tensor.data(), tensor.data() + tensor.size(), 0.0F);
  return tensor;
}

// The law: a tensor is read and written in place, as (product of its leading extents) rows of its last.
template <class Input>
void expect_rows_in_place(const Input& input, Index rows, Index features) {
  int calls = 0;
  with_rows<float>(input, [&](const MatrixView<const float>& view) {
    ++calls;
    EXPECT_EQ(view.data, input.data());
    EXPECT_EQ(view.rows, rows);
    EXPECT_EQ(view.cols, features);
    EXPECT_TRUE(view.row_major());
    for (Index i = 0; i < view.rows; ++i)
      for (Index j = 0; j < view.cols; ++j) EXPECT_EQ(view(i, j), input.data()[i * features + j]);
  });
  EXPECT_EQ(calls, 1);
}

template <class RankConstant>
class TensorOfRank : public ::testing::Test {
 protected:
  static constexpr int order = RankConstant::value;
  static constexpr Index features = 3 + order - 1;
  static constexpr Index rows = order == 1 ? 1 : order == 2 ? 3 : order == 3 ? 12 : 60;
};

template <int rank>
using Rank = std::integral_constant<int, rank>;
using Ranks = ::testing::Types<Rank<1>, Rank<2>, Rank<3>, Rank<4>>;
TYPED_TEST_SUITE(TensorOfRank, Ranks);

TYPED_TEST(TensorOfRank, IsReadInPlace) {
  expect_rows_in_place(numbered<TestFixture::order>(), TestFixture::rows, TestFixture::features);
}

TYPED_TEST(TensorOfRank, MapIsReadInPlace) {
  auto tensor = numbered<TestFixture::order>();
  const Eigen::TensorMap<Tensor<TestFixture::order>> map(tensor.data(), tensor.dimensions());
  expect_rows_in_place(map, TestFixture::rows, TestFixture::features);
  EXPECT_EQ(map.data(), tensor.data());
}

TYPED_TEST(TensorOfRank, MapOfConstantTensorOrScalarsIsReadInPlace) {
  const auto tensor = numbered<TestFixture::order>();
  const Eigen::TensorMap<const Tensor<TestFixture::order>> map(tensor.data(), tensor.dimensions());
  const Eigen::TensorMap<Tensor<TestFixture::order, const float>> map_of_constants(tensor.data(), tensor.dimensions());
  expect_rows_in_place(map, TestFixture::rows, TestFixture::features);
  expect_rows_in_place(map_of_constants, TestFixture::rows, TestFixture::features);
}

TYPED_TEST(TensorOfRank, AnswerHasTheLeadingExtentsAndTheNewFeatures) {
  constexpr int rank = TestFixture::order;
  const auto tensor = numbered<rank>();
  auto answer = RowsOf<Tensor<rank>>::make_output(tensor, 11);
  auto expected = extents<rank>();
  expected[rank - 1] = 11;
  for (std::size_t i = 0; i < rank; ++i) EXPECT_EQ(answer.dimension(i), expected[i]);
  const auto view = output_rows<float>({"test", "call"}, "y", answer, TestFixture::rows, 11);
  EXPECT_EQ(view.data, answer.data());
}

TYPED_TEST(TensorOfRank, AnswerIsATensorThatOwnsItsMemory) {
  constexpr int rank = TestFixture::order;
  using Answer = Tensor<rank>;
  EXPECT_TRUE((std::is_same_v<typename RowsOf<Tensor<rank>>::Output, Answer>));
  EXPECT_TRUE((std::is_same_v<typename RowsOf<Eigen::TensorMap<Tensor<rank>>>::Output, Answer>));
  EXPECT_TRUE((std::is_same_v<typename RowsOf<Eigen::TensorMap<const Tensor<rank>>>::Output, Answer>));
  EXPECT_TRUE((std::is_same_v<typename RowsOf<Eigen::TensorMap<Tensor<rank, const float>>>::Output, Answer>));
  EXPECT_TRUE((std::is_same_v<typename RowsOf<Tensor<rank, float, int>>::Output, Answer>));
}

TYPED_TEST(TensorOfRank, IsWrittenInPlace) {
  constexpr int rank = TestFixture::order;
  Tensor<rank> tensor(extents<rank>());
  Eigen::TensorMap<Tensor<rank>> map(tensor.data(), tensor.dimensions());
  output_rows<float>({"test", "call"}, "y", tensor, TestFixture::rows, TestFixture::features).map().setConstant(1);
  output_rows<float>({"test", "call"}, "y", map, TestFixture::rows, TestFixture::features).map().row(0).setConstant(2);
  for (Index i = 0; i < tensor.size(); ++i) EXPECT_EQ(tensor.data()[i], i < TestFixture::features ? 2 : 1);
}

TYPED_TEST(TensorOfRank, OutputOfTheWrongShapeIsRefused) {
  Tensor<TestFixture::order> tensor(extents<TestFixture::order>());
  EXPECT_THROW((void)output_rows<float>({"test", "call"}, "y", tensor, TestFixture::rows, TestFixture::features + 1),
               lora::ShapeError);
  EXPECT_THROW((void)output_rows<float>({"test", "call"}, "y", tensor, TestFixture::rows + 1, TestFixture::features),
               lora::ShapeError);
}

TYPED_TEST(TensorOfRank, AnEmptyDimensionLeavesNoRows) {
  constexpr int rank = TestFixture::order;
  if (rank == 1) GTEST_SKIP() << "a tensor of rank 1 is one sample";
  for (std::size_t empty = 0; empty + 1 < rank; ++empty) {
    auto shape = extents<rank>();
    shape[empty] = 0;
    const Tensor<rank> tensor(shape);
    with_rows<float>(tensor, [&](const MatrixView<const float>& view) {
      EXPECT_EQ(view.rows, 0);
      EXPECT_EQ(view.cols, TestFixture::features);
    });
    EXPECT_EQ(RowsOf<Tensor<rank>>::make_output(tensor, 7).dimension(empty), 0);
  }
}

TEST(Tensor, OfAnotherIndexTypeIsReadInPlace) {
  Eigen::Tensor<float, 3, Eigen::RowMajor, int> tensor(2, 3, 4);
  std::iota(tensor.data(), tensor.data() + 24, 0.0F);
  expect_rows_in_place(tensor, 6, 4);
  EXPECT_EQ((RowsOf<decltype(tensor)>::make_output(tensor, 5).dimension(1)), 3);
}

TEST(Tensor, AlignedMapsAreMapsToo) {
  Tensor<2> tensor = numbered<2>();
  const Eigen::TensorMap<Tensor<2>, Eigen::Aligned> map(tensor.data(), 3, 4);
  expect_rows_in_place(map, 3, 4);
}

TEST(Tensor, RowsFollowTheIndicesFromTheFirstOn) {
  const auto tensor = numbered<3>();
  with_rows<float>(tensor, [&](const MatrixView<const float>& view) {
    for (Index b = 0; b < 3; ++b)
      for (Index t = 0; t < 4; ++t)
        for (Index j = 0; j < 5; ++j) EXPECT_EQ(view(4 * b + t, j), tensor(b, t, j));
  });
}

TEST(Tensor, OfDoublesIsAnInputOfADoubleLayer) {
  Tensor<2, double> tensor(2, 3);
  tensor.setConstant(0.1);
  with_rows<double>(tensor, [&](const MatrixView<const double>& view) { EXPECT_EQ(view(1, 2), 0.1); });
}

}  // namespace
