// The input of a layer's last forward pass, kept for its backward pass.
#pragma once

#include <cstddef>
#include <vector>

#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// A copy of a matrix of rows in memory that only grows. Room comes before the pass and the values after it, so that a
/// pass that fails leaves what was remembered.
template <RealScalar Scalar>
class RememberedInput {
 public:
  /// Room for `rows`. The values stay. @throws std::bad_alloc; then nothing has changed.
  void reserve(const MatrixView<const Scalar>& rows) {
    const auto wanted = static_cast<std::size_t>(rows.rows * rows.cols);
    if (values_.size() < wanted) values_.resize(wanted);
  }
  /// Copies `rows`, for which there is room.
  void assign(const MatrixView<const Scalar>& rows) noexcept {
    MatrixView<Scalar>{values_.data(), rows.rows, rows.cols, rows.cols, 1}.map() = rows.map();
  }
  /// What was copied last, which had this shape.
  [[nodiscard]] MatrixView<const Scalar> view(Index rows, Index cols) const noexcept {
    return {values_.data(), rows, cols, cols, 1};
  }

 private:
  std::vector<Scalar> values_;
};

}  // namespace lora
