// SPDX-License-Identifier: MIT
#include "products.hpp"

namespace mixed_flags {

lora::PackedWeight<float> make_weight_native(const float* elements) { return make_weight(elements); }

void run_products_native(const lora::PackedWeight<float>& weight, const float* x, float* y, float* dx) {
  run_products(weight, x, y, dx);
}

}  // namespace mixed_flags
