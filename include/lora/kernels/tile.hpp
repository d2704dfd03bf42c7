// The product that everything rests on: rows of scalars against a packed panel, sums held in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "lora/kernels/simd.hpp"

namespace lora::kernels {

/// Width of a panel: three AVX-512 registers, six of AVX2, twelve of 16 bytes.
template <class Scalar>
inline constexpr Index panel_width = static_cast<Index>(3 * 64 / sizeof(Scalar));

/// Widths of narrower panels are multiples of this: one AVX-512 register.
template <class Scalar>
inline constexpr Index width_unit = static_cast<Index>(64 / sizeof(Scalar));

/// Rows of the tallest tile of any instruction set.
inline constexpr Index tallest_tile = 8;

/// Terms of an inner product: row i's factor p is left[i * left_row + p * left_step]; it multiplies row p of `right`.
template <class Scalar>
struct ProductTerms {
  const Scalar* left = nullptr;
  Index left_row = 0;
  Index left_step = 0;
  const Scalar* right = nullptr;  ///< depth rows of `width` scalars, contiguous
  Index depth = 0;
};

/// What the next product reads: runs of memory, run_stride bytes apart, one for every `run_terms` terms of this one.
/// The tiles ask for the runs in slices: the tile whose first row is i hints, with term p of a run, at
/// address + run * run_stride + i * row + p * step. A hint beyond the end of an array is harmless, so these are numbers
/// and not pointers.
struct Prefetch {
  std::uintptr_t address = 0;
  std::uintptr_t run_stride = 0;
  std::uintptr_t run_terms = std::numeric_limits<std::uintptr_t>::max();
  std::uintptr_t row = 0;
  std::uintptr_t step = 0;

  /// Spreads runs of `bytes`, one for every `terms` terms, over the tiles of `samples` rows, hints at most one cache
  /// line apart.
  void spread(std::uintptr_t bytes, Index terms, Index samples) noexcept {
    const auto rows = static_cast<std::uintptr_t>(samples);
    const auto hints = rows * static_cast<std::uintptr_t>(std::max<Index>(terms, 1));
    row = (bytes + rows - 1) / rows;
    step = std::min<std::uintptr_t>(64, (bytes * tallest_tile + hints - 1) / hints);
  }
};

/// out (rows x columns) = start + terms + extra, where start is `out` itself (`accumulate`), or `initial`, or zero.
/// With `panels` > 1 the product takes as many whole panels, which lie right after one another, as are their columns of
/// `out` and of `initial`: then width and columns are panel_width, and there is no `extra`. Every element is one chain
/// of fused multiply-adds in the order of the terms, so it depends neither on its row's place nor on how many rows,
/// columns or calls the product is split into.
template <class Scalar>
struct PanelProduct {
  Index rows = 0;
  Index width = 0;    ///< of `right` and `initial`; a multiple of width_unit
  Index columns = 0;  ///< columns of `out`, at most `width`
  Index panels = 1;
  ProductTerms<Scalar> terms;
  ProductTerms<Scalar> extra;       ///< depth 0 for none
  const Scalar* initial = nullptr;  ///< `width` scalars, or null for zero
  bool accumulate = false;
  Scalar* out = nullptr;
  Index out_stride = 0;
  Prefetch prefetch;
};

}  // namespace lora::kernels

#define LORA_KERNEL_SOURCE "lora/kernels/tile.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

template <class Scalar>
using MultiplyKernel = void (*)(const PanelProduct<Scalar>&);

/// The kernel for `isa`, which this machine supports.
template <class Scalar>
[[nodiscard]] MultiplyKernel<Scalar> multiply_kernel(Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return &avx512::multiply<Scalar>;
  if (isa == Isa::avx2) return &avx2::multiply<Scalar>;
#endif
  return &portable::multiply<Scalar>;
}

}  // namespace lora::kernels
