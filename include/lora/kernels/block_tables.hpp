// SPDX-License-Identifier: MIT
// Words as wide as vectors of floats, and tables of sixteen floats in registers, for each instruction set.
//
// Table16: fill(table) takes sixteen floats, at(index) chooses among them by the low four bits of each word.
// FourBits: after fill(), at(word) is the low four bits of each word as a float.
// load_octets: bytes, each as a word.
// F16Instruction: whether the set has an instruction that converts F16 numbers, and the two uses of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lora/core/types.hpp"
#include "lora/format/formats.hpp"
#include "lora/kernels/simd.hpp"

namespace lora::kernels {

/// What the 16 codes of a format stand for, in units of its scale.
using CodeValues = std::array<float, 16>;

inline constexpr CodeValues q4_0_table = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

inline constexpr CodeValues mxfp4_table = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline constexpr CodeValues iq4_table = [] {
  CodeValues values{};
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = formats::detail::iq4_values[i];
  return values;
}();

}  // namespace lora::kernels

namespace lora::kernels::portable {

using Words __attribute__((vector_size(16))) = std::uint32_t;
using SignedWords __attribute__((vector_size(16))) = std::int32_t;

struct Table16 {
  const float* values;

  LORA_INLINE void fill(const float* table) { values = table; }
  LORA_INLINE Simd<float>::Vector at(Words index) const {
    Simd<float>::Vector result{};
    for (int i = 0; i < 4; ++i) result[i] = values[index[i] & 15U];
    return result;
  }
};

struct FourBits {
  LORA_INLINE void fill() {}
  LORA_INLINE static Simd<float>::Vector at(Words word) {
    return __builtin_convertvector(reinterpret_cast<SignedWords>(word & 15U), Simd<float>::Vector);
  }
};

LORA_INLINE Words load_octets(const std::uint8_t* p) { return Words{p[0], p[1], p[2], p[3]}; }

struct F16Instruction {
  static constexpr bool exists = false;
};

}  // namespace lora::kernels::portable

#if LORA_NEON_KERNELS
namespace lora::kernels::neon {

using portable::FourBits;
using portable::load_octets;
using portable::SignedWords;
using portable::Words;

struct Table16 {
  uint8x16x4_t bytes;

  LORA_INLINE void fill(const float* table) {
    for (int i = 0; i < 4; ++i) bytes.val[i] = vreinterpretq_u8_f32(vld1q_f32(table + 4 * i));
  }
  LORA_INLINE Simd<float>::Vector at(Words index) const {
    const Words first_bytes = (index & 15U) * 0x04040404U + 0x03020100U;
    return reinterpret_cast<Simd<float>::Vector>(vqtbl4q_u8(bytes, reinterpret_cast<uint8x16_t>(first_bytes)));
  }
};

struct F16Instruction {
  static constexpr bool exists = true;

  LORA_INLINE static Simd<float>::Vector load(const std::uint8_t* p) {
    return reinterpret_cast<Simd<float>::Vector>(vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))));
  }
  LORA_INLINE static Simd<float>::Vector convert(Words halves) {
    return reinterpret_cast<Simd<float>::Vector>(
        vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(reinterpret_cast<uint32x4_t>(halves)))));
  }
};

}  // namespace lora::kernels::neon
#endif

#if LORA_X86_KERNELS
namespace lora::kernels::avx2 {

using Words __attribute__((vector_size(32))) = std::uint32_t;
using SignedWords = Int32s;

struct Table16 {
  Floats low;
  Floats high;

  LORA_TARGET_AVX2 LORA_INLINE void fill(const float* table) {
    low = Simd<float>::load(table);
    high = Simd<float>::load(table + 8);
  }
  LORA_TARGET_AVX2 LORA_INLINE Floats at(Words index) const {
    const auto upper = reinterpret_cast<SignedWords>(index << 28) < 0;
    const auto places = reinterpret_cast<SignedWords>(index);
    return upper ? permute(high, places) : permute(low, places);
  }
};

struct FourBits {
  LORA_TARGET_AVX2 LORA_INLINE void fill() {}
  LORA_TARGET_AVX2 LORA_INLINE static Floats at(Words word) {
    return __builtin_convertvector(reinterpret_cast<SignedWords>(word & 15U), Floats);
  }
};

LORA_TARGET_AVX2 LORA_INLINE Words load_octets(const std::uint8_t* p) {
  return Words{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]};
}

/// F16C is an extension of its own.
struct F16Instruction {
  static constexpr bool exists = false;
};

}  // namespace lora::kernels::avx2

namespace lora::kernels::avx512 {

using Words = Uint32s;
using SignedWords = Int32s;

struct Table16 {
  Floats values;

  LORA_TARGET_AVX512 LORA_INLINE void fill(const float* table) { values = Simd<float>::load(table); }
  LORA_TARGET_AVX512 LORA_INLINE Floats at(Words index) const {
    return permute(values, reinterpret_cast<SignedWords>(index));
  }
};

/// A permutation of a table is one instruction; a mask and a conversion are two.
struct FourBits {
  Table16 table;

  LORA_TARGET_AVX512 LORA_INLINE void fill() {
    static constexpr CodeValues values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    table.fill(values.data());
  }
  LORA_TARGET_AVX512 LORA_INLINE Floats at(Words word) const { return table.at(word); }
};

LORA_TARGET_AVX512 LORA_INLINE Words load_octets(const std::uint8_t* p) {
  using Unaligned __attribute__((vector_size(16), aligned(1), may_alias)) = char;
  return reinterpret_cast<Words>(widen_to_int32(*reinterpret_cast<const Unaligned*>(p))) & 255U;
}

struct F16Instruction {
  static constexpr bool exists = true;
  using Unaligned __attribute__((vector_size(32), aligned(1), may_alias)) = short;

  LORA_TARGET_AVX512 LORA_INLINE static Floats load(const std::uint8_t* p) {
    return floats_of_f16(*reinterpret_cast<const Unaligned*>(p));
  }
  LORA_TARGET_AVX512 LORA_INLINE static Floats convert(Words halves) {
    return floats_of_f16(__builtin_convertvector(halves, Halves));
  }
};

}  // namespace lora::kernels::avx512
#endif
