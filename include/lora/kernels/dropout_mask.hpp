// SPDX-License-Identifier: MIT
// The dropout mask as kernels read it: one bit per element of the adapter's input.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lora/core/types.hpp"

namespace lora {

/// Bit j & 7 of byte j / 8 of a row is 1 if element j is kept. Rows start on whole bytes. A mask without bits keeps
/// everything; `scale` is 1 then.
template <class Scalar>
struct DropoutMask {
  const std::uint8_t* bits = nullptr;
  Index row_bytes = 0;
  Scalar scale = Scalar(1);  ///< 1 / (1 - p), the factor on kept elements

  [[nodiscard]] bool active() const noexcept { return bits != nullptr; }
  [[nodiscard]] const std::uint8_t* row(Index i) const noexcept { return bits + i * row_bytes; }
  [[nodiscard]] bool keeps(Index i, Index j) const noexcept {
    return !active() || ((static_cast<unsigned>(row(i)[j >> 3]) >> static_cast<unsigned>(j & 7)) & 1U) != 0;
  }
  /// The same mask from row `first` on.
  [[nodiscard]] DropoutMask from_row(Index first) const noexcept {
    return active() ? DropoutMask{row(first), row_bytes, scale} : DropoutMask{};
  }
};

}  // namespace lora
