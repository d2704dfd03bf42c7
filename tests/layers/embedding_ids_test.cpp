// SPDX-License-Identifier: MIT
// What is accepted as ids, in which order it is read, and which ids are refused.
#include "lora/layers/embedding_ids.hpp"

#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lora {
namespace {

template <class Ids>
std::vector<Index> read(const Ids& ids) {
  std::vector<Index> result;
  with_ids(ids, [&](const auto& view) {
    for (Index i = 0; i < view.size(); ++i) result.push_back(view[i]);
  });
  return result;
}

const std::vector<Index> expected = {3, 1, 4, 1, 5, 9};

TEST(EmbeddingIds, RangesOfAnyIntegerReadInOrder) {
  EXPECT_EQ(read(std::vector<std::int32_t>{3, 1, 4, 1, 5, 9}), expected);
  EXPECT_EQ(read(std::vector<std::uint64_t>{3, 1, 4, 1, 5, 9}), expected);
  EXPECT_EQ(read(std::array<std::int8_t, 6>{3, 1, 4, 1, 5, 9}), expected);
  const std::array<std::int64_t, 6> array = {3, 1, 4, 1, 5, 9};
  EXPECT_EQ(read(std::span<const std::int64_t>(array)), expected);
  EXPECT_EQ(read(std::vector<int>{}), std::vector<Index>{});
}

TEST(EmbeddingIds, EigenVectorsReadInOrderAndMatricesRowByRow) {
  Eigen::Matrix<int, 6, 1> column;
  column << 3, 1, 4, 1, 5, 9;
  EXPECT_EQ(read(column), expected);
  EXPECT_EQ(read(column.transpose().eval()), expected);
  Eigen::Matrix<std::int64_t, Eigen::Dynamic, Eigen::Dynamic> columns(2, 3);
  columns << 3, 1, 4, 1, 5, 9;
  EXPECT_EQ(read(columns), expected);
  const Matrix<std::int64_t> rows = columns;
  EXPECT_EQ(read(rows), expected);
  EXPECT_EQ(read(rows + Matrix<std::int64_t>::Zero(2, 3)), expected);
  Eigen::Matrix<int, Eigen::Dynamic, 1> spaced(12);
  for (Index i = 0; i < 12; ++i)
    spaced[i] = static_cast<int>(i % 2 == 0 ? expected[static_cast<std::size_t>(i / 2)] : 7);
  EXPECT_EQ(read(Eigen::Map<const Eigen::VectorXi, 0, Eigen::InnerStride<2>>(spaced.data(), 6)), expected);
  EXPECT_EQ(read(Matrix<int>(0, 5)), std::vector<Index>{});
}

TEST(EmbeddingIds, OtherTypesAreNoIds) {
  static_assert(EmbeddingIds<std::vector<unsigned char>>);
  static_assert(!EmbeddingIds<std::vector<float>>);
  static_assert(!EmbeddingIds<std::vector<bool>>);
  static_assert(!EmbeddingIds<std::string>);
  static_assert(!EmbeddingIds<std::list<int>>);
  static_assert(!EmbeddingIds<Eigen::VectorXf>);
  static_assert(!EmbeddingIds<int>);
}

template <class Ids>
std::string refusal(const Ids& ids, Index num_embeddings = 10) {
  try {
    with_ids(ids, [&](const auto& view) { check_ids({"Layer", "look_up"}, view, num_embeddings); });
  } catch (const ShapeError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(EmbeddingIds, TheFirstIdOutOfRangeIsNamedWithItsPosition) {
  EXPECT_EQ(refusal(std::vector<int>{0, 9, 5}), "accepted");
  EXPECT_EQ(refusal(std::vector<int>{}), "accepted");
  EXPECT_EQ(refusal(std::vector<int>{0, 10, -1}), "Layer::look_up: ids[1]: expected an id from 0 to 9, got 10");
  EXPECT_EQ(refusal(std::vector<std::int64_t>{0, 3, -1}), "Layer::look_up: ids[2]: expected an id from 0 to 9, got -1");
  EXPECT_EQ(refusal(std::vector<std::uint64_t>{std::numeric_limits<std::uint64_t>::max()}),
            "Layer::look_up: ids[0]: expected an id from 0 to 9, got 18446744073709551615");
  EXPECT_EQ(refusal(std::vector<std::int8_t>{127}, 128), "accepted");
  EXPECT_EQ(refusal(Eigen::RowVector3i(1, 2, 30)), "Layer::look_up: ids[2]: expected an id from 0 to 9, got 30");
  Matrix<int> batch(2, 3);
  batch << 0, 1, 2, 3, 40, 5;
  EXPECT_EQ(refusal(batch), "Layer::look_up: ids(1, 1): expected an id from 0 to 9, got 40");
}

TEST(EmbeddingIds, PaddingCountsFromEitherEnd) {
  EXPECT_EQ(padding_index("f", std::nullopt, 10), -1);
  EXPECT_EQ(padding_index("f", 9, 10), 9);
  EXPECT_EQ(padding_index("f", -10, 10), 0);
  EXPECT_THROW((void)padding_index("f", 10, 10), ConfigError);
  EXPECT_THROW((void)padding_index("f", -11, 10), ConfigError);
}

}  // namespace
}  // namespace lora
