// SPDX-License-Identifier: MIT
// NF4 of bitsandbytes (QLoRA).
#pragma once

#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/absmax_block.hpp"

namespace lora::formats {

namespace detail {

/// Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero.
inline constexpr Codebook nf4_codebook = {
    {-1.0F, -0.6961928009986877F, -0.5250730514526367F, -0.39491748809814453F, -0.28444138169288635F,
     -0.18477343022823334F, -0.09105003625154495F, 0.0F, 0.07958029955625534F, 0.16093020141124725F,
     0.24611230194568634F, 0.33791524171829224F, 0.44070982933044434F, 0.5626170039176941F, 0.7229568362236023F, 1.0F},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};

}  // namespace detail

/// BlockSize weights, 4 + BlockSize / 2 bytes: [absmax: float][two codes a byte, the first in the high nibble].
/// value = table[q] * absmax. Source: QLoRA (arXiv 2305.14314), appendix E, with the numbers of bitsandbytes.
template <Index BlockSize = 64>
struct NF4 : detail::AbsmaxBlock<detail::nf4_codebook, BlockSize> {
  static constexpr std::string_view name = "NF4";
};

}  // namespace lora::formats
