// SPDX-License-Identifier: MIT
// What a training step costs with LoRA and without, and what merging costs.
//
//   lora_step_bench                                            all cases, under a minute
//   lora_step_bench --benchmark_filter='/N:32/'                one batch size
//   lora_step_bench --benchmark_filter='step.*/d:1024/k:1024'  one layer
//   lora_step_bench --benchmark_filter='merge|scale'           merging against an in-place scale of W0
//   lora_step_bench --benchmark_out=FILE --benchmark_out_format=json
//
// lora_step, eigen_lora_step and full_step are one step each: forward, backward with dX, AdamW; see
// support/training_step.hpp. FLOP/s and bytes/s count what StepShape::flops() and bytes() say; `trainable` is r(d+k)
// or dk, `moment_bytes` the optimiser's state. One thread. Times of one run on a busy machine say little: compare
// within a run, and see build/bin/ratios for ratios with their spread.
#include <benchmark/benchmark.h>
#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/kernel_bench.hpp"
#include "support/training_step.hpp"

namespace {

using lora::Index;
using lora::bench::StepData;
using lora::bench::StepShape;

template <class Step>
void time_step(benchmark::State& state) {
  const bool full = std::is_same_v<Step, lora::bench::FullStep>;
  const StepShape shape{state.range(0), state.range(1), state.range(2), full ? 0 : state.range(3)};
  StepData data(shape);
  Step step(shape, data);
  step.run();  // the first step allocates
  for (auto _ : state) {
    step.run();
    benchmark::ClobberMemory();
  }
  using Counter = benchmark::Counter;
  state.counters["FLOP/s"] = Counter(shape.flops(), Counter::kIsIterationInvariantRate);
  state.counters["bytes/s"] = Counter(shape.bytes(), Counter::kIsIterationInvariantRate, Counter::kIs1024);
  state.counters["trainable"] = static_cast<double>(shape.trainable());
  state.counters["dk"] = static_cast<double>(shape.d * shape.k);
  state.counters["moment_bytes"] = static_cast<double>(step.moment_bytes());
}

// The sizes of a step: batch sizes at one layer, layers at one batch size, and with LoRA also ranks.
template <bool with_rank>
void step_cases(benchmark::internal::Benchmark* bench) {
  const auto add = [&](Index n, Index d, Index k, Index r) {
    if (with_rank) {
      bench->Args({n, d, k, r});
    } else {
      bench->Args({n, d, k});
    }
  };
  bench->ArgNames(with_rank ? std::vector<std::string>{"N", "d", "k", "r"} : std::vector<std::string>{"N", "d", "k"});
  for (const Index n : {1, 32, 256, 2048}) add(n, 1024, 1024, 8);
  for (const Index n : {1, 32}) add(n, 4096, 4096, 8);
  for (const auto& [d, k] : {std::pair{768, 768}, {3072, 768}, {768, 3072}}) add(256, d, k, 8);
  if (with_rank) {
    for (const Index r : {1, 2, 4, 16, 64}) add(256, 1024, 1024, r);
  }
  bench->Unit(benchmark::kMicrosecond)->MinTime(0.1);
}

BENCHMARK(time_step<lora::bench::LoraStep>)->Name("lora_step")->Apply(step_cases<true>);
BENCHMARK(time_step<lora::bench::EigenLoraStep>)->Name("eigen_lora_step")->Apply(step_cases<true>);
BENCHMARK(time_step<lora::bench::FullStep>)->Name("full_step")->Apply(step_cases<false>);

// A merge ends with one signed byte per weight beside W0, allocated by it; that is part of its cost.
template <bool time_merge>
void time_merging(benchmark::State& state) {
  const Index d = state.range(0);
  const Index k = state.range(1);
  const Index r = state.range(2);
  lora::Matrix<float> w0(d, k);
  lora::Matrix<float> a(r, k);
  lora::Matrix<float> b(d, r);
  lora::fill_normal(lora::view_of(w0), 1.0, {42, 0});
  lora::fill_normal(lora::view_of(a), 0.1, {42, 1});
  lora::fill_normal(lora::view_of(b), 0.1, {42, 2});
  lora::LoraLinear<float> layer(w0, {.rank = r, .alpha = static_cast<double>(r)}, 1);
  layer.set_factors(a, b);
  std::size_t record_bytes = 0;
  for (auto _ : state) {
    const double merging = lora::bench::seconds_of([&] { layer.merge(); });
    record_bytes = layer.merge_bytes();
    const double unmerging = lora::bench::seconds_of([&] { layer.unmerge(); });
    state.SetIterationTime(time_merge ? merging : unmerging);
  }
  const auto weights = static_cast<double>(d * k);
  using Counter = benchmark::Counter;
  state.counters["bytes/s"] =
      Counter(weights * (2 * sizeof(float) + 1), Counter::kIsIterationInvariantRate, Counter::kIs1024);
  state.counters["record_of_w0"] = static_cast<double>(record_bytes) / (weights * sizeof(float));
}

void time_scale(benchmark::State& state) {
  lora::Matrix<float> w0(state.range(0), state.range(1));
  lora::fill_normal(lora::view_of(w0), 1.0, {42, 0});
  for (auto _ : state) {
    w0 *= -1.0F;
    benchmark::ClobberMemory();
  }
  using Counter = benchmark::Counter;
  state.counters["bytes/s"] =
      Counter(static_cast<double>(w0.size()) * 2 * sizeof(float), Counter::kIsIterationInvariantRate, Counter::kIs1024);
}

void merge_cases(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"d", "k", "r"})->ArgsProduct({{1024}, {1024}, {1, 8, 16}})->Args({4096, 4096, 8});
  bench->UseManualTime()->Unit(benchmark::kMicrosecond)->MinTime(0.1);
}

BENCHMARK(time_merging<true>)->Name("merge")->Apply(merge_cases);
BENCHMARK(time_merging<false>)->Name("unmerge")->Apply(merge_cases);
BENCHMARK(time_scale)
    ->Name("scale")
    ->ArgNames({"d", "k"})
    ->Args({1024, 1024})
    ->Args({4096, 4096})
    ->Unit(benchmark::kMicrosecond)
    ->MinTime(0.1);

}  // namespace
