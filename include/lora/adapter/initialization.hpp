// The starting values of A and B.
#pragma once

#include <cmath>
#include <cstdint>

#include "lora/adapter/config.hpp"
#include "lora/core/random.hpp"
#include "lora/core/view.hpp"

namespace lora {

namespace detail {

/// Streams of a layer's seed. Dropout uses the streams below these, one a step.
enum : std::uint64_t { stream_of_A = std::uint64_t{1} << 63U, stream_of_B };

}  // namespace detail

/// Fills A (rank x in_features) and B (out_features x rank) as `init` says. The same seed gives the same bits on every
/// platform. Kaiming-uniform with a = sqrt(5) has the bound sqrt(6 / ((1 + a^2) fan_in)) = 1 / sqrt(fan_in), where
/// fan_in is in_features for A, whatever the weight's orientation. No allocation.
/// Source: He et al., arXiv 1502.01852; defaults of torch.nn.Linear and PEFT.
template <class Scalar>
void initialize_factors(InitLoraWeights init, std::uint64_t seed, const MatrixView<Scalar>& a,
                        const MatrixView<Scalar>& b) noexcept {
  const RandomStream stream_a(seed, detail::stream_of_A);
  const auto inverse_root = [](Index fan_in) { return 1.0 / std::sqrt(static_cast<double>(fan_in)); };
  if (init == InitLoraWeights::gaussian) {
    fill_normal(a, 1.0 / static_cast<double>(a.rows), stream_a);
  } else {
    fill_uniform(a, inverse_root(a.cols), stream_a);
  }
  if (init == InitLoraWeights::random) {
    fill_uniform(b, inverse_root(b.cols), RandomStream(seed, detail::stream_of_B));
  } else {
    for (Index i = 0; i < b.rows; ++i)
      for (Index p = 0; p < b.cols; ++p) b(i, p) = Scalar(0);
  }
}

}  // namespace lora
