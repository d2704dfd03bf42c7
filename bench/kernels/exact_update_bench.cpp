// Adding an update to weights so that it can be taken away bit for bit, beside scaling them in place: memory is what
// all of them wait for.
//
//   exact_update_bench --benchmark_filter='restore'
#include <algorithm>
#include <benchmark/benchmark.h>
#include <cstdint>
#include <vector>

#include "lora/kernels/exact_update.hpp"
#include "support/kernel_bench.hpp"

namespace lora::bench {
namespace {

/// Weights and an update a tenth as large, in pieces as merging takes them.
struct Pieces {
  static constexpr Index piece = 4096;

  explicit Pieces(Index size)
      : weights(random_matrix(1, size, 0)), delta(random_matrix(1, piece, 1) * 0.1F), originals(1, piece) {
    codes.resize(static_cast<std::size_t>(size));
  }

  /// Calls body(weights, codes, length) for each piece.
  template <class Body>
  void for_each(const Body& body) {
    for (Index i = 0; i < weights.size(); i += piece) {
      body(weights.data() + i, codes.data() + i, std::min(piece, weights.size() - i));
    }
  }

  void apply(Isa isa) {
    for_each([&](float* w, std::int8_t* c, Index length) {
      benchmark::DoNotOptimize(kernels::apply_exact(w, delta.data(), c, length, originals.data(), isa));
    });
  }
  void restore(Isa isa) {
    for_each([&](float* w, const std::int8_t* c, Index length) {
      kernels::restore_exact(w, delta.data(), c, length, originals.data(), isa);
    });
  }

  Matrix<float> weights, delta, originals;
  std::vector<std::int8_t> codes;
};

// Applying again and again lets the weights grow by a tenth each time, which changes nothing in the work.
void apply(benchmark::State& state, Isa isa) {
  Pieces pieces(state.range(0));
  for (auto _ : state) {
    pieces.apply(isa);
    benchmark::ClobberMemory();
  }
  count_bytes(state, state.range(0) * Index{2 * sizeof(float) + 1});
}

void restore(benchmark::State& state, Isa isa) {
  Pieces pieces(state.range(0));
  pieces.apply(isa);
  for (auto _ : state) {
    pieces.restore(isa);
    benchmark::ClobberMemory();
  }
  count_bytes(state, state.range(0) * Index{2 * sizeof(float) + 1});
}

void scale(benchmark::State& state) {
  auto weights = random_matrix(1, state.range(0), 0);
  for (auto _ : state) {
    weights *= -1.0F;
    benchmark::ClobberMemory();
  }
  count_bytes(state, state.range(0) * Index{2 * sizeof(float)});
}
BENCHMARK(scale)->ArgName("size")->Arg(4096)->Arg(1 << 20)->Arg(1 << 24)->Unit(benchmark::kMicrosecond)->MinTime(0.05);

const bool registered = [] {
  const Sizes sizes = {{4096}, {1 << 20}, {1 << 24}};
  add_kernel("apply_exact", {"size"}, sizes, apply);
  add_kernel("restore_exact", {"size"}, sizes, restore);
  return true;
}();

}  // namespace
}  // namespace lora::bench
