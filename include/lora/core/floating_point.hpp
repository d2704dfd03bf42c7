// SPDX-License-Identifier: MIT
// The floating-point environment that exact arithmetic needs.
#pragma once

#include <cstdint>

#if defined(__SSE2__) && (defined(__x86_64__) || defined(__i386__))
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace lora {

/// While it is in scope, the calling thread rounds to nearest and keeps denormal operands and results. Programs change
/// these settings with fesetround, by linking with -ffast-math, or by hand in audio and games; an update added to a
/// weight under one environment could then not be taken out exactly under another. The previous environment is restored
/// at the end of the scope. Costs some tens of cycles.
class DefaultFloatingPoint {
 public:
#if defined(__SSE2__) && (defined(__x86_64__) || defined(__i386__))
  DefaultFloatingPoint() noexcept : former_(_mm_getcsr()) { set(former_ & ~changed_bits); }
  ~DefaultFloatingPoint() { set(former_); }

 private:
  using Word = unsigned int;
  // Bits of MXCSR: rounding control, flush to zero, denormals are zero.
  static constexpr Word changed_bits = 0x6000U | 0x8000U | 0x0040U;
  // The empty asm statements keep the compiler from moving arithmetic on memory across the change.
  static void set(Word word) noexcept {
    __asm__ __volatile__("" ::: "memory");
    _mm_setcsr(word);
    __asm__ __volatile__("" ::: "memory");
  }
#elif defined(__aarch64__)
  DefaultFloatingPoint() noexcept : former_(get()) { set(former_ & ~changed_bits); }
  ~DefaultFloatingPoint() { set(former_); }

 private:
  using Word = std::uint64_t;
  // Bits of FPCR: flush inputs, flush 16-bit numbers, rounding mode, flush to zero, default NaN.
  static constexpr Word changed_bits = 1U << 0U | 1U << 19U | 3U << 22U | 1U << 24U | 1U << 25U;
  static Word get() noexcept {
    Word word = 0;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(Word word) noexcept { __asm__ __volatile__("msr fpcr, %0" ::"r"(word) : "memory"); }
#else
  DefaultFloatingPoint() noexcept : former_(std::fegetround()) { (void)std::fesetround(FE_TONEAREST); }
  ~DefaultFloatingPoint() { (void)std::fesetround(former_); }

 private:
  using Word = int;
#endif
  Word former_;

 public:
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;
};

}  // namespace lora
