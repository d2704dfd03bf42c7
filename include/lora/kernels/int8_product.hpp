// SPDX-License-Identifier: MIT
// Products in 8-bit integers: activations are rounded to 8 bits per block of 32, and multiplied with the integer codes
// of the weights. Sums within a block are exact integers, so every instruction set gives the same bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "lora/core/little_endian.hpp"
#include "lora/core/rounding.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/bf16_product.hpp"
#include "lora/kernels/block_product.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/simd.hpp"

namespace lora::kernels {

/// Inputs that share a scale, and words of four codes they take.
inline constexpr Index int8_block = 32;
inline constexpr Index int8_words = int8_block / 4;

/// The code of the weight 0, in formats whose weights are (code - zero_code) times the scale of their block of 32; -1
/// in others.
template <class Format>
inline constexpr std::int32_t zero_code = -1;
template <>
inline constexpr std::int32_t zero_code<formats::Q8_0> = 128;
template <>
inline constexpr std::int32_t zero_code<formats::Q5_0> = 16;
template <>
inline constexpr std::int32_t zero_code<formats::Q4_0> = 8;

/// What 32 rounded activations share.
struct Int8Block {
  float scale = 0;
  std::int32_t sum = 0;  ///< of the 32 integers
};

/// out (rows x columns) = start + sum over blocks of (integer sum * scale of x * scale of w), where start is `out`
/// itself
/// (`accumulate`), or `initial` (`width` floats), or zero. Word t of a row of `x` has four activations, word (t, j) of
/// `codes` four codes of output j.
struct ByteProduct {
  TileSums sums;
  const std::uint32_t* x = nullptr;
  Index x_stride = 0;
  const Int8Block* x_blocks = nullptr;
  Index x_blocks_stride = 0;
  const std::uint32_t* codes = nullptr;
  const float* scales = nullptr;
  std::int32_t zero_code = 0;
  Index blocks = 0;
};

/// The same for one row, with the codes read from the chunks of one panel or of `row_panels` that follow each other.
/// `x` and `accumulate` of `row` are not used.
struct ByteRow {
  BlockRow row;
  const std::uint32_t* x = nullptr;
  const Int8Block* x_blocks = nullptr;
};

struct ByteKernels {
  void (*round_block)(const float* x, Index step, std::int8_t* codes, Int8Block& block);
  void (*read_codes)(const std::uint8_t* chunks, Index width, Index blocks, std::uint32_t* codes, float* scales);
  void (*multiply)(const ByteProduct&);
  void (*multiply_row)(const ByteRow&);
  Index row_panels;
};

/// Whether this machine has AVX512_VNNI.
[[nodiscard]] inline bool has_vnni_instruction() noexcept {
#if LORA_X86_KERNELS
  return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

/// The kernels for `isa`, which this machine supports. `instruction`: use AVX512_VNNI with Isa::avx512.
template <class Format>
[[nodiscard]] const ByteKernels& byte_kernels(Isa isa, bool instruction = has_vnni_instruction()) noexcept;

}  // namespace lora::kernels

#define LORA_KERNEL_SOURCE "lora/kernels/int8_tiles.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

#if LORA_X86_KERNELS
namespace avx512 {

/// SeparateBytes in one instruction.
struct VnniBytes {
  LORA_TARGET_AVX512 LORA_INLINE static SignedWords add(SignedWords acc, Words w, Words x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
  }
};

}  // namespace avx512
#endif

template <class Format>
const ByteKernels& byte_kernels([[maybe_unused]] Isa isa, [[maybe_unused]] bool instruction) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) {
    return instruction ? avx512::byte_table<Format, avx512::VnniBytes>
                       : avx512::byte_table<Format, avx512::SeparateBytes>;
  }
  if (isa == Isa::avx2) return avx2::byte_table<Format, avx2::SeparateBytes>;
#elif LORA_NEON_KERNELS
  if (isa == Isa::neon) return neon::byte_table<Format, neon::SeparateBytes>;
#endif
  return portable::byte_table<Format, portable::SeparateBytes>;
}

/// X in 8 bits.
struct Int8Rows {
  MatrixView<std::uint32_t> codes;
  MatrixView<Int8Block> blocks;

