// SPDX-License-Identifier: MIT
// Products in bf16: activations and weights are rounded to bf16, and their products, which are exact, are summed in
// float. With AVX512_BF16 one instruction takes two products a lane; elsewhere two multiply-adds give the same bits,
// except that the instruction replaces a partial sum below 2^-126 by zero, and that the portable kernels do not fuse: a
// product beyond float's range is infinite there, whatever the sum.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/little_endian.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/block_product.hpp"
#include "lora/kernels/block_tables.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/simd.hpp"

namespace lora::kernels {

/// out (rows x columns) = start + sum over pairs of inputs. Within a pair the second input is added first. Word t of a
/// row of `x` is a pair of activations; word (t, j) of `w` is a pair of weights of output j.
struct PairProduct {
  TileSums sums;
  const std::uint32_t* x = nullptr;
  Index x_stride = 0;
  const std::uint32_t* w = nullptr;
  Index pairs = 0;
};

struct PairKernels {
  /// Lines (inputs x width) of a decoded panel as pairs.
  void (*pair_lines)(const float* lines, Index width, Index inputs, std::uint32_t* pairs);
  /// `count` numbers, `step` apart, rounded, and padded with a zero to whole pairs.
  void (*round_row)(const float* x, Index step, Index count, std::uint16_t* row);
  void (*multiply)(const PairProduct&);
};

/// Whether this machine has AVX512_BF16.
[[nodiscard]] inline bool has_bf16_instruction() noexcept {
#if LORA_X86_KERNELS
  return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

/// The kernels for `isa`, which this machine supports. `instruction`: use AVX512_BF16 with Isa::avx512.
[[nodiscard]] const PairKernels& pair_kernels(Isa isa, bool instruction = has_bf16_instruction()) noexcept;

}  // namespace lora::kernels

#define LORA_KERNEL_SOURCE "lora/kernels/bf16_tiles.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

#if LORA_X86_KERNELS
namespace avx512 {

/// FusedPairs in one instruction. Assembly, because compilers disagree on the builtin's types.
struct Bf16Pairs {
  LORA_TARGET_AVX512 LORA_INLINE static Floats add(Floats acc, Words w, Words x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
  }
};

inline constexpr PairKernels bf16_pair_table = {&pair_lines, &round_row, &multiply_pairs<Bf16Pairs>};

}  // namespace avx512
#endif

inline const PairKernels& pair_kernels([[maybe_unused]] Isa isa, [[maybe_unused]] bool instruction) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return instruction ? avx512::bf16_pair_table : avx512::pair_table;
  if (isa == Isa::avx2) return avx2::pair_table;
#elif LORA_NEON_KERNELS
  if (isa == Isa::neon) return neon::pair_table;
#endif
  return portable::pair_table;
}

/// Y = X W^T + bias + U F, where X and W are rounded to bf16. Bias and low-rank terms are added in float. Allocates
/// only to grow the workspace, for X in bf16 and a decoded part of a panel per worker. The result of a row depends
/// neither on the other rows nor on the number of workers.
template <class Format>
void bf16_product(const PanelCall<float>& call, const StoredBlocks<Format>& stored, Isa isa, Workspace& workspace) {
  static_assert(is_little_endian || sizeof(Format) == 0,
                "lora: Compute::bf16 takes pairs of numbers for little-endian words");
  constexpr Index width = panel_width<float>;
  constexpr Index part = std::max(decoded_inputs, Format::block_size);
  constexpr Index pairs = part / 2;
  const PairKernels& kernels = pair_kernels(isa);
  Executor& executor = workspace.executor();
  const Index inputs = call.layout.inputs;
  const auto x = workspace.matrix<std::uint32_t>(call.x.rows, ceil_div(inputs, 2));
  parallel_ranges(executor, call.x.rows, 8, [&](Index begin, Index end, int) {
    for (Index i = begin; i < end; ++i) {
      auto* const row = reinterpret_cast<std::uint16_t*>(x.data + i * x.row_stride);
      kernels.round_row(call.x.data + i * call.x.row_stride, call.x.col_stride, inputs, row);
    }
  });
  const auto lines = worker_scratch<float>(workspace, part * width + call.scratch());
  const auto words = worker_scratch<std::uint32_t>(workspace, pairs * width);
  for_each_panel(call, rows_per_packing_pass, executor, [&](Index b, Index begin, Index end, int worker) {
    float* const decoded = &lines(worker, 0);
    PairProduct product{.sums = sums_of_panel(call, b, begin, end, decoded + part * width),
                        .x_stride = x.row_stride,
                        .w = &words(worker, 0)};
    Index q = 0;
    do {  // once even without inputs: the bias remains
      const Index depth = std::min(part, inputs - q);
      stored.decode(isa, b, q, depth, decoded);
      kernels.pair_lines(decoded, product.sums.width, depth, &words(worker, 0));
      product.x = x.data + begin * x.row_stride + q / 2;
      product.pairs = ceil_div(depth, 2);
      kernels.multiply(product);
      product.sums.accumulate = true;
      q += part;
    } while (q < inputs);
    if (call.up.rows > 0) add_panel_terms(call, b, begin, end, decoded);
  });
}

}  // namespace lora::kernels
