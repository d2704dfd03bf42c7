// SPDX-License-Identifier: MIT
// The roofs of this machine, one core: fused multiply-adds, reading from memory, scaling in place.
#pragma once

#include "lora/kernels/isa.hpp"

namespace lora::bench {

/// The three loops of roofs.inc, for the best instruction set of this machine.
struct Roofs {
  double (*multiply_add)(long rounds, float* sink);
  float (*sum)(const float* data, long count, long ahead, int streams);
  void (*scale)(float* data, long count, float factor);
};

[[nodiscard]] Roofs roofs_of(Isa isa) noexcept;

}  // namespace lora::bench
