// SPDX-License-Identifier: MIT
// Combines several adapters of one module into one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/columns.hpp"
#include "lora/adapter/config.hpp"
#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/philox.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/model/combine_options.hpp"
#include "lora/model/combine_svd.hpp"
#include "lora/model/task_vectors.hpp"

namespace lora {

/// One adapter of a module, delta = scaling * B A, and its weight in the combination; a negative weight subtracts.
template <RealScalar Scalar>
struct WeightedFactors {
  MatrixView<const Scalar> A;  ///< rank x in_features
  MatrixView<const Scalar> B;  ///< out_features x rank
  double scaling = 1;
  double weight = 1;
};

/// A new adapter of a module, delta = scaling * B A.
template <RealScalar Scalar>
struct CombinedFactors {
  Matrix<Scalar> A;  ///< rank x in_features
  Matrix<Scalar> B;  ///< out_features x rank
  double scaling = 1;
};

namespace detail {

/// PEFT combines a single adapter as linear, whatever the type. It counts those of the whole call, not of a module.
[[nodiscard]] inline CombineOptions as_peft_combines(CombineOptions options, std::size_t adapters) {
  if (options.compatibility == Compatibility::peft && adapters == 1) {
    options.combination_type = CombinationType::linear;
  }
  return options;
}

template <RealScalar Scalar>
class FactorCombination {
 public:
  FactorCombination(std::string_view operation, std::string_view module, std::span<const WeightedFactors<Scalar>> in,
                    const CombineOptions& options, std::uint64_t stream)
      : operation_(operation), module_(module), in_(in), options_(options), type_(options.combination_type) {
    check_combine_options(operation, options);
    check_inputs();
    if (options.seed) stream_ = RandomStream(*options.seed, stream);
  }

  [[nodiscard]] CombinedFactors<Scalar> run() const {
    CombinedFactors<Scalar> out = combined();
    if (!finite(view_of(out.A)) || !finite(view_of(out.B))) {
      throw StateError(operation_, module_, "a combination that is finite", "one that is not");
    }
    return out;
  }

 private:
  enum class Factor : std::uint8_t { A, B };

  [[nodiscard]] CombinedFactors<Scalar> combined() const {
    if (type_ == CombinationType::svd) return truncated_sum();
    if (prunes_deltas(type_)) return truncated_merge();
    const bool sums = type_ == CombinationType::linear || type_ == CombinationType::dare_linear ||
                      type_ == CombinationType::magnitude_prune;
    if (type_ == CombinationType::cat || (sums && !peft())) return side_by_side();
    return {merged_factors(Factor::A), merged_factors(Factor::B), 1.0};
  }

  [[nodiscard]] bool peft() const noexcept { return options_.compatibility == Compatibility::peft; }
  [[nodiscard]] Index in_features() const noexcept { return in_.front().A.cols; }
  [[nodiscard]] Index out_features() const noexcept { return in_.front().B.rows; }

  /// c_i = w_i s_i
  [[nodiscard]] static double coefficient(const WeightedFactors<Scalar>& one) noexcept {
    return one.weight * one.scaling;
  }

  [[nodiscard]] std::string input_name(std::size_t i, std::string_view what = {}) const {
    std::string name(module_);
    return name.append(", adapter ").append(std::to_string(i)).append(what);
  }

  [[nodiscard]] static bool finite(const MatrixView<const Scalar>& matrix) noexcept {
    for (Index i = 0; i < matrix.rows; ++i) {
      for (Index j = 0; j < matrix.cols; ++j) {
        if (!is_finite(matrix(i, j))) return false;
      }
    }
    return true;
  }

