// Instruction sets: which ones this library has kernels for, which this machine runs, and which one is used.
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

/// Instruction sets with kernels of their own, in ascending order.
enum class Isa : std::uint8_t {
  portable,  ///< vectors of 16 bytes, as every target of the compiler has them
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

/// Whether processor and operating system both run `isa`. What flags this file was compiled with does not matter.
[[nodiscard]] inline bool isa_supported(Isa isa) noexcept {
#if LORA_X86_KERNELS
  // These builtins look at XCR0 too: a register set that the operating system does not save counts as missing.
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

/// The instruction set of every kernel that is not told otherwise, fixed at the first call: the best one this machine
/// runs, or the one the environment variable LORA_ISA names (portable, avx2, avx512). A name that this machine does not
/// run falls back to the best one below it; any other text is ignored. Thread-safe.
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
