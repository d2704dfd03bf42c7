// SPDX-License-Identifier: MIT
// The x86 instructions that the compiler's vector extension cannot express. Everything else in the kernels is written
// with the operators of vector types.
//
// <immintrin.h> declares some five thousand functions and costs g++ more time than all other headers of a layer, and
// clang a tenth of the whole library. So the few instructions needed are named here, for the versions of g++ and clang
// whose builtins are known; other compilers take them from <immintrin.h>.
#pragma once

#include <cstdint>

#include "lora/kernels/isa.hpp"

#define LORA_INLINE __attribute__((always_inline)) inline

#if LORA_X86_KERNELS
#include <emmintrin.h>

#if (defined(__clang__) && __clang_major__ <= 14) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ <= 14)
#define LORA_X86_BUILTINS 1
#else
#define LORA_X86_BUILTINS 0
#include <immintrin.h>
#endif

#define LORA_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define LORA_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))

namespace lora::kernels::x86 {

using Bytes16 __attribute__((vector_size(16))) = char;

/// Sixteen or eight lanes, one bit each.
using Mask16 = std::uint16_t;
using Mask8 = std::uint8_t;

}  // namespace lora::kernels::x86

namespace lora::kernels::avx2 {

using Floats __attribute__((vector_size(32))) = float;
using Doubles __attribute__((vector_size(32))) = double;
using Int32s __attribute__((vector_size(32))) = std::int32_t;
using Int64s __attribute__((vector_size(32))) = std::int64_t;
using x86::Bytes16;

#if LORA_X86_BUILTINS
using LongLongs __attribute__((vector_size(32))) = long long;

/// a * b + c, rounded once.
LORA_TARGET_AVX2 LORA_INLINE Floats fma(Floats a, Floats b, Floats c) { return __builtin_ia32_vfmaddps256(a, b, c); }
LORA_TARGET_AVX2 LORA_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
  return __builtin_ia32_vfmaddpd256(a, b, c);
}
/// The lanes whose mask is negative; zero, and no access to memory, in the others.
LORA_TARGET_AVX2 LORA_INLINE Floats masked_load(const float* p, Int32s mask) {
  return __builtin_ia32_maskloadps256(reinterpret_cast<const Floats*>(p), mask);
}
LORA_TARGET_AVX2 LORA_INLINE Doubles masked_load(const double* p, Int64s mask) {
  return __builtin_ia32_maskloadpd256(reinterpret_cast<const Doubles*>(p), reinterpret_cast<LongLongs>(mask));
}
LORA_TARGET_AVX2 LORA_INLINE void masked_store(float* p, Int32s mask, Floats v) {
  __builtin_ia32_maskstoreps256(reinterpret_cast<Floats*>(p), mask, v);
}
LORA_TARGET_AVX2 LORA_INLINE void masked_store(double* p, Int64s mask, Doubles v) {
  __builtin_ia32_maskstorepd256(reinterpret_cast<Doubles*>(p), reinterpret_cast<LongLongs>(mask), v);
}
/// The signs, one bit a lane.
LORA_TARGET_AVX2 LORA_INLINE int signs(Floats v) { return __builtin_ia32_movmskps256(v); }
LORA_TARGET_AVX2 LORA_INLINE int signs(Doubles v) { return __builtin_ia32_movmskpd256(v); }
/// v[index mod 8] in each lane.
LORA_TARGET_AVX2 LORA_INLINE Floats permute(Floats v, Int32s index) { return __builtin_ia32_permvarsf256(v, index); }
/// The first bytes, each widened with its sign.
#if defined(__clang__)
LORA_TARGET_AVX2 LORA_INLINE Int32s widen_to_int32(Bytes16 bytes) {
  return __builtin_convertvector(__builtin_shufflevector(bytes, bytes, 0, 1, 2, 3, 4, 5, 6, 7), Int32s);
}
LORA_TARGET_AVX2 LORA_INLINE Int64s widen_to_int64(Bytes16 bytes) {
  return __builtin_convertvector(__builtin_shufflevector(bytes, bytes, 0, 1, 2, 3), Int64s);
}
#else
LORA_TARGET_AVX2 LORA_INLINE Int32s widen_to_int32(Bytes16 bytes) { return __builtin_ia32_pmovsxbd256(bytes); }
LORA_TARGET_AVX2 LORA_INLINE Int64s widen_to_int64(Bytes16 bytes) {
  return reinterpret_cast<Int64s>(__builtin_ia32_pmovsxbq256(bytes));
}
#endif
#else
LORA_TARGET_AVX2 LORA_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
LORA_TARGET_AVX2 LORA_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
LORA_TARGET_AVX2 LORA_INLINE Floats masked_load(const float* p, Int32s mask) {
  return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask));
}
LORA_TARGET_AVX2 LORA_INLINE Doubles masked_load(const double* p, Int64s mask) {
  return _mm256_maskload_pd(p, reinterpret_cast<__m256i>(mask));
}
LORA_TARGET_AVX2 LORA_INLINE void masked_store(float* p, Int32s mask, Floats v) {
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask), v);
}
LORA_TARGET_AVX2 LORA_INLINE void masked_store(double* p, Int64s mask, Doubles v) {
  _mm256_maskstore_pd(p, reinterpret_cast<__m256i>(mask), v);
}
LORA_TARGET_AVX2 LORA_INLINE int signs(Floats v) { return _mm256_movemask_ps(v); }
LORA_TARGET_AVX2 LORA_INLINE int signs(Doubles v) { return _mm256_movemask_pd(v); }
LORA_TARGET_AVX2 LORA_INLINE Floats permute(Floats v, Int32s index) {
  return _mm256_permutevar8x32_ps(v, reinterpret_cast<__m256i>(index));
}
LORA_TARGET_AVX2 LORA_INLINE Int32s widen_to_int32(Bytes16 bytes) {
  return reinterpret_cast<Int32s>(_mm256_cvtepi8_epi32(reinterpret_cast<__m128i>(bytes)));
}
LORA_TARGET_AVX2 LORA_INLINE Int64s widen_to_int64(Bytes16 bytes) {
  return reinterpret_cast<Int64s>(_mm256_cvtepi8_epi64(reinterpret_cast<__m128i>(bytes)));
}
#endif

}  // namespace lora::kernels::avx2