  void round(const ByteKernels& kernels, const MatrixView<const float>& x, Index begin, Index end) const {
    for (Index i = begin; i < end; ++i) {
      const float* const row = x.data + i * x.row_stride;
      auto* const target = reinterpret_cast<std::int8_t*>(codes.data + i * codes.row_stride);
      for (Index c = 0; c < blocks.cols; ++c) {
        kernels.round_block(row + c * int8_block * x.col_stride, x.col_stride, target + c * int8_block, blocks(i, c));
      }
    }
  }
};

/// A single row, over blocks that are laid out.
template <class Format>
void int8_row_product(const PanelCall<float>& call, const StoredBlocks<Format>& stored, Isa isa, const Int8Rows& x,
                      Workspace& workspace) {
  const ByteKernels& kernels = byte_kernels<Format>(isa);
  for_row_panels(call, kernels.row_panels, workspace, [&](Index b, const BlockRow& start) {
    ByteRow product{start, x.codes.data, x.blocks.data};
    stored.place_row(b, product.row);
    kernels.multiply_row(product);
  });
}

/// Rows of Y, over codes and scales that are read to scratch, part by part.
template <class Format>
void int8_batch_product(const PanelCall<float>& call, const StoredBlocks<Format>& stored, Isa isa, const Int8Rows& x,
                        Workspace& workspace) {
  constexpr Index width = panel_width<float>;
  constexpr Index part = decoded_inputs / int8_block;  // blocks
  const ByteKernels& kernels = byte_kernels<Format>(isa);
  const Index blocks = stored.layout.blocks();
  const auto lines = worker_scratch<float>(workspace, part * width + call.scratch());
  const auto words = worker_scratch<std::uint32_t>(workspace, part * int8_words * width);
  for_each_panel(call, rows_per_packing_pass, workspace.executor(), [&](Index b, Index begin, Index end, int worker) {
    float* const scales = &lines(worker, 0);
    ByteProduct product{.sums = sums_of_panel(call, b, begin, end, scales + part * width),
                        .x_stride = x.codes.row_stride,
                        .x_blocks_stride = x.blocks.row_stride,
                        .codes = &words(worker, 0),
                        .scales = scales,
                        .zero_code = zero_code<Format>};
    Index c = 0;
    do {  // once even without inputs: the bias remains
      product.blocks = std::min(part, blocks - c);
      stored.for_chunks(b, c, product.blocks, [&](const std::uint8_t* chunks, Index first, Index count) {
        kernels.read_codes(chunks, product.sums.width, count, &words(worker, first * int8_words * product.sums.width),
                           scales + first * product.sums.width);
      });
      product.x = x.codes.data + begin * x.codes.row_stride + c * int8_words;
      product.x_blocks = x.blocks.data + begin * x.blocks.row_stride + c;
      kernels.multiply(product);
      product.sums.accumulate = true;
      c += part;
    } while (c < blocks);
    if (call.up.rows > 0) add_panel_terms(call, b, begin, end, scales);
  });
}

/// Y = X W^T + bias + U F, where X is rounded to 8 bits per block. Bias and low-rank terms are added in float.
/// Allocates only to grow the workspace, for X in 8 bits and the codes of a part of a panel per worker. The result of a
/// row depends neither on the other rows nor on the number of workers.
template <class Format>
void int8_product(const PanelCall<float>& call, const StoredBlocks<Format>& stored, Isa isa, Workspace& workspace) {
  static_assert(is_little_endian || sizeof(Format) == 0,
                "lora: Compute::int8 takes four codes for a little-endian word");
  const Index blocks = stored.layout.blocks();
  const auto codes = workspace.matrix<std::uint32_t>(call.x.rows, blocks * int8_words);
  const auto shared = workspace.matrix<Int8Block>(call.x.rows, blocks);
  const Int8Rows x{codes.middle_rows(0, call.x.rows), shared.middle_rows(0, call.x.rows)};
  parallel_ranges(workspace.executor(), call.x.rows, 8,
                  [&](Index begin, Index end, int) { x.round(byte_kernels<Format>(isa), call.x, begin, end); });
  if (call.x.rows == 1 && stored.rows == nullptr) return int8_row_product(call, stored, isa, x, workspace);
  int8_batch_product(call, stored, isa, x, workspace);
}

}  // namespace lora::kernels
