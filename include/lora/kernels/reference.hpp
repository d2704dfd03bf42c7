// SPDX-License-Identifier: MIT
// The products of a LoRA layer, straight from their formulas: the oracle that every faster kernel is tested against.
#pragma once

#include "lora/core/view.hpp"

namespace lora::reference {

/// C (n x m) += scale * A (n x p) * B (p x m). Sums in `Sum`, which is wider than the operands if that matters.
/// Cost n*m*p; no allocation; C aliases neither operand.
template <class Sum, class ScalarA, class ScalarB, class ScalarC>
void add_product(Sum scale, const MatrixView<ScalarA>& a, const MatrixView<ScalarB>& b, const MatrixView<ScalarC>& c) {
  for (Index i = 0; i < c.rows; ++i) {
    for (Index j = 0; j < c.cols; ++j) {
      Sum sum = 0;
      for (Index p = 0; p < a.cols; ++p) sum += static_cast<Sum>(a(i, p)) * static_cast<Sum>(b(p, j));
      c(i, j) = static_cast<ScalarC>(static_cast<Sum>(c(i, j)) + scale * sum);
    }
  }
}

}  // namespace lora::reference
