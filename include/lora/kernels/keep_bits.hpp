// SPDX-License-Identifier: MIT
// Dropout bits: which words of a Philox stream reach a threshold.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "lora/core/philox.hpp"
#include "lora/core/types.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/simd.hpp"

namespace lora::kernels {

/// Compares the words of consecutive blocks of a RandomStream, from `first_block` on, with a threshold. The low 30 bits
/// of the block numbers must not overflow: (first_block mod 2^30) + number of blocks <= 2^30.
struct KeepBits {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;
  std::uint64_t first_block = 0;
  std::uint32_t threshold = 0;
};

/// Fills `bytes` bytes: bit b of byte i is 1 iff word 8 i + b, counted from the first block, is at least the threshold.
/// Every kernel gives the same bits. No allocation.
using KeepBitsKernel = void (*)(const KeepBits& keep, Index bytes, std::uint8_t* out);

inline void keep_bits_portable(const KeepBits& keep, Index bytes, std::uint8_t* out) {
  const RandomStream stream(keep.seed, keep.stream);
  for (Index i = 0; i < bytes; ++i) {
    unsigned byte = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const auto words = stream.block(keep.first_block + 2 * static_cast<std::uint64_t>(i) + half);
      for (unsigned w = 0; w < 4; ++w) byte |= static_cast<unsigned>(words[w] >= keep.threshold) << (half * 4 + w);
    }
    out[i] = static_cast<std::uint8_t>(byte);
  }
}

#if LORA_X86_KERNELS
namespace avx512 {

/// High and low words of factor * counter, sixteen at once.
LORA_TARGET_AVX512 LORA_INLINE void multiply_words(Uint32s factor, Uint32s counter, Uint32s& high, Uint32s& low) {
  const auto even = reinterpret_cast<Uint32s>(multiply_even(counter, factor));
  const Uint64s odd_counter = reinterpret_cast<Uint64s>(counter) >> 32;
  const auto odd = reinterpret_cast<Uint32s>(multiply_even(reinterpret_cast<Uint32s>(odd_counter), factor));
  low = __builtin_shufflevector(even, odd, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
  high = __builtin_shufflevector(even, odd, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/// The low 32 bits in every lane.
LORA_TARGET_AVX512 LORA_INLINE Uint32s low_word(std::uint64_t bits) {
  return Uint32s{} + static_cast<std::uint32_t>(bits);
}

/// Bit i of `bits` becomes bit 4 i of the result.
[[nodiscard]] constexpr std::uint64_t spread_by_four(std::uint64_t bits) noexcept {
  bits = (bits | bits << 24U) & 0x000000FF000000FFU;
  bits = (bits | bits << 12U) & 0x000F000F000F000FU;
  bits = (bits | bits << 6U) & 0x0303030303030303U;
  return (bits | bits << 3U) & 0x1111111111111111U;
}

/// Sixteen blocks of Philox4x32-10 per iteration: 64 bits.
LORA_TARGET_AVX512 inline void keep_bits(const KeepBits& keep, Index bytes, std::uint8_t* out) {
  const Uint32s multiplier0 = low_word(0xD2511F53U);
  const Uint32s multiplier1 = low_word(0xCD9E8D57U);
  const Uint32s weyl0 = low_word(0x9E3779B9U);
  const Uint32s weyl1 = low_word(0xBB67AE85U);
  const Uint32s threshold = low_word(keep.threshold);
  Uint32s block = low_word(keep.first_block) + Uint32s{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (Index i = 0; i < bytes; i += 8) {
    Uint32s c0 = block;
    Uint32s c1 = low_word(keep.first_block >> 32U);
    Uint32s c2 = low_word(keep.stream);
    Uint32s c3 = low_word(keep.stream >> 32U);
    Uint32s key0 = low_word(keep.seed);
    Uint32s key1 = low_word(keep.seed >> 32U);
    for (int round = 0; round < 10; ++round) {
      Uint32s high0;
      Uint32s low0;
      Uint32s high1;
      Uint32s low1;
      multiply_words(multiplier0, c0, high0, low0);
      multiply_words(multiplier1, c2, high1, low1);
      c0 = high1 ^ c1 ^ key0;
      c1 = low1;
      c2 = high0 ^ c3 ^ key1;
      c3 = low0;
      key0 += weyl0;
      key1 += weyl1;
    }
    const std::uint64_t bits = spread_by_four(at_least(c0, threshold)) | spread_by_four(at_least(c1, threshold)) << 1U |
                               spread_by_four(at_least(c2, threshold)) << 2U |
                               spread_by_four(at_least(c3, threshold)) << 3U;
    std::memcpy(out + i, &bits, static_cast<std::size_t>(std::min<Index>(8, bytes - i)));
    block += 16;
  }
}

}  // namespace avx512
#endif

/// The kernel for `isa`, which this machine supports.
[[nodiscard]] inline KeepBitsKernel keep_bits_kernel(Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return &avx512::keep_bits;
#endif
  static_cast<void>(isa);
  return &keep_bits_portable;
}

}  // namespace lora::kernels
