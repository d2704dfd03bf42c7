// What one forward pass leaves for its backward pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "lora/adapter/dropout.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// U = drop(X) A^T (N x rank) and the dropout bits of one forward pass: all that backward needs beside X and dY.
/// Owned by the caller, one per pass that is still to be differentiated; reusing it allocates only to grow.
template <RealScalar Scalar>
class LoraRecord {
 public:
  /// Where this batch stands in the dropout sequence. Set it before the forward pass.
  DropoutPosition position;

  /// Rows of the batch of the last forward pass; -1 before the first.
  [[nodiscard]] Index rows() const noexcept { return rows_; }

  /// U of the last forward pass, rows x rank.
  [[nodiscard]] MatrixView<const Scalar> down_projection() const noexcept {
    return {down_.data(), rows_, rank_, rank_, 1};
  }
  [[nodiscard]] const DropoutBits& dropout_bits() const noexcept { return bits_; }

  /// Bytes the last forward pass needs to have kept: 4 N r + N ceil(k / 8) in float.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(std::max<Index>(rows_, 0) * rank_) * sizeof(Scalar) + bits_.bytes();
  }

  /// Forgets the last pass and keeps its memory. Backward refuses the record until the next forward pass is complete.
  void clear() noexcept {
    rows_ = -1;
    bits_.clear();
  }

  /// Makes room for a pass and returns U, to be filled. For the forward pass of a layer.
  [[nodiscard]] MatrixView<Scalar> prepare(Index rows, Index rank) {
    const auto wanted = static_cast<std::size_t>(rows * rank);
    if (down_.size() < wanted) down_.resize(wanted);
    rows_ = rows;
    rank_ = rank;
    return {down_.data(), rows, rank, rank, 1};
  }
  [[nodiscard]] DropoutBits& dropout_bits() noexcept { return bits_; }

 private:
  Index rows_ = -1;
  Index rank_ = 0;
  std::vector<Scalar> down_;
  DropoutBits bits_;
};

}  // namespace lora
