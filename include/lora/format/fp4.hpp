// SPDX-License-Identifier: MIT
// FP4 of bitsandbytes.
#pragma once

#include <string_view>

#include "lora/core/types.hpp"
#include "lora/format/absmax_block.hpp"

namespace lora::formats {

namespace detail {

/// A sign, two bits of exponent and one of mantissa, over the largest value, 12. In the ascending order +0 stands
/// before -0, as a stable sort leaves them.
inline constexpr Codebook fp4_codebook = {
    {0.0F, 0.0625F / 12.0F, 8.0F / 12.0F, 1.0F, 4.0F / 12.0F, 6.0F / 12.0F, 2.0F / 12.0F, 3.0F / 12.0F, -0.0F,
     -0.0625F / 12.0F, -8.0F / 12.0F, -1.0F, -4.0F / 12.0F, -6.0F / 12.0F, -2.0F / 12.0F, -3.0F / 12.0F},
    {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3}};

}  // namespace detail

/// BlockSize weights, 4 + BlockSize / 2 bytes: [absmax: float][two codes a byte, the first in the high nibble].
/// value = table[q] * absmax.
///
/// Encoding follows the implementation of bitsandbytes in PyTorch (backends/default). A tiny weight that is positive
/// gets code 8, which is -0, and one that is negative code 0. The CUDA kernels have other last digits in five of the
/// seven thresholds, and give a tiny weight the zero of its own sign. Source: bitsandbytes.
template <Index BlockSize = 64>
struct FP4 : detail::AbsmaxBlock<detail::fp4_codebook, BlockSize> {
  static constexpr std::string_view name = "FP4";
};

}  // namespace lora::formats
