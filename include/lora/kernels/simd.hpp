// SPDX-License-Identifier: MIT
// The vector operations kernels are written in, once per instruction set. Each function carries its instruction set in
// an attribute, so that kernels run at full speed whatever the user's compiler flags.
//
// Simd<Scalar> of each namespace has: Vector, Integers (as wide), lanes, piece, zero, set, load, store, load_first,
// store_first, keep, load_kept, load_pieces, transpose_pieces, fma, add, subtract, sum, any_negative, load_bytes,
// store_bytes. Pointers need no alignment. `first` variants touch only the first `count` lanes in memory
// (0 <= count <= lanes) and read the others as zero; `keep` sets the lanes whose bit is 0 to zero. A piece is 16 bytes,
// `piece` scalars: `load_pieces` fills a vector with pieces that are `stride` scalars apart, and `transpose_pieces`
// transposes, piece by piece, the square that `piece` vectors hold. `registers` is how many vectors the machine holds.
// `bytes` variants store one integer per lane as a byte.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lora/core/types.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/x86.hpp"

#if LORA_NEON_KERNELS
#include <arm_neon.h>
#endif

#define LORA_TARGET_PORTABLE
#define LORA_TARGET_NEON
#define LORA_NOINLINE __attribute__((noinline))

/// Before a loop of constant length over registers: without it arrays of vectors stay in memory.
#if defined(__clang__)
#define LORA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LORA_UNROLL _Pragma("GCC unroll 16")
#endif

/// Hides from the compiler where a value comes from.
#define LORA_OPAQUE(value) __asm__("" : "+r"(value))
#if LORA_X86_KERNELS
#define LORA_OPAQUE_VECTOR(value) __asm__("" : "+x"(value))
#elif LORA_NEON_KERNELS
#define LORA_OPAQUE_VECTOR(value) __asm__("" : "+w"(value))
#else
#define LORA_OPAQUE_VECTOR(value) __asm__("" : "+m"(value))
#endif

namespace lora::kernels::portable {

/// Vectors of 16 bytes, by the compiler's vector extension. Multiplies and adds may or may not be fused.
template <class Scalar>
struct Simd {
  static constexpr int registers = 16;
  static constexpr Index piece = static_cast<Index>(16 / sizeof(Scalar));
  static constexpr Index lanes = static_cast<Index>(16 / sizeof(Scalar));
  using Vector __attribute__((vector_size(16))) = Scalar;
  using Integers __attribute__((vector_size(16))) = std::conditional_t<sizeof(Scalar) == 4, std::int32_t, std::int64_t>;

