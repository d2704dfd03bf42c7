// SPDX-License-Identifier: MIT
// What both translation units of this test do, each compiled with flags of its own.
#pragma once

#include "lora/weight/packed.hpp"

namespace mixed_flags {

inline constexpr lora::Index rows = 13;
inline constexpr lora::Index outputs = 101;
inline constexpr lora::Index inputs = 77;

/// A weight with fixed elements.
inline lora::PackedWeight<float> make_weight(const float* elements) {
  return lora::PackedWeight<float>(lora::MatrixView<const float>{elements, outputs, inputs, inputs, 1});
}

/// Y (rows x outputs) = X (rows x inputs) W^T, then dX (rows x inputs) = Y W.
inline void run_products(const lora::PackedWeight<float>& weight, const float* x, float* y, float* dx) {
  lora::Workspace workspace;
  const lora::MatrixView<float> y_view{y, rows, outputs, outputs, 1};
  weight.product({x, rows, inputs, inputs, 1}, nullptr, {}, y_view, workspace);
  weight.product_transposed(y_view, {}, {dx, rows, inputs, inputs, 1}, workspace);
}

/// The two functions above, as the unit compiled for this machine sees them.
lora::PackedWeight<float> make_weight_native(const float* elements);
void run_products_native(const lora::PackedWeight<float>& weight, const float* x, float* y, float* dx);

}  // namespace mixed_flags
