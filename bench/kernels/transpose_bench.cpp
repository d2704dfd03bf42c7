// SPDX-License-Identifier: MIT
// Transposing a block of memory: what packing a weight and laying out panels for dX rest on.
#include <benchmark/benchmark.h>

#include "lora/kernels/transpose.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

void transpose(benchmark::State& state, Isa isa) {
  const auto source = random_matrix(state.range(0), state.range(1), 0);
  Matrix<float> target(source.cols(), source.rows());
  const auto kernel = kernels::transpose_kernel<float>(isa);
  for (auto _ : state) {
    kernel(source.data(), source.cols(), source.rows(), source.cols(), target.data(), source.rows(), source.rows());
    benchmark::ClobberMemory();
  }
  count_bytes(state, 2 * source.size() * Index{sizeof(float)});
}

const bool registered = [] {
  // Squares of panels; B of an adapter; lines a power of two apart; an odd size.
  add_kernel("transpose", {"rows", "cols"}, {{48, 48}, {48, 1024}, {4096, 8}, {4096, 64}, {1024, 1024}, {1000, 1001}},
             transpose);
  return true;
}();

}  // namespace
}  // namespace lora::bench