namespace lora::kernels::avx512 {

using Floats __attribute__((vector_size(64))) = float;
using Doubles __attribute__((vector_size(64))) = double;
using Int32s __attribute__((vector_size(64))) = std::int32_t;
using Int64s __attribute__((vector_size(64))) = std::int64_t;
using Uint32s __attribute__((vector_size(64))) = std::uint32_t;
using Uint64s __attribute__((vector_size(64))) = std::uint64_t;
using Halves __attribute__((vector_size(32))) = short;
using x86::Bytes16;
using x86::Mask16;
using x86::Mask8;

// The forms with a mask of ones are the plain instructions, without the undefined operand that g++ 12 warns about.
inline constexpr Mask16 all16 = 0xFFFF;
inline constexpr Mask8 all8 = 0xFF;

#if LORA_X86_BUILTINS
using LongLongs __attribute__((vector_size(64))) = long long;
inline constexpr int current_rounding = 4;
inline constexpr int greater_or_equal = 5;

/// a * b + c, rounded once.
LORA_TARGET_AVX512 LORA_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return __builtin_ia32_vfmaddps512_mask(a, b, c, all16, current_rounding);
}
LORA_TARGET_AVX512 LORA_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
  return __builtin_ia32_vfmaddpd512_mask(a, b, c, all8, current_rounding);
}
/// The lanes whose bit is set; zero, and no access to memory, in the others.
LORA_TARGET_AVX512 LORA_INLINE Floats masked_load(const float* p, Mask16 mask) {
  return __builtin_ia32_loadups512_mask(p, Floats{}, mask);
}
LORA_TARGET_AVX512 LORA_INLINE Doubles masked_load(const double* p, Mask8 mask) {
  return __builtin_ia32_loadupd512_mask(p, Doubles{}, mask);
}
LORA_TARGET_AVX512 LORA_INLINE void masked_store(float* p, Mask16 mask, Floats v) {
  __builtin_ia32_storeups512_mask(p, v, mask);
}
LORA_TARGET_AVX512 LORA_INLINE void masked_store(double* p, Mask8 mask, Doubles v) {
  __builtin_ia32_storeupd512_mask(p, v, mask);
}
/// The signs, one bit a lane.
LORA_TARGET_AVX512 LORA_INLINE Mask16 signs(Floats v) {
  return static_cast<Mask16>(__builtin_ia32_cvtd2mask512(reinterpret_cast<Int32s>(v)));
}
LORA_TARGET_AVX512 LORA_INLINE Mask8 signs(Doubles v) {
  return static_cast<Mask8>(__builtin_ia32_cvtq2mask512(reinterpret_cast<LongLongs>(v)));
}
/// The low byte of each lane; zeros fill the 16 bytes.
LORA_TARGET_AVX512 LORA_INLINE Bytes16 low_bytes(Int32s v) {
  return __builtin_ia32_pmovdb512_mask(v, Bytes16{}, all16);
}
LORA_TARGET_AVX512 LORA_INLINE Bytes16 low_bytes(Int64s v) {
  return __builtin_ia32_pmovqb512_mask(reinterpret_cast<LongLongs>(v), Bytes16{}, all8);
}
/// The values of F16 numbers; a signalling NaN becomes a quiet one.
LORA_TARGET_AVX512 LORA_INLINE Floats floats_of_f16(Halves halves) {
  return __builtin_ia32_vcvtph2ps512_mask(halves, Floats{}, all16, current_rounding);
}
/// Whether a >= b, one bit a lane.
LORA_TARGET_AVX512 LORA_INLINE Mask16 at_least(Uint32s a, Uint32s b) {
  return static_cast<Mask16>(
      __builtin_ia32_ucmpd512_mask(reinterpret_cast<Int32s>(a), reinterpret_cast<Int32s>(b), greater_or_equal, all16));
}
#if defined(__clang__)
/// `v` where the mask's bit is set, and zero elsewhere.
LORA_TARGET_AVX512 LORA_INLINE Floats masked(Mask16 mask, Floats v) {
  return __builtin_ia32_selectps_512(mask, v, Floats{});
}
LORA_TARGET_AVX512 LORA_INLINE Doubles masked(Mask8 mask, Doubles v) {
  return __builtin_ia32_selectpd_512(mask, v, Doubles{});
}
/// v[index mod 16] in each lane.
LORA_TARGET_AVX512 LORA_INLINE Floats permute(Floats v, Int32s index) { return __builtin_ia32_permvarsf512(v, index); }
/// The first bytes, each widened with its sign.
LORA_TARGET_AVX512 LORA_INLINE Int32s widen_to_int32(Bytes16 bytes) { return __builtin_convertvector(bytes, Int32s); }
LORA_TARGET_AVX512 LORA_INLINE Int64s widen_to_int64(Bytes16 bytes) {
  return __builtin_convertvector(__builtin_shufflevector(bytes, bytes, 0, 1, 2, 3, 4, 5, 6, 7), Int64s);
}
/// The products, of 64 bits, of the lanes 0, 2, ..., 14.
LORA_TARGET_AVX512 LORA_INLINE Uint64s multiply_even(Uint32s a, Uint32s b) {
  return reinterpret_cast<Uint64s>(__builtin_ia32_pmuludq512(reinterpret_cast<Int32s>(a), reinterpret_cast<Int32s>(b)));
}
#else
LORA_TARGET_AVX512 LORA_INLINE Floats masked(Mask16 mask, Floats v) {
  return __builtin_ia32_movaps512_mask(v, Floats{}, mask);
}
LORA_TARGET_AVX512 LORA_INLINE Doubles masked(Mask8 mask, Doubles v) {
  return __builtin_ia32_movapd512_mask(v, Doubles{}, mask);
}
LORA_TARGET_AVX512 LORA_INLINE Floats permute(Floats v, Int32s index) {
  return __builtin_ia32_permvarsf512_mask(v, index, Floats{}, all16);
}
LORA_TARGET_AVX512 LORA_INLINE Int32s widen_to_int32(Bytes16 bytes) {
  return __builtin_ia32_pmovsxbd512_mask(bytes, Int32s{}, all16);
}
LORA_TARGET_AVX512 LORA_INLINE Int64s widen_to_int64(Bytes16 bytes) {
  return reinterpret_cast<Int64s>(__builtin_ia32_pmovsxbq512_mask(bytes, LongLongs{}, all8));
}
LORA_TARGET_AVX512 LORA_INLINE Uint64s multiply_even(Uint32s a, Uint32s b) {
  return reinterpret_cast<Uint64s>(
      __builtin_ia32_pmuludq512_mask(reinterpret_cast<Int32s>(a), reinterpret_cast<Int32s>(b), LongLongs{}, all8));
}
#endif
#else
LORA_TARGET_AVX512 LORA_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
LORA_TARGET_AVX512 LORA_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
LORA_TARGET_AVX512 LORA_INLINE Floats masked_load(const float* p, Mask16 mask) {
  return _mm512_maskz_loadu_ps(mask, p);
}
LORA_TARGET_AVX512 LORA_INLINE Doubles masked_load(const double* p, Mask8 mask) {
  return _mm512_maskz_loadu_pd(mask, p);
}
LORA_TARGET_AVX512 LORA_INLINE void masked_store(float* p, Mask16 mask, Floats v) { _mm512_mask_storeu_ps(p, mask, v); }
LORA_TARGET_AVX512 LORA_INLINE void masked_store(double* p, Mask8 mask, Doubles v) {
  _mm512_mask_storeu_pd(p, mask, v);
}
LORA_TARGET_AVX512 LORA_INLINE Floats masked(Mask16 mask, Floats v) { return _mm512_maskz_mov_ps(mask, v); }
LORA_TARGET_AVX512 LORA_INLINE Doubles masked(Mask8 mask, Doubles v) { return _mm512_maskz_mov_pd(mask, v); }
LORA_TARGET_AVX512 LORA_INLINE Mask16 signs(Floats v) { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v)); }
LORA_TARGET_AVX512 LORA_INLINE Mask8 signs(Doubles v) { return _mm512_movepi64_mask(reinterpret_cast<__m512i>(v)); }
LORA_TARGET_AVX512 LORA_INLINE Bytes16 low_bytes(Int32s v) {
  return reinterpret_cast<Bytes16>(_mm512_maskz_cvtepi32_epi8(all16, reinterpret_cast<__m512i>(v)));
}
LORA_TARGET_AVX512 LORA_INLINE Bytes16 low_bytes(Int64s v) {
  return reinterpret_cast<Bytes16>(_mm512_maskz_cvtepi64_epi8(all8, reinterpret_cast<__m512i>(v)));
}
LORA_TARGET_AVX512 LORA_INLINE Floats floats_of_f16(Halves halves) {
  return _mm512_maskz_cvtph_ps(all16, reinterpret_cast<__m256i>(halves));
}
LORA_TARGET_AVX512 LORA_INLINE Floats permute(Floats v, Int32s index) {
  return _mm512_maskz_permutexvar_ps(all16, reinterpret_cast<__m512i>(index), v);
}
LORA_TARGET_AVX512 LORA_INLINE Int32s widen_to_int32(Bytes16 bytes) {
  return reinterpret_cast<Int32s>(_mm512_maskz_cvtepi8_epi32(all16, reinterpret_cast<__m128i>(bytes)));
}
LORA_TARGET_AVX512 LORA_INLINE Int64s widen_to_int64(Bytes16 bytes) {
  return reinterpret_cast<Int64s>(_mm512_maskz_cvtepi8_epi64(all8, reinterpret_cast<__m128i>(bytes)));
}
LORA_TARGET_AVX512 LORA_INLINE Uint64s multiply_even(Uint32s a, Uint32s b) {
  return reinterpret_cast<Uint64s>(
      _mm512_maskz_mul_epu32(all8, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
LORA_TARGET_AVX512 LORA_INLINE Mask16 at_least(Uint32s a, Uint32s b) {
  return _mm512_cmpge_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
#endif

}  // namespace lora::kernels::avx512
#endif
