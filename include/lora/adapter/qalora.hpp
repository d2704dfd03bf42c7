// SPDX-License-Identifier: MIT
// QALoRA: an adapter whose A sees sums over groups of consecutive inputs.
#pragma once

#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

// With groups of g inputs and c = in_features / g of them, A is rank x c, and the adapter adds
//
//   s B A P x,   (P x)_q = c * mean of x over group q,
//
// where P is c x in_features and P(q, j) = c / g for the inputs j of group q, 0 for others. So s B A P is an update of
// the weight of the usual form, whose factor A P is A with every column repeated g times and multiplied by c / g, and
// dA = d(A P) P^T. Layers compute with A P, which lies in scratch for one pass: the passes, dropout, several adapters,
// an adapter for each row, and merging are those of any adapter.
//
// Source: Xu et al., "QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models", arXiv 2309.14717,
// section 3.3; the factor c is PEFT's.
namespace lora {

/// c / g, of weights of `inputs` in groups of `group`. Pre: group >= 1.
template <RealScalar Scalar>
[[nodiscard]] Scalar qalora_factor(Index inputs, Index group) noexcept {
  const Index groups = inputs / group;
  return static_cast<Scalar>(static_cast<double>(groups) / static_cast<double>(group));
}

/// wide = A P: `a` is rank x in_features / group, `wide` rank x in_features. Group 0 stands for an adapter without
/// QALoRA, whose A is copied. No allocation.
template <RealScalar Scalar>
void widen_factor(const MatrixView<const Scalar>& a, Index group, const MatrixView<Scalar>& wide) noexcept {
  if (group == 0) return copy_elements(a, wide);
  const Scalar factor = qalora_factor<Scalar>(wide.cols, group);
  for (Index p = 0; p < a.rows; ++p) {
    for (Index q = 0; q < a.cols; ++q) {
      const Scalar value = factor * a(p, q);
      for (Index j = q * group; j < (q + 1) * group; ++j) wide(p, j) = value;
    }
  }
}

/// da += d(A P) P^T, with the shapes of widen_factor(). Pre: group >= 1. No allocation.
template <RealScalar Scalar>
void add_narrowed_gradient(const MatrixView<const Scalar>& wide, Index group, const MatrixView<Scalar>& da) noexcept {
  const Scalar factor = qalora_factor<Scalar>(wide.cols, group);
  for (Index p = 0; p < da.rows; ++p) {
    for (Index q = 0; q < da.cols; ++q) {
      Scalar sum = 0;
      for (Index j = q * group; j < (q + 1) * group; ++j) sum += wide(p, j);
      da(p, q) += factor * sum;
    }
  }
}

}  // namespace lora
