// SPDX-License-Identifier: MIT
// Frozen weights built from a user's Eigen objects.
#pragma once

#include <span>
#include <string_view>
#include <type_traits>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// A weight built from an Eigen matrix, map, block or expression, stored out_features x in_features, or `transposed`.
template <class Weight, class W>
[[nodiscard]] Weight weight_from(const Eigen::DenseBase<W>& w0, bool transposed) {
  using Scalar = typename Weight::Scalar;
  static_assert(std::is_same_v<typename W::Scalar, Scalar>, "lora: the weight's scalar type is not the layer's");
  if constexpr ((W::Flags & Eigen::DirectAccessBit) != 0) {
    const auto view = view_of(w0);
    return Weight(transposed ? view.transpose() : view);
  } else {
    static_assert(std::is_copy_constructible_v<Weight>, "lora: a weight that views memory cannot view an expression");
    const typename W::PlainObject evaluated = w0.derived();
    const MatrixView<const Scalar> view = view_of(evaluated);
    return Weight(transposed ? view.transpose() : view);
  }
}

/// @throws ShapeError when a weight has no elements.
inline void require_not_empty(std::string_view operation, Index out_features, Index in_features) {
  if (out_features > 0 && in_features > 0) return;
  throw ShapeError(operation, "weight", "at least 1 x 1", shape_text(out_features, in_features));
}

/// The requirements on a bias that is an Eigen object.
template <class Scalar, class B>
constexpr void check_bias() {
  static_assert(B::IsVectorAtCompileTime, "lora: the bias is a vector");
  static_assert(std::is_same_v<typename B::Scalar, Scalar>, "lora: the bias' scalar type is not the layer's");
}

/// A std::vector, an array or a span of numbers as an Eigen vector.
template <class Scalar>
[[nodiscard]] auto bias_map(std::span<const Scalar> bias) noexcept {
  return Eigen::Map<const RowVector<Scalar>>(bias.data(), static_cast<Index>(bias.size()));
}

}  // namespace lora
