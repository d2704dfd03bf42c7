// SPDX-License-Identifier: MIT
// DoRA's passes over rows and sums over them, beside copying as many bytes: memory is what they wait for.
//
//   columns_bench --benchmark_filter='scale_columns'
#include <algorithm>
#include <benchmark/benchmark.h>
#include <cstdint>
#include <vector>

#include "lora/kernels/columns.hpp"
#include "lora/kernels/row_norms.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

struct Operands {
  explicit Operands(const benchmark::State& state)
      : z(random_matrix(state.range(0), state.range(1), 0)),
        y(random_matrix(state.range(0), state.range(1), 1)),
        factors(random_matrix(1, state.range(1), 2)) {}
  Workspace workspace;
  Matrix<float> z, y, factors;
};

void copy(benchmark::State& state) {
  Operands o(state);
  for (auto _ : state) {
    std::copy(o.z.data(), o.z.data() + o.z.size(), o.y.data());
    benchmark::ClobberMemory();
  }
  count_bytes(state, 2 * o.z.size() * Index{sizeof(float)});
}
BENCHMARK(copy)->ArgNames({"N", "d"})->Args({256, 1024})->Args({2048, 1024})->Unit(benchmark::kMicrosecond);

void scale_columns(benchmark::State& state, Isa isa) {
  Operands o(state);
  for (auto _ : state) {
    kernels::scale_columns(input(o.z), o.factors.data(), o.factors.data(), view_of(o.y), o.workspace, isa);
    benchmark::ClobberMemory();
  }
  count_bytes(state, 2 * o.z.size() * Index{sizeof(float)});
}

void add_scaled_columns(benchmark::State& state, Isa isa) {
  Operands o(state);
  o.factors *= 1e-6F;
  for (auto _ : state) {
    kernels::add_scaled_columns(input(o.z), o.factors.data(), view_of(o.y), o.workspace, isa);
    benchmark::ClobberMemory();
  }
  count_bytes(state, 3 * o.z.size() * Index{sizeof(float)});
}

void add_column_products(benchmark::State& state, Isa isa) {
  Operands o(state);
  for (auto _ : state) {
    kernels::add_column_products(input(o.z), input(o.y), o.factors.data(), o.workspace, isa);
    benchmark::ClobberMemory();
  }
  count_bytes(state, 2 * o.z.size() * Index{sizeof(float)});
}

void row_norms(benchmark::State& state, Isa isa) {
  const Index d = state.range(0);
  const Index r = state.range(1);
  const auto projected = random_matrix(r, d, 0);
  const auto gram = random_matrix(r, r, 1);
  const auto b = random_matrix(d, r, 2);
  std::vector<double> norms(static_cast<std::size_t>(d), 100.0);
  std::vector<double> squared = norms;
  std::vector<std::uint8_t> cancels(norms.size());
  Workspace workspace;
  for (auto _ : state) {
    kernels::adapted_row_norms(squared.data(), input(projected), input(gram), input(b), 0.5F, norms.data(),
                               cancels.data(), workspace, isa);
    benchmark::ClobberMemory();
  }
  count_flops(state, d * r * (r + 1));
}

const bool registered = [] {
  const Sizes sizes = {{32, 1024}, {256, 1024}, {2048, 1024}};
  add_kernel("scale_columns", {"N", "d"}, sizes, scale_columns);
  add_kernel("add_scaled_columns", {"N", "d"}, sizes, add_scaled_columns);
  add_kernel("add_column_products", {"N", "d"}, sizes, add_column_products);
  add_kernel("adapted_row_norms", {"d", "r"}, {{1024, 8}, {4096, 8}, {1024, 64}}, row_norms);
  return true;
}();

}  // namespace
}  // namespace lora::bench
