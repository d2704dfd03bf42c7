// SPDX-License-Identifier: MIT
// Starts of an adapter that are found together with the frozen weight's encoding: LoftQ, and PiSSA and OLoRA over
// blocks.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/weight/quantized.hpp"

namespace lora {

/// A weight of fewer bits and the factors that stand beside it: Q + s*B*A is near W. For a layer,
///   LoraLinear<float, QuantizedWeight<Format>> layer(std::move(start.weight), config, seed);
///   layer.set_factors(start.factors.A, start.factors.B);
/// with the config that the start was computed with, and its init_lora_weights left alone: pissa there would start from
/// Q.
template <formats::EncodableFormat Format>
struct QuantizedStart {
  QuantizedWeight<Format> weight;  ///< Q
  LoraFactors<float> factors;      ///< A (rank x in_features) and B (out_features x rank)
  double error = 0;                ///< |W - (Q + s*B*A)|, of Frobenius
};

namespace detail {

template <class To, class From>
[[nodiscard]] Matrix<To> converted(const MatrixView<const From>& source) {
  Matrix<To> target(source.rows, source.cols);
  for (Index i = 0; i < source.rows; ++i)
    for (Index j = 0; j < source.cols; ++j) target(i, j) = static_cast<To>(source(i, j));
  return target;
}

/// W - s*B*A in double. O(m n rank).
template <class Element>
[[nodiscard]] Matrix<double> without_product(const MatrixView<Element>& w, const LoraFactors<float>& factors,
                                             double scaling) {
  Matrix<double> rest(w.rows, w.cols);
  for (Index i = 0; i < w.rows; ++i) {
    for (Index j = 0; j < w.cols; ++j) rest(i, j) = static_cast<double>(w(i, j));
    for (Index p = 0; p < factors.A.rows(); ++p) {
      const double scaled = scaling * static_cast<double>(factors.B(i, p));
      for (Index j = 0; j < w.cols; ++j) rest(i, j) -= scaled * static_cast<double>(factors.A(p, j));
    }
  }
  return rest;
}

[[nodiscard]] inline double frobenius_norm(const Matrix<double>& m) noexcept {
  double sum = 0;
  for (Index i = 0; i < m.size(); ++i) sum += m.data()[i] * m.data()[i];
  return std::sqrt(sum);
}

/// The best s*B*A of config.rank, rounded to float.
[[nodiscard]] inline LoraFactors<float> principal_factors(const Matrix<double>& w, const LoraConfig& config,
                                                          std::uint64_t seed) {
  const MatrixView<const double> view = view_of(w);
  const auto wide = pissa_factors(view, config.rank, config.scaling(), config.pissa_niter, seed);
  return {converted<float, double>(view_of(wide.A)), converted<float, double>(view_of(wide.B))};
}

/// Encodes W - s*B*A.
template <class Format>
[[nodiscard]] QuantizedStart<Format> encode_rest(const MatrixView<const float>& w, LoraFactors<float> factors,
                                                 double scaling) {
  const Matrix<double> rest = without_product(w, factors, scaling);
  const Matrix<float> rounded = converted<float, double>(view_of(rest));
  return {QuantizedWeight<Format>::quantize(view_of(rounded)), std::move(factors), 0};
}

/// W - Q in double.
template <class Format>
[[nodiscard]] Matrix<double> residual(const MatrixView<const float>& w, const QuantizedWeight<Format>& quantized) {
  Matrix<float> values(w.rows, w.cols);
  quantized.read(0, 0, view_of(values));
  Matrix<double> rest(w.rows, w.cols);
  for (Index i = 0; i < w.rows; ++i)
    for (Index j = 0; j < w.cols; ++j) rest(i, j) = static_cast<double>(w(i, j)) - static_cast<double>(values(i, j));
  return rest;
}

template <class Format>
[[nodiscard]] double error_of(const MatrixView<const float>& w, const QuantizedStart<Format>& start, double scaling) {
  const Matrix<double> rest = residual(w, start.weight);
  return frobenius_norm(without_product(view_of(rest), start.factors, scaling));
}

/// @throws ConfigError unless factors of config.rank can be computed from a weight of this shape.
inline void check_quantized_start(std::string_view operation, const MatrixView<const float>& w,
                                  const LoraConfig& config) {
  check_config(operation, config);
  const Index most = w.rows < w.cols ? w.rows : w.cols;
  if (config.rank < 1 || config.rank > most) {
    throw ConfigError(operation, "rank", "1 to " + std::to_string(most), std::to_string(config.rank));
  }
  if (!(config.scaling() > 0)) {
    throw ConfigError(operation, "alpha", "more than 0", number_text(config.alpha));
  }
  for (Index i = 0; i < w.rows; ++i) {
    for (Index j = 0; j < w.cols; ++j) {
      if (!is_finite(w(i, j))) {
        throw ConfigError(operation, "w", "finite numbers", "an infinity or NaN");
      }
    }
  }
}

}  // namespace detail

/// LoftQ: factors that make up for the error of encoding `w` (out_features x in_features, any strides). `iterations`
/// times, from B_0 A_0 = 0,
///   Q_t = encode(W - s B_(t-1) A_(t-1)),   s B_t A_t = the first `rank` parts of the SVD of W - Q_t,
/// with sqrt(S / s) in each factor, as in pissa_factors. Encoding may undo what a step gained; the step with the least
/// error is returned, so more iterations are never worse. config.pissa_niter and `seed` are of the decomposition.
///
/// PEFT's loftq_init divides by no scaling, and returns the last step. With alpha = rank (s = 1) and one iteration,
/// PEFT's default, the results are the same. Source: Li et al., arXiv 2310.08659, algorithm 1.
/// @throws ShapeError when in_features is no multiple of the block size; ConfigError for a rank that is not in 1 to
/// min(in_features, out_features), an alpha or a number of iterations that is not positive, or a weight that is not
/// finite or has no finite encoding; std::bad_alloc
template <formats::EncodableFormat Format>
[[nodiscard]] LORA_COLD QuantizedStart<Format> loftq_factors(const MatrixView<const float>& w, const LoraConfig& config,
                                                             Index iterations = 1, std::uint64_t seed = 0) {
  detail::check_quantized_start("loftq_factors", w, config);
  if (iterations < 1) throw ConfigError("loftq_factors", "iterations", "1 or more", std::to_string(iterations));
  const double scaling = config.scaling();
  QuantizedStart<Format> best;
  LoraFactors<float> factors{Matrix<float>(0, w.cols), Matrix<float>(w.rows, 0)};
  for (Index t = 0; t < iterations; ++t) {
    auto step = detail::encode_rest<Format>(w, std::move(factors), scaling);
    step.factors = detail::principal_factors(detail::residual(w, step.weight), config, seed);
    step.error = detail::error_of(w, step, scaling);
    factors = step.factors;
    if (t == 0 || step.error < best.error) best = std::move(step);
  }
  return best;
}

/// QPiSSA: s*B*A is the principal part of `w`, and only the rest is encoded, which has a smaller range. (A layer over a
/// quantised weight with init_lora_weights pissa keeps W itself encoded.) Source: Meng et al., arXiv 2404.02948,
/// section 4. @throws like loftq_factors
template <formats::EncodableFormat Format>
[[nodiscard]] LORA_COLD QuantizedStart<Format> pissa_quantized(const MatrixView<const float>& w,
                                                               const LoraConfig& config, std::uint64_t seed = 0) {
  detail::check_quantized_start("pissa_quantized", w, config);
  const Matrix<double> wide = detail::converted<double, float>(w);
  auto start = detail::encode_rest<Format>(w, detail::principal_factors(wide, config, seed), config.scaling());
  start.error = detail::error_of(w, start, config.scaling());
  return start;
}

/// The same with the first part of the QR factorisation as s*B*A: see olora_factors. Source: arXiv
/// 2406.01775. @throws like loftq_factors
template <formats::EncodableFormat Format>
[[nodiscard]] LORA_COLD QuantizedStart<Format> olora_quantized(const MatrixView<const float>& w,
                                                               const LoraConfig& config) {
  detail::check_quantized_start("olora_quantized", w, config);
  const Matrix<double> wide = detail::converted<double, float>(w);
  const auto factors = olora_factors(view_of(wide), config.rank);
  LoraFactors<float> rounded{detail::converted<float, double>(view_of(factors.A)),
                             detail::converted<float, double>(view_of(factors.B))};
  auto start = detail::encode_rest<Format>(w, std::move(rounded), config.scaling());
  start.error = detail::error_of(w, start, config.scaling());
  return start;
}

}  // namespace lora
