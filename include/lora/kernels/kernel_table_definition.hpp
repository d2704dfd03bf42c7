// The kernels themselves, compiled once for every instruction set. Included by kernels/kernel_table.hpp, or by a
// compiled library's own source.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lora/kernels/exact_update.hpp"
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/simd.hpp"

#define LORA_KERNEL_SOURCE "lora/kernels/kernel_table.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

template <class Scalar>
const KernelTable<Scalar>& kernel_table([[maybe_unused]] Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return avx512::table<Scalar>;
  if (isa == Isa::avx2) return avx2::table<Scalar>;
#endif
  return portable::table<Scalar>;
}

}  // namespace lora::kernels
