// SPDX-License-Identifier: MIT
#include "roofs.hpp"

#define LORA_DECLARE_ROOFS(isa)                                      \
  namespace lora::bench::isa {                                       \
  double multiply_add(long rounds, float* sink);                     \
  float sum(const float* data, long count, long ahead, int streams); \
  void scale(float* data, long count, float factor);                 \
  }

LORA_DECLARE_ROOFS(portable)
#if LORA_X86_KERNELS
LORA_DECLARE_ROOFS(avx2)
LORA_DECLARE_ROOFS(avx512)
#endif

namespace lora::bench {

Roofs roofs_of(Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return {avx512::multiply_add, avx512::sum, avx512::scale};
  if (isa == Isa::avx2) return {avx2::multiply_add, avx2::sum, avx2::scale};
#else
  (void)isa;
#endif
  return {portable::multiply_add, portable::sum, portable::scale};
}

}  // namespace lora::bench
