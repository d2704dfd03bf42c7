// SPDX-License-Identifier: MIT
// A low-rank update that is computed and, while in registers and first-level cache, added or undone exactly.
#pragma once

#include "lora/kernels/exact_update.hpp"
#include "lora/kernels/kernel_table.hpp"

namespace lora::kernels {

template <class Scalar>
[[nodiscard]] FusedKernel<Scalar> fused_kernel(Isa isa = active_isa()) noexcept {
  return kernel_table<Scalar>(isa).fused_update;
}

}  // namespace lora::kernels