  void check_inputs() const {
    if (in_.empty()) throw ConfigError(operation_, module_, "at least one adapter", "none");
    const bool same_rank = type_ != CombinationType::cat && !ends_in_svd(type_) &&
                           (peft() || type_ == CombinationType::ties || type_ == CombinationType::dare_ties);
    for (std::size_t i = 0; i < in_.size(); ++i) {
      const auto& one = in_[i];
      check_shape(operation_, input_name(i, ", A"), one.A, same_rank ? in_.front().A.rows : -1, in_features());
      check_shape(operation_, input_name(i, ", B"), one.B, out_features(), one.A.rows);
      const auto number = [&](const char* what, double value) {
        if (is_finite(value)) return;
        throw ConfigError(operation_, input_name(i, what), "a finite number", number_text(value));
      };
      number(", weight", one.weight);
      number(", scaling", one.scaling);
      if (!finite(one.A) || !finite(one.B)) {
        throw StateError(operation_, input_name(i), "factors that are finite", "ones that are not");
      }
    }
  }

  [[nodiscard]] static Matrix<Scalar> plain(const MatrixView<const Scalar>& view) {
    Matrix<Scalar> copy(view.rows, view.cols);
    for (Index i = 0; i < view.rows; ++i)
      for (Index j = 0; j < view.cols; ++j) copy(i, j) = view(i, j);
    return copy;
  }

  [[nodiscard]] static std::span<Scalar> elements(Matrix<Scalar>& matrix) noexcept {
    return {matrix.data(), static_cast<std::size_t>(matrix.size())};
  }

  /// Every randomly pruned tensor has its own 2^40 blocks of the stream.
  void prune(Matrix<Scalar>& matrix, std::size_t adapter, Factor factor) const {
    if (!prunes(type_)) return;
    if (!drops_at_random(type_)) return prune_by_magnitude(elements(matrix), *options_.density);
    const auto tensor = 2 * static_cast<std::uint64_t>(adapter) + (factor == Factor::B ? 1U : 0U);
    prune_at_random(elements(matrix), *options_.density, *stream_, tensor << 40U);
  }

  [[nodiscard]] Matrix<Scalar> merged(std::vector<Matrix<Scalar>>& tensors, const std::vector<double>& weights) const {
    std::vector<std::span<const Scalar>> vectors;
    for (auto& tensor : tensors) vectors.push_back(elements(tensor));
    Matrix<Scalar>& out = tensors.front();
    const std::span<const std::span<const Scalar>> all(vectors);
    if (elects_signs(type_)) {
      disjoint_merge<Scalar>(all, weights, options_.majority_sign_method, elements(out));
    } else {
      weighted_sum<Scalar>(all, weights, elements(out));
    }
    return std::move(out);
  }

  /// Element by element, with the sign of c_i applied to A.
  [[nodiscard]] Matrix<Scalar> merged_factors(Factor factor) const {
    std::vector<Matrix<Scalar>> tensors;
    std::vector<double> weights;
    for (std::size_t i = 0; i < in_.size(); ++i) {
      const double c = coefficient(in_[i]);
      const double root = std::sqrt(std::abs(c));
      weights.push_back(factor == Factor::A ? std::copysign(root, c) : root);
      tensors.push_back(plain(factor == Factor::A ? in_[i].A : in_[i].B));
      prune(tensors.back(), i, factor);
    }
    return merged(tensors, weights);
  }

  /// [c_1 A_1; c_2 A_2; ...] and [B_1 B_2 ...], from the pruned factors.
  [[nodiscard]] CombinedFactors<Scalar> side_by_side() const {
    CombinedFactors<Scalar> out;
    out.A.resize(total_rank(), in_features());
    out.B.resize(out_features(), total_rank());
    Index row = 0;
    for (std::size_t i = 0; i < in_.size(); ++i) {
      Matrix<Scalar> a = plain(in_[i].A);
      Matrix<Scalar> b = plain(in_[i].B);
      prune(a, i, Factor::A);
      prune(b, i, Factor::B);
      const double c = coefficient(in_[i]);
      for (Index p = 0; p < a.rows(); ++p, ++row) {
        for (Index j = 0; j < a.cols(); ++j) out.A(row, j) = static_cast<Scalar>(c * static_cast<double>(a(p, j)));
        for (Index j = 0; j < b.rows(); ++j) out.B(j, row) = b(j, p);
      }
    }
    return out;
  }

