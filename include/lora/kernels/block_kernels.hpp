// SPDX-License-Identifier: MIT
// The kernels that read a number format, for one instruction set each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/format/formats.hpp"
#include "lora/kernels/block_layout.hpp"
#include "lora/kernels/block_tables.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/simd.hpp"

namespace lora::kernels {

/// Inputs [first, first + count) of a panel of `width` outputs, decoded to `out` (count lines of `width` floats).
/// `first` and `count` are multiples of block_group<Format>.
using DecodeKernel = void (*)(const std::uint8_t* panel, Index width, Index first, Index count, float* out);

/// The most panels that a BlockRow has.
inline constexpr Index most_row_panels = 4;

/// One row of a product with consecutive chunks of one panel, or of BlockKernels::row_panels that follow each other:
/// out (columns) = start + sum of x(q) W(., q), where start is `out` itself (`accumulate`), or `initial` (`width`
/// floats a panel), or zero. Each output is one chain of fused multiply-adds over the inputs in order. Several panels
/// have the width of a full one; they are read side by side, because one stream, and one panel's chains, would be too
/// slow.
struct BlockRow {
  const std::uint8_t* chunks = nullptr;
  Index panel_bytes = 0;  ///< from one panel's chunks to those of the next
  Index panels = 1;
  Index width = 0;
  Index blocks = 0;
  const float* x = nullptr;
  Index x_step = 1;
  const float* initial[most_row_panels] = {};
  bool accumulate = false;
  float* out = nullptr;
  Index columns = 0;  ///< of all panels
};

/// Where a tile's sums (rows x columns) start and go: at `out` itself (`accumulate`), or `initial` (`width` floats), or
/// zero.
struct TileSums {
  Index rows = 0;
  Index width = 0;
  Index columns = 0;
  const float* initial = nullptr;
  bool accumulate = false;
  float* out = nullptr;
  Index out_stride = 0;
};

struct BlockKernels {
  DecodeKernel decode;
  void (*multiply_row)(const BlockRow&);
  Index row_panels;  ///< that multiply_row takes at a time; it also takes one
};

/// Inputs that share a scale, and are decoded together.
template <class Format>
[[nodiscard]] constexpr Index block_group() noexcept;

/// The kernels for `isa`, which this machine supports.
template <class Format>
[[nodiscard]] const BlockKernels& block_kernels(Isa isa = active_isa()) noexcept;

}  // namespace lora::kernels

#define LORA_KERNEL_SOURCE "lora/kernels/block_kernels.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

template <class Format>
constexpr Index block_group() noexcept {
  return portable::BlockDecoder<Format, 1>::group;
}

template <class Format>
const BlockKernels& block_kernels([[maybe_unused]] Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return avx512::block_table<Format>;
  if (isa == Isa::avx2) return avx2::block_table<Format>;
#elif LORA_NEON_KERNELS
  if (isa == Isa::neon) return neon::block_table<Format>;
#endif
  return portable::block_table<Format>;
}

}  // namespace lora::kernels
