// SPDX-License-Identifier: MIT
// Y = X W^T and dX = dY W from one packed weight, and packing it.
//
//   packed_product_bench --benchmark_filter='^product/avx512'   one kernel, one instruction set
//   packed_product_bench --benchmark_filter='/N:32/'            one batch size
#include <benchmark/benchmark.h>

#include "lora/core/workspace.hpp"
#include "lora/weight/packed.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

template <bool transposed>
void product(benchmark::State& state, Isa isa) {
  const Index n = state.range(0);
  const Index d = state.range(1);
  const Index k = state.range(2);
  const PackedWeight<float> weight(input(random_matrix(d, k, 0)), isa);
  const auto in = random_matrix(n, transposed ? d : k, 1);
  Matrix<float> out(n, transposed ? k : d);
  Workspace workspace;
  for (auto _ : state) {
    if constexpr (transposed) {
      weight.product_transposed(input(in), {}, view_of(out), workspace);
    } else {
      weight.product(input(in), nullptr, {}, view_of(out), workspace);
    }
    benchmark::ClobberMemory();
  }
  count_flops(state, 2 * n * d * k);
  count_bytes(state, (d * k + n * (d + k)) * Index{sizeof(float)});
}

void pack(benchmark::State& state, Isa isa) {
  const auto w = random_matrix(state.range(0), state.range(1), 0);
  AlignedBuffer memory;
  const kernels::PanelLayout<float> layout{w.rows(), w.cols()};
  auto* const panels = memory.reserve<float>(static_cast<std::size_t>(layout.size()));
  for (auto _ : state) {
    for (Index b = 0; b < layout.panels(); ++b) kernels::pack_panel(isa, input(w), b, panels + layout.offset(b));
    benchmark::ClobberMemory();
  }
  count_bytes(state, 2 * w.size() * Index{sizeof(float)});
}

const Sizes product_sizes = {{1, 1024, 1024},   {8, 1024, 1024},   {32, 1024, 1024}, {256, 768, 768},
                             {256, 1024, 1024}, {256, 1000, 1000}, {1, 4096, 4096},  {32, 4096, 4096}};

const bool registered = [] {
  add_kernel("product", {"N", "d", "k"}, product_sizes, product<false>);
  add_kernel("product_transposed", {"N", "d", "k"}, product_sizes, product<true>);
  add_kernel("pack", {"d", "k"}, {{768, 768}, {1024, 1024}, {4096, 4096}}, pack);
  return true;
}();

}  // namespace
}  // namespace lora::bench
