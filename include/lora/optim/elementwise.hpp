// SPDX-License-Identifier: MIT
// Packs of scalars for loops over whole arrays: fast even at -O2, and cheap to compile.
#pragma once

#include <cmath>
#include <cstring>

#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"

// Including all x86 intrinsics costs half a second.
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// At -O2 compilers do not unroll such small loops by themselves.
#if defined(__clang__)
#define LORA_UNROLL_BY_FOUR _Pragma("unroll 4")
#else
#define LORA_UNROLL_BY_FOUR _Pragma("GCC unroll 4")
#endif

namespace lora::detail {

/// The same with every flag, so that translation units with different flags agree.
inline constexpr int pack_bytes = 16;

/// Several scalars in a register. Arithmetic uses the compiler's vector types.
template <class Scalar, int bytes = pack_bytes>
struct Pack {
  using Type __attribute__((vector_size(bytes))) = Scalar;
  static constexpr Index lanes = bytes / static_cast<int>(sizeof(Scalar));

  static void load(const Scalar* from, Type& pack) noexcept { std::memcpy(&pack, from, sizeof(pack)); }
  static void store(const Type& pack, Scalar* to) noexcept { std::memcpy(to, &pack, sizeof(pack)); }
  /// Loads the first `count` lanes; the others are unchanged.
  static void load(const Scalar* from, Index count, Type& pack) noexcept {
    std::memcpy(&pack, from, static_cast<std::size_t>(count) * sizeof(Scalar));
  }
  static void store(const Type& pack, Index count, Scalar* to) noexcept {
    std::memcpy(to, &pack, static_cast<std::size_t>(count) * sizeof(Scalar));
  }

  /// Rounded to nearest, including infinities and denormals.
  static void square_root(Type& pack) noexcept {
#if defined(__SSE2__)
    if constexpr (sizeof(Scalar) == 4) {
      pack = reinterpret_cast<Type>(_mm_sqrt_ps(reinterpret_cast<__m128>(pack)));
    } else {
      pack = reinterpret_cast<Type>(_mm_sqrt_pd(reinterpret_cast<__m128d>(pack)));
    }
#elif defined(__aarch64__)
    if constexpr (sizeof(Scalar) == 4) {
      pack = reinterpret_cast<Type>(vsqrtq_f32(reinterpret_cast<float32x4_t>(pack)));
    } else {
      pack = reinterpret_cast<Type>(vsqrtq_f64(reinterpret_cast<float64x2_t>(pack)));
    }
#else
    for (Index i = 0; i < lanes; ++i) pack[i] = std::sqrt(pack[i]);
#endif
  }
};

/// Calls rule(p, g, m, v) with packs of value, gradient, first and second moment, for all elements of a parameter, and
/// stores p, m and v. Without the second or both moments (`moments` is 1 or 0), these packs are 0 and not stored.
template <int moments, class Scalar, class Rule>
void update_elements(Rule rule, const Parameter<Scalar>& parameter) noexcept {
  using Lanes = Pack<Scalar>;
  Scalar* const value = parameter.value().data();
  const Scalar* const gradient = parameter.gradient().data();
  Scalar* const first = parameter.moments().first.data();
  Scalar* const second = parameter.moments().second.data();
  const Index size = parameter.size();
  Index i = 0;
  LORA_UNROLL_BY_FOUR
  for (; i + Lanes::lanes <= size; i += Lanes::lanes) {
    typename Lanes::Type p, g, m{}, v{};
    Lanes::load(value + i, p);
    Lanes::load(gradient + i, g);
    if constexpr (moments > 0) Lanes::load(first + i, m);
    if constexpr (moments > 1) Lanes::load(second + i, v);
    rule(p, g, m, v);
    Lanes::store(p, value + i);
    if constexpr (moments > 0) Lanes::store(m, first + i);
    if constexpr (moments > 1) Lanes::store(v, second + i);
  }
  if (i == size) return;
  const Index rest = size - i;
  typename Lanes::Type p{}, g{}, m{}, v{};
  Lanes::load(value + i, rest, p);
  Lanes::load(gradient + i, rest, g);
  if constexpr (moments > 0) Lanes::load(first + i, rest, m);
  if constexpr (moments > 1) Lanes::load(second + i, rest, v);
  rule(p, g, m, v);
  Lanes::store(p, rest, value + i);
  if constexpr (moments > 0) Lanes::store(m, rest, first + i);
  if constexpr (moments > 1) Lanes::store(v, rest, second + i);
}

}  // namespace lora::detail
