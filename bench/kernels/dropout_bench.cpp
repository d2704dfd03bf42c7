// SPDX-License-Identifier: MIT
// Drawing dropout bits: one bit for each element of the adapter's input.
#include <benchmark/benchmark.h>
#include <cstdint>
#include <vector>

#include "lora/kernels/keep_bits.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

void keep_bits(benchmark::State& state, Isa isa) {
  const Index rows = state.range(0);
  const Index bytes = state.range(1) / 8;
  const kernels::KeepBitsKernel kernel = kernels::keep_bits_kernel(isa);
  std::vector<std::uint8_t> bits(static_cast<std::size_t>(rows * bytes));
  for (auto _ : state) {
    for (Index i = 0; i < rows; ++i) {
      kernel({42, 0, static_cast<std::uint64_t>(i) << 30U, 429496730U}, bytes, bits.data() + i * bytes);
    }
    benchmark::ClobberMemory();
  }
  count_bytes(state, rows * bytes);
  using Counter = benchmark::Counter;
  state.counters["elements/s"] = Counter(static_cast<double>(8 * rows * bytes), Counter::kIsIterationInvariantRate);
}

const bool registered = [] {
  add_kernel("keep_bits", {"N", "k"}, {{1, 64}, {1, 4096}, {32, 1024}, {256, 1024}, {2048, 1024}}, keep_bits);
  return true;
}();

}  // namespace
}  // namespace lora::bench
