// SPDX-License-Identifier: MIT
// The rows of a batch sorted by the adapter each of them chose.
#pragma once

#include <algorithm>
#include <span>

#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// A stable order of rows in which rows with the same choice are adjacent, with groups in the order of their first row:
/// a batch that is already grouped keeps its order. Choices are numbers in [-1, choices).
///
/// Uses memory that the caller provides: `scratch(rows, choices)` numbers. Allocates nothing.
class RowGroups {
 public:
  [[nodiscard]] static constexpr Index scratch(Index rows, Index choices) noexcept { return rows + 3 * (choices + 1); }

  RowGroups(std::span<const Index> choice, Index choices, Index* memory) noexcept
      : rows_(static_cast<Index>(choice.size())),
        order_(memory),
        starts_(memory + rows_),
        kinds_(starts_ + choices + 1) {
    Index* const next = kinds_ + choices + 1;  // by choice: first the number of rows in its group, then its next
                                               // position
    std::fill(next, next + choices + 1, Index{0});
    for (const Index c : choice) {
      if (next[c + 1]++ == 0) kinds_[groups_++] = c;
    }
    Index start = 0;
    for (Index g = 0; g < groups_; ++g) {
      Index& place = next[kinds_[g] + 1];
      starts_[g] = start;
      start += place;
      place = starts_[g];
    }
    for (Index i = 0; i < rows_; ++i) {
      const Index place = next[choice[static_cast<std::size_t>(i)] + 1]++;
      order_[place] = i;
      sorted_ = sorted_ && place == i;
    }
  }

  [[nodiscard]] Index groups() const noexcept { return groups_; }
  /// The choice of the rows of group `g`.
  [[nodiscard]] Index choice(Index g) const noexcept { return kinds_[g]; }
  /// Position of the group's first row.
  [[nodiscard]] Index begin(Index g) const noexcept { return starts_[g]; }
  [[nodiscard]] Index end(Index g) const noexcept { return g + 1 < groups_ ? starts_[g + 1] : rows_; }
  /// The batch row at position `i`.
  [[nodiscard]] Index row(Index i) const noexcept { return order_[i]; }
  /// Whether every row is already at its position.
  [[nodiscard]] bool sorted() const noexcept { return sorted_; }

  /// to(position, :) = from(row at that position, :).
  template <class Scalar>
  void gather(const MatrixView<const Scalar>& from, const MatrixView<Scalar>& to) const noexcept {
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < to.cols; ++j) to(i, j) = from(row(i), j);
  }
  /// to(row at that position, :) = from(position, :).
  template <class Scalar>
  void scatter(const MatrixView<const Scalar>& from, const MatrixView<Scalar>& to) const noexcept {
    for (Index i = 0; i < rows_; ++i)
      for (Index j = 0; j < to.cols; ++j) to(row(i), j) = from(i, j);
  }

 private:
  Index rows_;
  Index groups_ = 0;
  bool sorted_ = true;
  Index* order_;
  Index* starts_;
  Index* kinds_;
};

}  // namespace lora
