// SPDX-License-Identifier: MIT
// The low-rank update of a weight, computed line by line so that it is never held whole.
#pragma once

#include "lora/kernels/kernel_table.hpp"

namespace lora::kernels {

template <class Scalar>
[[nodiscard]] DeltaKernel<Scalar> delta_kernel(Isa isa = active_isa()) noexcept {
  return kernel_table<Scalar>(isa).delta;
}

}  // namespace lora::kernels
