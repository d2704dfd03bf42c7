// SPDX-License-Identifier: MIT
// The starting values of A and B.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "lora/adapter/columns.hpp"
#include "lora/adapter/config.hpp"
#include "lora/adapter/orthonormal.hpp"
#include "lora/adapter/truncated_svd.hpp"
#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/random.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// A (rank x in_features) and B (out_features x rank).
template <class Scalar>
struct LoraFactors {
  Matrix<Scalar> A;  ///< rank x in_features
  Matrix<Scalar> B;  ///< out_features x rank
};

namespace detail {

/// Random streams of a layer's seed. Dropout uses the streams below these, one per step.
enum : std::uint64_t { stream_of_A = std::uint64_t{1} << 63U, stream_of_B, stream_of_rotation, stream_of_directions };

}  // namespace detail

/// Fills A (rank x in_features) and B (out_features x rank) by `init`: kaiming_uniform, gaussian or random. The same
/// seed gives the same bits on every platform. Kaiming-uniform with a = sqrt(5) has the bound sqrt(6 / ((1 + a^2)
/// fan_in)) = 1 / sqrt(fan_in), where fan_in is in_features for A, whatever the weight's orientation. The rank of the
/// gaussian start is A's, unless A stacks several adapters of rank `rank`. No allocation.
/// Source: He et al., arXiv 1502.01852; defaults of torch.nn.Linear and PEFT.
template <class Scalar>
void initialize_factors(InitLoraWeights init, std::uint64_t seed, const MatrixView<Scalar>& a,
                        const MatrixView<Scalar>& b, Index rank = 0) noexcept {
  const RandomStream stream_a(seed, detail::stream_of_A);
  const auto inverse_root = [](Index fan_in) { return 1.0 / std::sqrt(static_cast<double>(fan_in)); };
  if (init == InitLoraWeights::gaussian) {
    fill_normal(a, 1.0 / static_cast<double>(rank > 0 ? rank : a.rows), stream_a);
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

/// Fills A and B so that B A = 0 although neither is 0: with P (half x rank) and Q (half x rank) the odd and the even
/// rows of a random rotation, A = (G_A P)^T / 10 and B = G_B Q / 10, where G_A (in_features x half) and G_B
/// (out_features x half) are standard normal and half = rank / 2. `a.rows` must be even. The same seed gives the same
/// numbers up to rounding. Source: PEFT's "orthogonal"; https://datta0.github.io/posts/rethink-lora-init/. @throws
/// std::bad_alloc
template <class Scalar>
LORA_COLD void initialize_orthogonal(std::uint64_t seed, const MatrixView<Scalar>& a, const MatrixView<Scalar>& b) {
  const Index rank = a.rows;
  const Index half = rank / 2;
  Columns<double> rotation(rank, rank);
  fill_normal(rotation.view(), 1.0, RandomStream(seed, detail::stream_of_rotation));
  orthonormalize(rotation);
  // target(i, p) = sum over q of G(i, q) * rotation(2 q + parity, p) / 10
  const auto fill = [&](const MatrixView<Scalar>& target, std::uint64_t stream, Index parity) {
    Columns<double> normal(target.rows, half);
    fill_normal(normal.view(), 1.0, RandomStream(seed, stream));
    for (Index i = 0; i < target.rows; ++i) {
      for (Index p = 0; p < rank; ++p) {
        double sum = 0;
        for (Index q = 0; q < half; ++q) sum += normal(i, q) * rotation(2 * q + parity, p);
        target(i, p) = static_cast<Scalar>(sum / 10.0);
      }
    }
  };
  fill(a.transpose(), detail::stream_of_A, 0);
  fill(b, detail::stream_of_B, 1);
}

/// PiSSA: with W ~ U diag(S) V^T of `rank` parts and s > 0, B = U diag(sqrt(S / s)) and A = diag(sqrt(S / s)) V^T, so
/// that s*B*A is this part of W. W is out_features x in_features. `iterations` 0 decomposes exactly; otherwise
/// randomized_svd is used, with `seed`. Source: Meng et al., arXiv 2404.02948, section 3. @throws std::bad_alloc
template <class Real>
[[nodiscard]] LORA_COLD LoraFactors<Real> pissa_factors(const MatrixView<const Real>& w, Index rank, double scaling,
                                                        Index iterations, std::uint64_t seed) {
  const RandomStream directions(seed, detail::stream_of_directions);
  const auto svd = iterations == 0 ? truncated_svd(w, rank) : randomized_svd(w, rank, iterations, directions);
  LoraFactors<Real> factors{{rank, w.cols}, {w.rows, rank}};
  for (Index p = 0; p < rank; ++p) {
    const Real root = std::sqrt(svd.S[static_cast<std::size_t>(p)] / static_cast<Real>(scaling));
    for (Index j = 0; j < w.cols; ++j) factors.A(p, j) = root * svd.V(j, p);
    for (Index i = 0; i < w.rows; ++i) factors.B(i, p) = root * svd.U(i, p);
  }
  return factors;
}

/// OLoRA: B is the first `rank` columns of Q and A the first `rank` rows of R in W = Q R, where the diagonal of R is
/// not negative. W is out_features x in_features. As in PEFT, A and B are not divided by the scaling; the part
/// subtracted from the weight, s*B*A, includes it. O(m n rank).
/// Source: Büyükakyüz, arXiv 2406.01775, section 3. @throws std::bad_alloc
template <class Real>
[[nodiscard]] LORA_COLD LoraFactors<Real> olora_factors(const MatrixView<const Real>& w, Index rank) {
  Columns<Real> q(w.rows, rank);
  for (Index p = 0; p < rank; ++p)
    for (Index i = 0; i < w.rows; ++i) q(i, p) = w(i, p);
  orthonormalize(q);
  LoraFactors<Real> factors{{rank, w.cols}, {w.rows, rank}};
  Columns<Real> column(w.rows, 1);
  for (Index j = 0; j < w.cols; ++j) {
    for (Index i = 0; i < w.rows; ++i) column(i, 0) = w(i, j);
    for (Index p = 0; p < rank; ++p) {
      factors.A(p, j) = j < p ? Real(0) : detail::dot<Real>(q.col(p), column.col(0), w.rows);
    }
  }
  for (Index p = 0; p < rank; ++p)
    for (Index i = 0; i < w.rows; ++i) factors.B(i, p) = q(i, p);
  return factors;
}

/// A and B computed from `w` (out_features x in_features, any strides) by `config.init_lora_weights`, for which
/// takes_from_weight() is true. The weight is unchanged: the layer adds s (B A - B0 A0) to it, where A0 and B0 are
/// these factors. The seed determines the directions of pissa_niter; rounding may differ between compilers.
/// @throws ConfigError naming `operation` when the rank is above min(in_features, out_features), alpha is not positive
/// with pissa, or W is not finite; std::bad_alloc
template <class Real>
[[nodiscard]] LORA_COLD LoraFactors<Real> factors_from_weight(std::string_view operation,
                                                              const MatrixView<const Real>& w, const LoraConfig& config,
                                                              std::uint64_t seed) {
  const Index most = w.rows < w.cols ? w.rows : w.cols;
  if (config.rank > most) {
    throw ConfigError(operation, "rank", detail::joined({"at most ", std::to_string(most), " with pissa and olora"}),
                      std::to_string(config.rank));
  }
  const bool pissa = config.init_lora_weights == InitLoraWeights::pissa;
  if (pissa && !(config.alpha > 0.0)) {
    throw ConfigError(operation, "alpha", "more than 0 with pissa", detail::number_text(config.alpha));
  }
  for (Index i = 0; i < w.rows; ++i) {
    for (Index j = 0; j < w.cols; ++j) {
      if (!is_finite(w(i, j))) {
        throw ConfigError(operation, "init_lora_weights", "a finite weight with pissa and olora", "an infinity or NaN");
      }
    }
  }
  return pissa ? pissa_factors(w, config.rank, config.scaling(), config.pissa_niter, seed)
               : olora_factors(w, config.rank);
}

}  // namespace lora
