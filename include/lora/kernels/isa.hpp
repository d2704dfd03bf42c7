// Instruction sets: those with kernels in this library, those this machine supports, and the one in use.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string_view>

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define LORA_X86_KERNELS 1
#else
#define LORA_X86_KERNELS 0
#endif

namespace lora {

/// Instruction sets with their own kernels, in ascending order.
enum class Isa : std::uint8_t {
  portable,  ///< vectors of 16 bytes, available on every target of the compiler
  avx2,      ///< AVX2 with FMA
  avx512,    ///< AVX-512 F, BW, DQ and VL
};

[[nodiscard]] constexpr std::string_view isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
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
#endif
  return isa == Isa::portable;
}

/// The best supported instruction set that is not above `limit`.
[[nodiscard]] inline Isa best_isa(Isa limit = Isa::avx512) noexcept {
  for (const Isa isa : {Isa::avx512, Isa::avx2}) {
    if (isa <= limit && isa_supported(isa)) return isa;
  }
  return Isa::portable;
}

/// The default instruction set of all kernels, fixed at the first call: the best one this machine supports, or the one
/// named by the environment variable LORA_ISA (portable, avx2, avx512). If this machine does not support the named one,
/// the best one below it is used; any other text is ignored. Thread-safe.
[[nodiscard]] inline Isa active_isa() noexcept {
  static const Isa chosen = [] {
    const char* variable = std::getenv("LORA_ISA");
    const std::string_view wanted = variable != nullptr ? variable : "";
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
      if (wanted == isa_name(isa)) return best_isa(isa);
    }
    return best_isa();
  }();
  return chosen;
}

}  // namespace lora