  /// svd: the weighted sum stays a product of thin factors throughout.
  [[nodiscard]] CombinedFactors<Scalar> truncated_sum() const {
    const Index total = total_rank();
    const Index rank = std::min(std::min(new_rank(), total), std::min(in_features(), out_features()));
    if (rank == 0) return nothing();
    FactorPair<double> stacked{Columns<double>(out_features(), total), Columns<double>(in_features(), total)};
    Index row = 0;
    for (const auto& one : in_) {
      const double c = coefficient(one) * (peft() ? one.scaling : 1.0);
      for (Index p = 0; p < one.A.rows; ++p, ++row) {
        for (Index j = 0; j < one.A.cols; ++j) stacked.A_transposed(j, row) = c * static_cast<double>(one.A(p, j));
        for (Index j = 0; j < one.B.rows; ++j) stacked.B(j, row) = static_cast<double>(one.B(j, p));
      }
    }
    return rounded(truncate_product(stacked, rank));
  }

  /// *_svd with pruning: the sum is no longer of low rank.
  [[nodiscard]] CombinedFactors<Scalar> truncated_merge() const {
    const Index rank = std::min(new_rank(), std::min(in_features(), out_features()));
    if (rank == 0) return nothing();
    std::vector<Matrix<Scalar>> deltas;
    std::vector<double> weights;
    for (std::size_t i = 0; i < in_.size(); ++i) {
      deltas.push_back(delta(in_[i]));
      prune(deltas.back(), i, Factor::A);
      weights.push_back(peft() ? coefficient(in_[i]) : in_[i].weight);
    }
    const Matrix<Scalar> sum = merged(deltas, weights);
    deltas.clear();
    return rounded(truncate_dense<double>(columns_of(view_of(sum)).view(), rank));
  }

  [[nodiscard]] Matrix<Scalar> delta(const WeightedFactors<Scalar>& one) const {
    Matrix<Scalar> product(out_features(), in_features());
    std::vector<double> row(static_cast<std::size_t>(in_features()));
    const Columns<double> a = columns_of(one.A.transpose());
    for (Index i = 0; i < product.rows(); ++i) {
      std::fill(row.begin(), row.end(), 0.0);
      for (Index p = 0; p < a.cols(); ++p) {
        add_multiple(one.scaling * static_cast<double>(one.B(i, p)), a.col(p), row.data(), product.cols());
      }
      for (Index j = 0; j < product.cols(); ++j) product(i, j) = static_cast<Scalar>(row[static_cast<std::size_t>(j)]);
    }
    if (finite(view_of(product))) return product;
    throw StateError(operation_, module_, "delta weights that are finite", "one that is not");
  }

  [[nodiscard]] static Columns<double> columns_of(const MatrixView<const Scalar>& matrix) {
    Columns<double> columns(matrix.rows, matrix.cols);
    for (Index p = 0; p < matrix.cols; ++p)
      for (Index i = 0; i < matrix.rows; ++i) columns(i, p) = static_cast<double>(matrix(i, p));
    return columns;
  }

  [[nodiscard]] CombinedFactors<Scalar> rounded(FactorPair<double> pair) const {
    if (options_.svd_clamp) clamp_to_quantile(operation_, pair, *options_.svd_clamp);
    const Index rank = pair.B.cols();
    CombinedFactors<Scalar> out{{rank, in_features()}, {out_features(), rank}, 1.0};
    for (Index p = 0; p < rank; ++p) {
      for (Index j = 0; j < in_features(); ++j) out.A(p, j) = static_cast<Scalar>(pair.A_transposed(j, p));
      for (Index i = 0; i < out_features(); ++i) out.B(i, p) = static_cast<Scalar>(pair.B(i, p));
    }
    return out;
  }

  [[nodiscard]] CombinedFactors<Scalar> nothing() const {
    return {Matrix<Scalar>(0, in_features()), Matrix<Scalar>(out_features(), 0), 1.0};
  }

  [[nodiscard]] Index total_rank() const noexcept {
    Index total = 0;
    for (const auto& one : in_) total += one.A.rows;
    return total;
  }

  [[nodiscard]] Index new_rank() const noexcept {
    if (options_.svd_rank) return *options_.svd_rank;
    Index largest = 0;
    for (const auto& one : in_) largest = std::max(largest, one.A.rows);
    return largest;
  }

