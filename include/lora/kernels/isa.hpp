// SPDX-License-Identifier: MIT
// Instruction sets: those with kernels in this library, those this machine supports, and the one in use.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define LORA_X86_KERNELS 1
#else
#define LORA_X86_KERNELS 0
#endif

#if defined(__aarch64__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LORA_NEON_KERNELS 1
#else
#define LORA_NEON_KERNELS 0
#endif

namespace lora {

/// Instruction sets with their own kernels, in ascending order. No machine has both NEON and AVX.
enum class Isa : std::uint8_t {
  portable,  ///< vectors of 16 bytes, available on every target of the compiler
  neon,      ///< Advanced SIMD of 64-bit ARM
  avx2,      ///< AVX2 with FMA
  avx512,    ///< AVX-512 F, BW, DQ and VL
};

inline constexpr std::array all_isas{Isa::portable, Isa::neon, Isa::avx2, Isa::avx512};

[[nodiscard]] constexpr std::string_view isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::neon:
      return "neon";
    case Isa::portable:
      break;
  }
  return "portable";
}

/// Whether processor and operating system both support `isa`, independently of this file's compiler flags.
[[nodiscard]] inline bool isa_supported(Isa isa) noexcept {
#if LORA_X86_KERNELS
  // These builtins also check XCR0: a register set that the operating system does not save is reported as missing.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx512) return has_avx512;
  if (isa == Isa::avx2) return has_avx2;
#elif LORA_NEON_KERNELS
  if (isa == Isa::neon) return true;
#endif
  return isa == Isa::portable;
}

/// The best supported instruction set that is not above `limit`.
[[nodiscard]] inline Isa best_isa(Isa limit = Isa::avx512) noexcept {
  Isa best = Isa::portable;
  for (const Isa isa : all_isas) {
    if (isa <= limit && isa_supported(isa)) best = isa;
  }
  return best;
}

/// The default instruction set of all kernels, fixed at the first call: the best one this machine supports, or the one
/// named by the environment variable LORA_ISA (portable, neon, avx2, avx512). If this machine does not support the
/// named one, the best one below it is used; any other text is ignored. Thread-safe.
[[nodiscard]] inline Isa active_isa() noexcept {
  static const Isa chosen = [] {
    const char* variable = std::getenv("LORA_ISA");
    const std::string_view wanted = variable != nullptr ? variable : "";
    for (const Isa isa : all_isas) {
      if (wanted == isa_name(isa)) return best_isa(isa);
    }
    return best_isa();
  }();
  return chosen;
}

}  // namespace lora
