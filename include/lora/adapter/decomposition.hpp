// Starting values of A and B that come out of the frozen weight, which keeps the residual.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "lora/adapter/config.hpp"
#include "lora/adapter/initialization.hpp"
#include "lora/adapter/truncated_svd.hpp"
#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/random.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// PiSSA: with W ~ U diag(S) V^T of `rank` parts and s > 0, B = U diag(sqrt(S / s)) and A = diag(sqrt(S / s)) V^T, so
/// that s*B*A is the part. `iterations` 0 decomposes exactly; else as randomized_svd from `seed`.
/// Source: Meng et al., arXiv 2404.02948, section 3. @throws std::bad_alloc
[[nodiscard]] inline LoraFactors<double> pissa_factors(const Eigen::MatrixXd& w, Index rank, double scaling,
                                                       Index iterations, std::uint64_t seed) {
  const TruncatedSvd svd = iterations == 0
                               ? truncated_svd(w, rank)
                               : randomized_svd(w, rank, iterations, RandomStream(seed, detail::stream_of_directions));
  const Eigen::VectorXd roots = (svd.S / scaling).cwiseSqrt();
  return {roots.asDiagonal() * svd.V.transpose(), svd.U * roots.asDiagonal()};
}

/// OLoRA: B is the first `rank` columns of Q and A the first `rank` rows of R in W = Q R, with the diagonal of R not
/// negative. As in PEFT the two are not divided by the scaling; the residual takes account of it. O(m n rank).
/// Source: Büyükakyüz, arXiv 2406.01775, section 3. @throws std::bad_alloc
[[nodiscard]] inline LoraFactors<double> olora_factors(const Eigen::MatrixXd& w, Index rank) {
  Eigen::MatrixXd q = w.leftCols(rank);
  orthonormalize(q);
  LoraFactors<double> factors;
  factors.B = q;
  factors.A.noalias() = q.transpose() * w;
  for (Index p = 1; p < rank; ++p) factors.A.row(p).head(p).setZero();
  return factors;
}

/// A and B as `config.init_lora_weights`, which takes_from_weight(), makes them of `weight`, which does not change yet.
/// Works in double. The seed decides the directions of pissa_niter; rounding may differ between compilers.
/// @throws ConfigError naming `operation` when the rank is above min(in_features, out_features), alpha is not positive
/// with pissa, or W is not finite; std::bad_alloc
template <FrozenWeight Weight>
[[nodiscard]] LoraFactors<typename Weight::Scalar> factors_from_weight(std::string_view operation, const Weight& weight,
                                                                       const LoraConfig& config, std::uint64_t seed) {
  using Scalar = typename Weight::Scalar;
  const Index most = std::min(weight.in_features(), weight.out_features());
  if (config.rank > most) {
    throw ConfigError(operation, "rank", "at most " + std::to_string(most) + " with pissa and olora",
                      std::to_string(config.rank));
  }
  const bool pissa = config.init_lora_weights == InitLoraWeights::pissa;
  if (pissa && !(config.alpha > 0.0)) {
    throw ConfigError(operation, "alpha", "more than 0 with pissa", detail::number_text(config.alpha));
  }
  Matrix<Scalar> stored(weight.out_features(), weight.in_features());
  read_back(weight, view_of(stored));
  for (Index i = 0; i < stored.size(); ++i) {
    if (!kernels::detail::finite(stored.data()[i])) {
      throw ConfigError(operation, "init_lora_weights", "a finite weight with pissa and olora", "an infinity or NaN");
    }
  }
  const Eigen::MatrixXd w = stored.template cast<double>();
  stored.resize(0, 0);
  const auto factors =
      pissa ? pissa_factors(w, config.rank, config.scaling(), config.pissa_niter, seed) : olora_factors(w, config.rank);
  return {factors.A.template cast<Scalar>(), factors.B.template cast<Scalar>()};
}

}  // namespace lora
