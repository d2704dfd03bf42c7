// SPDX-License-Identifier: MIT
#include "lora/layers/row_groups.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

struct Grouped {
  explicit Grouped(std::vector<Index> given, Index choices)
      : choice(std::move(given)),
        memory(static_cast<std::size_t>(RowGroups::scratch(static_cast<Index>(choice.size()), choices)), Index{-77}),
        groups(choice, choices, memory.data()) {}

  [[nodiscard]] std::vector<Index> order() const {
    std::vector<Index> rows;
    for (Index i = 0; i < static_cast<Index>(choice.size()); ++i) rows.push_back(groups.row(i));
    return rows;
  }

  std::vector<Index> choice;
  std::vector<Index> memory;
  RowGroups groups;
};

TEST(RowGroups, KeepsTheOrderOfRowsAndOfFirstRows) {
  const Grouped grouped({2, -1, 0, 2, -1, 2}, 4);
  const auto& groups = grouped.groups;
  EXPECT_EQ(grouped.order(), (std::vector<Index>{0, 3, 5, 1, 4, 2}));
  ASSERT_EQ(groups.groups(), 3);
  EXPECT_FALSE(groups.sorted());
  const std::vector<Index> choices = {2, -1, 0}, begins = {0, 3, 5}, ends = {3, 5, 6};
  for (Index g = 0; g < 3; ++g) {
    EXPECT_EQ(groups.choice(g), choices[static_cast<std::size_t>(g)]);
    EXPECT_EQ(groups.begin(g), begins[static_cast<std::size_t>(g)]);
    EXPECT_EQ(groups.end(g), ends[static_cast<std::size_t>(g)]);
  }
}

TEST(RowGroups, RowsThatStandTogetherStayWhereTheyAre) {
  EXPECT_TRUE(Grouped({3, 3, -1, 0, 0}, 4).groups.sorted());
  EXPECT_TRUE(Grouped({-1}, 0).groups.sorted());
  EXPECT_TRUE(Grouped({1, 1, 1}, 2).groups.sorted());
  EXPECT_FALSE(Grouped({1, 0, 1}, 2).groups.sorted());
}

TEST(RowGroups, ABatchMayBeEmpty) {
  const Grouped grouped({}, 3);
  EXPECT_EQ(grouped.groups.groups(), 0);
  EXPECT_TRUE(grouped.groups.sorted());
}

TEST(RowGroups, ScatterUndoesGather) {
  const Grouped grouped({1, 0, 1, -1, 0}, 2);
  const auto x = random_matrix<float>(5, 3, 1);
  Matrix<float> sorted(5, 3);
  Matrix<float> back(5, 3);
  grouped.groups.gather(view_of(x), view_of(sorted));
  EXPECT_TRUE(same_bits(sorted.row(1), x.row(2)));
  EXPECT_TRUE(same_bits(sorted.row(4), x.row(3)));
  grouped.groups.scatter(view_of(std::as_const(sorted)), view_of(back));
  EXPECT_TRUE(same_bits(back, x));
}

}  // namespace
}  // namespace lora
