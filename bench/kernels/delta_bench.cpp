// SPDX-License-Identifier: MIT
// Lines of an update, coefficients (lines x r) times a factor (r x length), as merging computes them.
#include <benchmark/benchmark.h>

#include "lora/kernels/delta.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

void delta(benchmark::State& state, Isa isa) {
  const auto coefficients = random_matrix(state.range(0), state.range(2), 0);
  const auto factor = random_matrix(state.range(2), state.range(1), 1);
  Matrix<float> out(state.range(0), state.range(1));
  const auto kernel = kernels::delta_kernel<float>(isa);
  for (auto _ : state) {
    kernel(coefficients.data(), out.rows(), factor.data(), factor.cols(), factor.rows(), out.cols(), out.data());
    benchmark::ClobberMemory();
  }
  count_flops(state, 2 * out.size() * factor.rows());
  count_bytes(state, out.size() * Index{sizeof(float)});
}

const bool registered = [] {
  // Lines of a panel, and whole lines of a row-major weight.
  add_kernel("delta", {"lines", "length", "r"},
             {{85, 48, 1}, {85, 48, 8}, {85, 48, 16}, {85, 48, 64}, {4, 1024, 8}, {1, 4096, 8}}, delta);
  return true;
}();

}  // namespace
}  // namespace lora::bench
