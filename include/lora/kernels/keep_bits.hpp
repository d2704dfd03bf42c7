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

/// The threshold that drops an element with `probability` in [0, 1]: that fraction of the 2^32 equally likely words is
/// below it. At most 2^32 - 1, so that an element can be kept.
[[nodiscard]] inline std::uint32_t dropout_threshold(double probability) noexcept {
  return static_cast<std::uint32_t>(std::min(probability * 0x1p32 + 0.5, 0x1p32 - 1));
}

/// The factor on kept elements for a threshold: 1 / (fraction kept). It preserves the mean exactly; 1 / (1 -
/// probability) would not, because the threshold is rounded.
[[nodiscard]] inline double kept_scale(std::uint32_t threshold) noexcept {
  return 0x1p32 / (0x1p32 - static_cast<double>(threshold));
}

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

/// High and low words of factor * counter, sixteen at once. The forms with a mask of ones are the plain instructions,
/// without the undefined operand that g++ 12 warns about.
LORA_TARGET_AVX512 LORA_INLINE void multiply_words(__m512i factor, __m512i counter, __m512i& high, __m512i& low) {
  constexpr __mmask8 all = 0xFF;
  constexpr __mmask16 odd_words = 0xAAAA;
  const __m512i even = _mm512_maskz_mul_epu32(all, counter, factor);
  const __m512i odd = _mm512_maskz_mul_epu32(all, _mm512_maskz_srli_epi64(all, counter, 32), factor);
  high = _mm512_mask_blend_epi32(odd_words, _mm512_maskz_srli_epi64(all, even, 32), odd);
  low = _mm512_mask_blend_epi32(odd_words, even, _mm512_maskz_slli_epi64(all, odd, 32));
}

/// The low 32 bits in every lane.
LORA_TARGET_AVX512 LORA_INLINE __m512i low_word(std::uint64_t bits) {
  return _mm512_set1_epi32(static_cast<int>(static_cast<std::uint32_t>(bits)));
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
  const __m512i multiplier0 = low_word(0xD2511F53U);
  const __m512i multiplier1 = low_word(0xCD9E8D57U);
  const __m512i weyl0 = low_word(0x9E3779B9U);
  const __m512i weyl1 = low_word(0xBB67AE85U);
  const __m512i threshold = low_word(keep.threshold);
  __m512i block = _mm512_add_epi32(low_word(keep.first_block),
                                   _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  for (Index i = 0; i < bytes; i += 8) {
    __m512i c0 = block;
    __m512i c1 = low_word(keep.first_block >> 32U);
    __m512i c2 = low_word(keep.stream);
    __m512i c3 = low_word(keep.stream >> 32U);
    __m512i key0 = low_word(keep.seed);
    __m512i key1 = low_word(keep.seed >> 32U);
    for (int round = 0; round < 10; ++round) {
      __m512i high0;
      __m512i low0;
      __m512i high1;
      __m512i low1;
      multiply_words(multiplier0, c0, high0, low0);
      multiply_words(multiplier1, c2, high1, low1);
      c0 = _mm512_xor_si512(_mm512_xor_si512(high1, c1), key0);
      c1 = low1;
      c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), key1);
      c3 = low0;
      key0 = _mm512_add_epi32(key0, weyl0);
      key1 = _mm512_add_epi32(key1, weyl1);
    }
    const std::uint64_t bits = spread_by_four(_mm512_cmpge_epu32_mask(c0, threshold)) |
                               spread_by_four(_mm512_cmpge_epu32_mask(c1, threshold)) << 1U |
                               spread_by_four(_mm512_cmpge_epu32_mask(c2, threshold)) << 2U |
                               spread_by_four(_mm512_cmpge_epu32_mask(c3, threshold)) << 3U;
    std::memcpy(out + i, &bits, static_cast<std::size_t>(std::min<Index>(8, bytes - i)));
    block = _mm512_add_epi32(block, _mm512_set1_epi32(16));
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
