// SPDX-License-Identifier: MIT
// What the benchmarks of single kernels share: their instruction sets, data and counters.
#pragma once

#include <benchmark/benchmark.h>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "lora/core/random.hpp"
#include "lora/core/view.hpp"
#include "lora/kernels/isa.hpp"

namespace lora::bench {

[[nodiscard]] inline Matrix<float> random_matrix(Index rows, Index cols, std::uint64_t stream) {
  Matrix<float> result(rows, cols);
  fill_uniform(view_of(result), 1.0, {42, stream});
  return result;
}

template <class Derived>
[[nodiscard]] MatrixView<const float> input(const Eigen::DenseBase<Derived>& array) noexcept {
  return view_of(array);
}

/// Seconds that body() takes.
template <class Body>
[[nodiscard]] double seconds_of(const Body& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Operations of one iteration, shown as a rate.
inline void count_flops(benchmark::State& state, Index operations) {
  using Counter = benchmark::Counter;
  state.counters["FLOP/s"] = Counter(static_cast<double>(operations), Counter::kIsIterationInvariantRate);
}

/// Bytes that one iteration has to move, shown as a rate.
inline void count_bytes(benchmark::State& state, Index bytes) {
  using Counter = benchmark::Counter;
  state.counters["bytes/s"] = Counter(static_cast<double>(bytes), Counter::kIsIterationInvariantRate, Counter::kIs1024);
}

using Sizes = std::vector<std::vector<std::int64_t>>;

/// Registers body(state, isa) as `name`/<instruction set> for each one this machine runs, with every one of `sizes`.
template <class Body>
void add_kernel(const std::string& name, const std::vector<std::string>& size_names, const Sizes& sizes,
                const Body& body) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (!isa_supported(isa)) continue;
    std::string full_name = name + "/";
    full_name += isa_name(isa);
    auto* const bench =
        benchmark::RegisterBenchmark(full_name.c_str(), [body, isa](benchmark::State& state) { body(state, isa); });
    bench->ArgNames(size_names)->Unit(benchmark::kMicrosecond)->MinTime(0.05);
    for (const auto& size : sizes) bench->Args(size);
  }
}

}  // namespace lora::bench
