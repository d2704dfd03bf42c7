// The starting values of A and B that do not depend on the frozen weight.
#pragma once

#include <cmath>
#include <cstdint>

#include "lora/adapter/config.hpp"
#include "lora/adapter/orthonormal.hpp"
#include "lora/core/random.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// A (rank x in_features) and B (out_features x rank).
template <class Scalar>
struct LoraFactors {
  Matrix<Scalar> A;
  Matrix<Scalar> B;
};

namespace detail {

/// Streams of a layer's seed. Dropout uses the streams below these, one a step.
enum : std::uint64_t { stream_of_A = std::uint64_t{1} << 63U, stream_of_B, stream_of_rotation, stream_of_directions };

}  // namespace detail

/// Fills A (rank x in_features) and B (out_features x rank) as `init` says: kaiming_uniform, gaussian or random. The
/// same seed gives the same bits on every platform. Kaiming-uniform with a = sqrt(5) has the bound sqrt(6 / ((1 + a^2)
/// fan_in)) = 1 / sqrt(fan_in), where fan_in is in_features for A, whatever the weight's orientation. No allocation.
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

/// Fills A and B so that B A = 0 and neither is: with P (half x rank) and Q (half x rank) the odd and the even rows of
/// a random rotation, A = (G_A P)^T / 10 and B = G_B Q / 10, where G_A (in_features x half) and G_B (out_features x
/// half) are standard normal and half = rank / 2. `a.rows` is even. The same seed gives the same numbers up to
/// rounding. Source: PEFT's "orthogonal"; https://datta0.github.io/posts/rethink-lora-init/. @throws std::bad_alloc
template <class Scalar>
void initialize_orthogonal(std::uint64_t seed, const MatrixView<Scalar>& a, const MatrixView<Scalar>& b) {
  const Index rank = a.rows;
  const Index half = rank / 2;
  if (half == 0) return;
  const auto normal = [&](Index rows, Index cols, std::uint64_t stream) {
    Matrix<double> filled(rows, cols);
    fill_normal(view_of(filled), 1.0, RandomStream(seed, stream));
    return filled;
  };
  Eigen::MatrixXd rotation = normal(rank, rank, detail::stream_of_rotation);
  orthonormalize(rotation);
  Matrix<double> odd(half, rank);
  Matrix<double> even(half, rank);
  for (Index p = 0; p < half; ++p) {
    odd.row(p) = rotation.row(2 * p);
    even.row(p) = rotation.row(2 * p + 1);
  }
  const Matrix<double> a_transposed = normal(a.cols, half, detail::stream_of_A) * odd / 10.0;
  const Matrix<double> b_wide = normal(b.rows, half, detail::stream_of_B) * even / 10.0;
  a.map() = a_transposed.transpose().template cast<Scalar>();
  b.map() = b_wide.template cast<Scalar>();
}

}  // namespace lora