  std::string_view operation_;
  std::string_view module_;
  std::span<const WeightedFactors<Scalar>> in_;
  const CombineOptions& options_;
  CombinationType type_;
  std::optional<RandomStream> stream_;
};

}  // namespace detail

/// Combines the adapters of one module into one with scaling 1. D_i = s_i B_i A_i is the delta weight of adapter i, w_i
/// its weight, and P the pruning given by `density`:
///
/// | type                          | delta weight of the result                          | its rank               |
/// |-------------------------------|-----------------------------------------------------|------------------------|
/// | linear, cat                   | sum w_i D_i, exactly                                | sum r_i                |
/// | svd                           | sum w_i D_i, nearest of its rank                    | svd_rank, at most sum r_i |
/// | magnitude_prune, dare_linear  | sum w_i s_i P(B_i) P(A_i), exactly                  | sum r_i                |
/// | ties, dare_ties               | B' A', see below                                    | r                      |
/// | magnitude_prune_svd, dare_linear_svd | sum w_i P(D_i), nearest of its rank          | svd_rank               |
/// | ties_svd, dare_ties_svd       | disjoint mean of w_i P(D_i), nearest of its rank    | svd_rank               |
///
/// linear and cat concatenate the factors, A = [w_1 s_1 A_1; w_2 s_2 A_2; ...] and B = [B_1 B_2 ...]; svd reduces such
/// a result to a smaller rank, at a cost of (in + out) * (sum r_i)^2. svd_rank is 1 or more; its default is the largest
/// r_i; it never exceeds in or out. P keeps the largest elements (magnitude_prune*, ties*: prune_by_magnitude) or
/// random ones (dare_*: prune_at_random). ties and dare_ties work on factors element by element, all r_i equal: A' is
/// the disjoint_merge of P(A_i) with weights sgn(w_i s_i) sqrt|w_i s_i|, B' that of P(B_i) with weights sqrt|w_i s_i|.
/// The *_svd types with pruning hold one dense delta weight per adapter and compute a dense SVD: out * in * min(out,
/// in) operations. svd_clamp clamps the elements of the new factors at that quantile of all of them; which elements it
/// clamps depends on the sign of each component, here chosen so that its largest element in A is positive.
///
/// With Compatibility::peft the result is PEFT's, which differs as follows:
/// - linear, magnitude_prune and dare_linear sum factors, not delta weights; with c_i = w_i s_i,
///     B' A' = (sum sqrt|c_i| B_i) (sum sgn(c_i) sqrt|c_i| A_i)
///           = sum c_i B_i A_i + sum over i != j of sgn(c_j) sqrt|c_i c_j| B_i A_j:
///   the second sum consists of cross terms between adapters, which no adapter has learned. All r_i must be equal.
/// - svd and all *_svd apply each scaling twice: D_i contains it, and the weight is w_i s_i.
/// - A single adapter is combined as linear, whatever the type. With combine_adapters, that is one of the whole call:
///   a module that only one of several adapters has is combined by its type.
///
/// dare_* draw from `options.seed` and `stream`, by the adapter's position: the same elements on every platform, and
/// without an SVD the same bits. PEFT draws from torch's generator, which is not reproduced. Except for dare_*,
/// permuting the adapters changes the result only by rounding (and, for concatenated factors, the order of components).
///
/// @throws ConfigError for options, weights or scalings out of range, or no input; ShapeError when shapes, or ranks
/// that must be equal, differ; StateError when a factor or the result is not finite; std::bad_alloc. Pure and
/// reentrant.
template <RealScalar Scalar>
[[nodiscard]] CombinedFactors<Scalar> combine_factors(std::span<const WeightedFactors<Scalar>> adapters,
                                                      const CombineOptions& options, std::uint64_t stream = 0) {
  constexpr std::string_view operation = "combine_factors";
  check_combine_options(operation, options);
  const CombineOptions followed = detail::as_peft_combines(options, adapters.size());
  return detail::FactorCombination<Scalar>(operation, "adapters", adapters, followed, stream).run();
}

}  // namespace lora
