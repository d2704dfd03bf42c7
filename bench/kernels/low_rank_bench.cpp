// SPDX-License-Identifier: MIT
// The products with thin factors: U = drop(X) A^T, Y += drop(U F), and G += V^T drop(X).
//
//   low_rank_bench --benchmark_filter='project_down/avx512'
//   low_rank_bench --benchmark_filter='/r:8/dropout:0'
#include <benchmark/benchmark.h>

#include "lora/adapter/dropout.hpp"
#include "lora/kernels/low_rank.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

/// X (N x m), a factor (r x m) and a thin array (N x r), with the dropout mask of X.
struct Operands {
  explicit Operands(const benchmark::State& state)
      : x(random_matrix(state.range(0), state.range(1), 0)),
        factor(random_matrix(state.range(2), state.range(1), 1)),
        thin(random_matrix(state.range(0), state.range(2), 2)) {
    if (state.range(3) == 0) return;
    bits.draw(0.1, 42, {}, x.rows(), x.cols(), workspace.executor());
    mask = bits.mask<float>(0.1);
  }

  void count(benchmark::State& state) const {
    count_flops(state, 2 * x.size() * factor.rows());
    count_bytes(state, (x.size() + factor.size() + thin.size()) * Index{sizeof(float)});
  }

  Workspace workspace;
  DropoutBits bits;
  DropoutMask<float> mask;
  Matrix<float> x, factor, thin;
};

void project_down(benchmark::State& state, Isa isa) {
  Operands o(state);
  for (auto _ : state) {
    kernels::project_down(input(o.x), o.mask, input(o.factor), 1.0F, view_of(o.thin), o.workspace, isa);
    benchmark::ClobberMemory();
  }
  o.count(state);
}

void add_project_up(benchmark::State& state, Isa isa) {
  Operands o(state);
  o.thin *= 1e-6F;  // the sums of many iterations stay finite
  for (auto _ : state) {
    kernels::add_project_up(input(o.thin), input(o.factor), o.mask, view_of(o.x), o.workspace, isa);
    benchmark::ClobberMemory();
  }
  o.count(state);
}

void add_outer(benchmark::State& state, Isa isa) {
  Operands o(state);
  for (auto _ : state) {
    kernels::add_outer(input(o.thin), input(o.x), o.mask, 1e-6F, view_of(o.factor), o.workspace, isa);
    benchmark::ClobberMemory();
  }
  o.count(state);
}

const bool registered = [] {
  const Sizes sizes = {{1, 4096, 8, 0},   {1, 4096, 64, 0},   {32, 1024, 8, 0},   {256, 768, 8, 0},
                       {256, 1024, 8, 0}, {256, 1024, 16, 0}, {256, 1024, 64, 0}, {256, 1024, 8, 1}};
  add_kernel("project_down", {"N", "m", "r", "dropout"}, sizes, project_down);
  add_kernel("add_project_up", {"N", "m", "r", "dropout"}, sizes, add_project_up);
  add_kernel("add_outer", {"N", "m", "r", "dropout"}, sizes, add_outer);
  return true;
}();

}  // namespace
}  // namespace lora::bench
