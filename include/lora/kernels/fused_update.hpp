// A low-rank update computed and, while it is in registers and first-level cache, added or taken back exactly.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/types.hpp"
#include "lora/kernels/delta.hpp"
#include "lora/kernels/exact_update.hpp"

namespace lora::kernels {

enum class UpdateStep : std::uint8_t {
  apply,    ///< weights <- weights + delta, codes and originals written
  restore,  ///< the reverse, codes and originals read
  verify,   ///< writes nothing; after `apply`: whether every delta, and every sum where the weight was, is finite
};

/// Weights (`lines` runs of `length` scalars, `line_stride` apart) and their update coefficients * factor, shaped as
/// for DeltaKernel.
template <class Scalar>
struct UpdateTile {
  const Scalar* coefficients = nullptr;
  const Scalar* factor = nullptr;
  Index factor_stride = 0;
  Index rank = 0;
  Scalar* weights = nullptr;
  Index line_stride = 0;
  Index lines = 0;
  Index length = 0;
};

}  // namespace lora::kernels

#define LORA_KERNEL_SOURCE "lora/kernels/fused_update.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

/// weights <- weights + delta as by a DeltaKernel and `apply_exact`, or the reverse. `codes`: lines x length,
/// contiguous. `originals`: room for as many when applying. Exceptions are in an order of the kernel's own, which
/// restoring a tile of the same shape follows.
/// Applying always runs to the end: where something was not finite it reports so, and restoring takes it back.
/// No allocation; the arrays do not overlap.
template <class Scalar>
using FusedKernel = ExactUpdate (*)(const UpdateTile<Scalar>& tile, UpdateStep step, std::int8_t* codes,
                                    Scalar* originals);

/// The kernel for `isa`. One function for both steps, so that both compute the same delta however the compiler was told
/// to round: keep the pointer.
template <class Scalar>
[[nodiscard]] FusedKernel<Scalar> fused_kernel(Isa isa = active_isa()) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return &avx512::fused_lines<Scalar>;
  if (isa == Isa::avx2) return &avx2::fused_lines<Scalar>;
#endif
  return &portable::fused_lines<Scalar>;
}

}  // namespace lora::kernels