  LORA_INLINE static Vector zero() { return Vector{}; }
  LORA_INLINE static Vector set(Scalar x) { return Vector{} + x; }
  LORA_INLINE static Vector load(const Scalar* p) {
    Vector v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  LORA_INLINE static void store(Scalar* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
  // Rare, and too long to be unrolled into every tile.
  LORA_NOINLINE static Vector load_first(const Scalar* p, Index count) {
    Vector v{};
    for (Index i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  LORA_NOINLINE static void store_first(Scalar* p, Vector v, Index count) {
    for (Index i = 0; i < count; ++i) p[i] = v[i];
  }
  LORA_INLINE static Vector keep(Vector v, unsigned bits) {
    Integers lane_bit{};
    for (Index i = 0; i < lanes; ++i) lane_bit[i] = 1 << static_cast<int>(i);
    const Integers present = ((Integers{} + static_cast<int>(bits)) & lane_bit) == lane_bit;
    return reinterpret_cast<Vector>(reinterpret_cast<Integers>(v) & present);
  }
  LORA_INLINE static Vector load_kept(const Scalar* p, unsigned bits) { return keep(load(p), bits); }
  LORA_INLINE static Vector fma(Vector a, Vector b, Vector c) {
#if defined(__FAST_MATH__)
    LORA_OPAQUE_VECTOR(b);  // or an unrolled sum is reordered, and a row's bits depend on the batch
    Vector sum = a * b + c;
    LORA_OPAQUE_VECTOR(sum);
    return sum;
#else
    return a * b + c;
#endif
  }
  LORA_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  LORA_INLINE static Vector subtract(Vector a, Vector b) { return a - b; }
  LORA_INLINE static bool any_negative(Vector v) {
    Integers bits;  // -ffast-math does not see the sign of a NaN
    std::memcpy(&bits, &v, sizeof(bits));
    bool any = false;
    for (Index i = 0; i < lanes; ++i) any |= bits[i] < 0;
    return any;
  }
  LORA_INLINE static void store_bytes(std::int8_t* p, Integers v) {
    for (Index i = 0; i < lanes; ++i) p[i] = static_cast<std::int8_t>(v[i]);
  }
  LORA_INLINE static Integers load_bytes(const std::int8_t* p) {
    Integers v{};
    for (Index i = 0; i < lanes; ++i) v[i] = p[i];
    return v;
  }
  LORA_INLINE static Vector load_pieces(const Scalar* p, Index /*stride*/) { return load(p); }
  LORA_INLINE static void transpose_pieces(Vector (&v)[piece]) {
    for (Index i = 0; i < piece; ++i) {
      for (Index j = 0; j < i; ++j) {
        const Scalar other = v[i][j];
        v[i][j] = v[j][i];
        v[j][i] = other;
      }
    }
  }
  LORA_INLINE static Scalar sum(Vector v) {
    Scalar total = v[0];
    for (Index i = 1; i < lanes; ++i) total += v[i];
    return total;
  }
};

}  // namespace lora::kernels::portable

#if LORA_NEON_KERNELS
namespace lora::kernels::neon {

/// The portable vectors, with sums of products that are rounded once.
template <class Scalar>
struct Simd : portable::Simd<Scalar> {
  using Vector = typename portable::Simd<Scalar>::Vector;
  static constexpr int registers = 32;

  LORA_INLINE static Vector fma(Vector a, Vector b, Vector c) {
    if constexpr (sizeof(Scalar) == 4) {
      return reinterpret_cast<Vector>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                                reinterpret_cast<float32x4_t>(b)));
    } else {
      return reinterpret_cast<Vector>(vfmaq_f64(reinterpret_cast<float64x2_t>(c), reinterpret_cast<float64x2_t>(a),
                                                reinterpret_cast<float64x2_t>(b)));
    }
  }
};

}  // namespace lora::kernels::neon
#endif

#if LORA_X86_KERNELS
namespace lora::kernels::avx2 {

template <class Scalar>
struct Simd;

/// Word i of eight words from `first_lanes - count` on has its sign bit set for i < count.
inline constexpr std::int32_t first_lanes_words[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

template <>
struct Simd<float> {
  static constexpr int registers = 16;
  static constexpr Index piece = 4;
  static constexpr Index lanes = 8;
  using Vector = Floats;
  using Integers = Int32s;
  using Unaligned __attribute__((vector_size(32), aligned(4), may_alias)) = float;
  using UnalignedPiece __attribute__((vector_size(16), aligned(4), may_alias)) = float;
  using UnalignedIntegers __attribute__((vector_size(32), aligned(4), may_alias)) = std::int32_t;

  LORA_TARGET_AVX2 LORA_INLINE static Vector zero() { return Vector{}; }
  LORA_TARGET_AVX2 LORA_INLINE static Vector set(float x) { return Vector{x, x, x, x, x, x, x, x}; }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  LORA_TARGET_AVX2 LORA_INLINE static void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  LORA_TARGET_AVX2 LORA_INLINE static Integers first(Index count) {
    return *reinterpret_cast<const UnalignedIntegers*>(first_lanes_words + 8 - count);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load_first(const float* p, Index count) {
    return masked_load(p, first(count));
  }
  LORA_TARGET_AVX2 LORA_INLINE static void store_first(float* p, Vector v, Index count) {
    masked_store(p, first(count), v);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector keep(Vector v, unsigned bits) {
    const Integers lane_bit = {1, 2, 4, 8, 16, 32, 64, 128};
    const Integers present = ((Integers{} + static_cast<int>(bits)) & lane_bit) == lane_bit;
    return reinterpret_cast<Vector>(reinterpret_cast<Integers>(v) & present);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load_kept(const float* p, unsigned bits) { return keep(load(p), bits); }
  LORA_TARGET_AVX2 LORA_INLINE static Vector fma(Vector a, Vector b, Vector c) { return avx2::fma(a, b, c); }
  LORA_TARGET_AVX2 LORA_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  LORA_TARGET_AVX2 LORA_INLINE static Vector subtract(Vector a, Vector b) { return a - b; }
  LORA_TARGET_AVX2 LORA_INLINE static bool any_negative(Vector v) { return signs(v) != 0; }
  LORA_TARGET_AVX2 LORA_INLINE static void store_bytes(std::int8_t* p, Integers v) {
    const __m128i halves = _mm_packs_epi32(reinterpret_cast<__m128i>(__builtin_shufflevector(v, v, 0, 1, 2, 3)),
                                           reinterpret_cast<__m128i>(__builtin_shufflevector(v, v, 4, 5, 6, 7)));
    _mm_storeu_si64(p, _mm_packs_epi16(halves, halves));
  }
  LORA_TARGET_AVX2 LORA_INLINE static Integers load_bytes(const std::int8_t* p) {
    return widen_to_int32(reinterpret_cast<Bytes16>(_mm_loadu_si64(p)));
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load_pieces(const float* p, Index stride) {
    return __builtin_shufflevector(*reinterpret_cast<const UnalignedPiece*>(p),
                                   *reinterpret_cast<const UnalignedPiece*>(p + stride), 0, 1, 2, 3, 4, 5, 6, 7);
  }
  LORA_TARGET_AVX2 LORA_INLINE static void transpose_pieces(Vector (&v)[piece]) {
    const Vector a = __builtin_shufflevector(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vector b = __builtin_shufflevector(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vector c = __builtin_shufflevector(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vector d = __builtin_shufflevector(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    v[1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    v[2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  LORA_TARGET_AVX2 LORA_INLINE static float sum(Vector v) {
    return sum_of_pieces(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  }
  /// (p0 + p2) + (p1 + p3).
  LORA_TARGET_AVX2 LORA_INLINE static float sum_of_pieces(UnalignedPiece p) { return (p[0] + p[2]) + (p[1] + p[3]); }
};

template <>
struct Simd<double> {
  static constexpr int registers = 16;
  static constexpr Index piece = 2;
  static constexpr Index lanes = 4;
  using Vector = Doubles;
  using Integers = Int64s;
  using Unaligned __attribute__((vector_size(32), aligned(8), may_alias)) = double;
  using UnalignedPiece __attribute__((vector_size(16), aligned(8), may_alias)) = double;
  using UnalignedIntegers __attribute__((vector_size(32), aligned(4), may_alias)) = std::int64_t;

  LORA_TARGET_AVX2 LORA_INLINE static Vector zero() { return Vector{}; }
  LORA_TARGET_AVX2 LORA_INLINE static Vector set(double x) { return Vector{x, x, x, x}; }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load(const double* p) { return *reinterpret_cast<const Unaligned*>(p); }
  LORA_TARGET_AVX2 LORA_INLINE static void store(double* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  LORA_TARGET_AVX2 LORA_INLINE static Integers first(Index count) {
    return *reinterpret_cast<const UnalignedIntegers*>(first_lanes_words + 8 - 2 * count);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load_first(const double* p, Index count) {
    return masked_load(p, first(count));
  }
  LORA_TARGET_AVX2 LORA_INLINE static void store_first(double* p, Vector v, Index count) {
    masked_store(p, first(count), v);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector keep(Vector v, unsigned bits) {
    const Integers lane_bit = {1, 2, 4, 8};
    const Integers present = ((Integers{} + static_cast<int>(bits)) & lane_bit) == lane_bit;
    return reinterpret_cast<Vector>(reinterpret_cast<Integers>(v) & present);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load_kept(const double* p, unsigned bits) { return keep(load(p), bits); }
  LORA_TARGET_AVX2 LORA_INLINE static Vector fma(Vector a, Vector b, Vector c) { return avx2::fma(a, b, c); }
  LORA_TARGET_AVX2 LORA_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  LORA_TARGET_AVX2 LORA_INLINE static Vector subtract(Vector a, Vector b) { return a - b; }
  LORA_TARGET_AVX2 LORA_INLINE static bool any_negative(Vector v) { return signs(v) != 0; }
  LORA_TARGET_AVX2 LORA_INLINE static void store_bytes(std::int8_t* p, Integers v) {
    for (Index i = 0; i < lanes; ++i) p[i] = static_cast<std::int8_t>(v[i]);
  }
  LORA_TARGET_AVX2 LORA_INLINE static Integers load_bytes(const std::int8_t* p) {
    std::int32_t bytes = 0;
    std::memcpy(&bytes, p, sizeof(bytes));
    return widen_to_int64(reinterpret_cast<Bytes16>(_mm_cvtsi32_si128(bytes)));
  }
  LORA_TARGET_AVX2 LORA_INLINE static Vector load_pieces(const double* p, Index stride) {
    return __builtin_shufflevector(*reinterpret_cast<const UnalignedPiece*>(p),
                                   *reinterpret_cast<const UnalignedPiece*>(p + stride), 0, 1, 2, 3);
  }
  LORA_TARGET_AVX2 LORA_INLINE static void transpose_pieces(Vector (&v)[piece]) {
    const Vector a = v[0];
    v[0] = __builtin_shufflevector(a, v[1], 0, 4, 2, 6);
    v[1] = __builtin_shufflevector(a, v[1], 1, 5, 3, 7);
  }
  LORA_TARGET_AVX2 LORA_INLINE static double sum(Vector v) { return (v[0] + v[2]) + (v[1] + v[3]); }
};

}  // namespace lora::kernels::avx2

namespace lora::kernels::avx512 {

template <class Scalar>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int registers = 32;
  static constexpr Index piece = 4;
  static constexpr Index lanes = 16;
  using Vector = Floats;
  using Integers = Int32s;
  using Unaligned __attribute__((vector_size(64), aligned(4), may_alias)) = float;
  using UnalignedBytes __attribute__((vector_size(16), aligned(1), may_alias)) = char;

  LORA_TARGET_AVX512 LORA_INLINE static Vector zero() { return Vector{}; }
  LORA_TARGET_AVX512 LORA_INLINE static Vector set(float x) {
    return Vector{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  LORA_TARGET_AVX512 LORA_INLINE static void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  LORA_TARGET_AVX512 LORA_INLINE static Mask16 first(Index count) {
    return static_cast<Mask16>((1U << static_cast<unsigned>(count)) - 1U);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load_first(const float* p, Index count) {
    return masked_load(p, first(count));
  }
  LORA_TARGET_AVX512 LORA_INLINE static void store_first(float* p, Vector v, Index count) {
    masked_store(p, first(count), v);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector keep(Vector v, unsigned bits) {
    return masked(static_cast<Mask16>(bits), v);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load_kept(const float* p, unsigned bits) {
    return masked_load(p, static_cast<Mask16>(bits));
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector fma(Vector a, Vector b, Vector c) { return avx512::fma(a, b, c); }
  LORA_TARGET_AVX512 LORA_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  LORA_TARGET_AVX512 LORA_INLINE static Vector subtract(Vector a, Vector b) { return a - b; }
  LORA_TARGET_AVX512 LORA_INLINE static bool any_negative(Vector v) { return signs(v) != 0; }
  LORA_TARGET_AVX512 LORA_INLINE static void store_bytes(std::int8_t* p, Integers v) {
    *reinterpret_cast<UnalignedBytes*>(p) = low_bytes(v);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Integers load_bytes(const std::int8_t* p) {
    return widen_to_int32(*reinterpret_cast<const UnalignedBytes*>(p));
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load_pieces(const float* p, Index stride) {
    using Half = avx2::Simd<float>;
    return __builtin_shufflevector(Half::load_pieces(p, stride), Half::load_pieces(p + 2 * stride, stride), 0, 1, 2, 3,
                                   4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  LORA_TARGET_AVX512 LORA_INLINE static void transpose_pieces(Vector (&v)[piece]) {
    const Vector a = __builtin_shufflevector(v[0], v[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const Vector b = __builtin_shufflevector(v[0], v[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const Vector c = __builtin_shufflevector(v[2], v[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const Vector d = __builtin_shufflevector(v[2], v[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    v[1] = __builtin_shufflevector(a, c, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    v[2] = __builtin_shufflevector(b, d, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  LORA_TARGET_AVX512 LORA_INLINE static float sum(Vector v) {
    return avx2::Simd<float>::sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  }
};

template <>
struct Simd<double> {
  static constexpr int registers = 32;
  static constexpr Index piece = 2;
  static constexpr Index lanes = 8;
  using Vector = Doubles;
  using Integers = Int64s;
  using Unaligned __attribute__((vector_size(64), aligned(8), may_alias)) = double;

  LORA_TARGET_AVX512 LORA_INLINE static Vector zero() { return Vector{}; }
  LORA_TARGET_AVX512 LORA_INLINE static Vector set(double x) { return Vector{x, x, x, x, x, x, x, x}; }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load(const double* p) { return *reinterpret_cast<const Unaligned*>(p); }
  LORA_TARGET_AVX512 LORA_INLINE static void store(double* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  LORA_TARGET_AVX512 LORA_INLINE static Mask8 first(Index count) {
    return static_cast<Mask8>((1U << static_cast<unsigned>(count)) - 1U);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load_first(const double* p, Index count) {
    return masked_load(p, first(count));
  }
  LORA_TARGET_AVX512 LORA_INLINE static void store_first(double* p, Vector v, Index count) {
    masked_store(p, first(count), v);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector keep(Vector v, unsigned bits) {
    return masked(static_cast<Mask8>(bits), v);
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load_kept(const double* p, unsigned bits) {
    return masked_load(p, static_cast<Mask8>(bits));
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector fma(Vector a, Vector b, Vector c) { return avx512::fma(a, b, c); }
  LORA_TARGET_AVX512 LORA_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  LORA_TARGET_AVX512 LORA_INLINE static Vector subtract(Vector a, Vector b) { return a - b; }
  LORA_TARGET_AVX512 LORA_INLINE static bool any_negative(Vector v) { return signs(v) != 0; }
  LORA_TARGET_AVX512 LORA_INLINE static void store_bytes(std::int8_t* p, Integers v) {
    _mm_storeu_si64(p, reinterpret_cast<__m128i>(low_bytes(v)));
  }
  LORA_TARGET_AVX512 LORA_INLINE static Integers load_bytes(const std::int8_t* p) {
    return widen_to_int64(reinterpret_cast<Bytes16>(_mm_loadu_si64(p)));
  }
  LORA_TARGET_AVX512 LORA_INLINE static Vector load_pieces(const double* p, Index stride) {
    using Half = avx2::Simd<double>;
    return __builtin_shufflevector(Half::load_pieces(p, stride), Half::load_pieces(p + 2 * stride, stride), 0, 1, 2, 3,
                                   4, 5, 6, 7);
  }
  LORA_TARGET_AVX512 LORA_INLINE static void transpose_pieces(Vector (&v)[piece]) {
    const Vector a = v[0];
    v[0] = __builtin_shufflevector(a, v[1], 0, 8, 2, 10, 4, 12, 6, 14);
    v[1] = __builtin_shufflevector(a, v[1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  LORA_TARGET_AVX512 LORA_INLINE static double sum(Vector v) {
    return avx2::Simd<double>::sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) +
                                   __builtin_shufflevector(v, v, 4, 5, 6, 7));
  }
};

}  // namespace lora::kernels::avx512
#endif
