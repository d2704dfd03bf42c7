// What one forward pass leaves for its backward pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "lora/adapter/dropout.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// U = drop(X) A^T (N x rank) and the dropout bits of one forward pass: all that backward needs beside X and dY. With
/// DoRA also what its magnitude multiplies: Z = drop(X) (W0 + s*B*A)^T (N x out_features), and the norms it divides by.
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

  /// With DoRA Z of the last forward pass, rows x out_features; else rows x 0.
  [[nodiscard]] MatrixView<const Scalar> unscaled_output() const noexcept {
    return {unscaled_.data(), rows_, outputs_, outputs_, 1};
  }
  /// With DoRA the norms of the rows of W0 + s*B*A in the last forward pass, out_features scalars.
  [[nodiscard]] const Scalar* row_norms() const noexcept { return norms_.data(); }

  /// Bytes the last forward pass needs to have kept: 4 N r + N ceil(k / 8) in float, and with DoRA 4 (N + 1) d more.
  [[nodiscard]] std::size_t bytes() const noexcept {
    const Index rows = std::max<Index>(rows_, 0);
    const Index scalars = rows * rank_ + (outputs_ > 0 ? (rows + 1) * outputs_ : 0);
    return static_cast<std::size_t>(scalars) * sizeof(Scalar) + bits_.bytes();
  }

  /// Forgets the last pass and keeps its memory. Backward refuses the record until the next forward pass is complete.
  void clear() noexcept {
    rows_ = -1;
    outputs_ = 0;
    bits_.clear();
  }

  /// Makes room for a pass and returns U, to be filled. For the forward pass of a layer.
  [[nodiscard]] MatrixView<Scalar> prepare(Index rows, Index rank) {
    const auto wanted = static_cast<std::size_t>(rows * rank);
    if (down_.size() < wanted) down_.resize(wanted);
    rows_ = rows;
    rank_ = rank;
    outputs_ = 0;
    return {down_.data(), rows, rank, rank, 1};
  }
  [[nodiscard]] DropoutBits& dropout_bits() noexcept { return bits_; }

  /// What a forward pass with DoRA fills.
  struct DoraOutput {
    MatrixView<Scalar> unscaled;  ///< rows x out_features
    Scalar* norms;                ///< out_features
  };
  /// Makes room for Z and the norms, after prepare(). They show once keep_outputs() has said that they are complete.
  [[nodiscard]] DoraOutput prepare_outputs(Index outputs) {
    const auto wanted = static_cast<std::size_t>(rows_ * outputs);
    if (unscaled_.size() < wanted) unscaled_.resize(wanted);
    if (norms_.size() < static_cast<std::size_t>(outputs)) norms_.resize(static_cast<std::size_t>(outputs));
    return {{unscaled_.data(), rows_, outputs, outputs, 1}, norms_.data()};
  }
  void keep_outputs(Index outputs) noexcept { outputs_ = outputs; }

 private:
  Index rows_ = -1;
  Index rank_ = 0;
  Index outputs_ = 0;
  std::vector<Scalar> down_;
  std::vector<Scalar> unscaled_;
  std::vector<Scalar> norms_;
  DropoutBits bits_;
};

}  // namespace lora
