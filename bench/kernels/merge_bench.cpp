// SPDX-License-Identifier: MIT
// Merging s*B*A into a packed weight and taking it out again, as a layer does it, with the active instruction set
// (LORA_ISA=portable|avx2|avx512 chooses another).
//
//   merge_bench --benchmark_filter='^unmerge'
#include <benchmark/benchmark.h>

#include "lora/weight/merge_undo.hpp"
#include "lora/weight/packed.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

// The record is allocated by merging and part of its cost.
template <bool time_merge>
void time_merging(benchmark::State& state) {
  const Index d = state.range(0);
  const Index k = state.range(1);
  const Index r = state.range(2);
  PackedWeight<float> weight(input(random_matrix(d, k, 0)));
  const auto a = random_matrix(r, k, 1);
  const auto b = random_matrix(d, r, 2);
  const LowRankUpdate<float> update{input(a), input(b), 0.1F};
  for (auto _ : state) {
    MergeUndo<float> record;
    const double merging = seconds_of([&] { record = MergeUndo<float>::merge("merge_bench", weight, update); });
    const double unmerging = seconds_of([&] { record.unmerge(weight); });
    state.SetIterationTime(time_merge ? merging : unmerging);
  }
  count_flops(state, 2 * d * k * r);
  count_bytes(state, d * k * Index{2 * sizeof(float) + 1});
}

void merge_cases(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"d", "k", "r"});
  for (const Index r : {1, 8, 16, 64}) bench->Args({1024, 1024, r});
  bench->Args({4096, 4096, 8})->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.05);
}

BENCHMARK(time_merging<true>)->Name("merge")->Apply(merge_cases);
BENCHMARK(time_merging<false>)->Name("unmerge")->Apply(merge_cases);

}  // namespace
}  // namespace lora::bench
