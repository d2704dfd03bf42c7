// The trainable factors A and B of one layer, and what they contribute to its passes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "lora/adapter/config.hpp"
#include "lora/adapter/gradients.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/adapter/record.hpp"
#include "lora/core/shape.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"

namespace lora {

/// A (rank x in_features) and B (out_features x rank) with their scaling s; an optional bias of B.
///
/// A value: it knows nothing of the weight it adapts. Const functions are reentrant.
template <RealScalar Scalar>
class LoraAdapter {
 public:
  /// Starts A and B as the configuration says. @throws ConfigError, also for pissa and olora, which need the weight:
  /// make_adaptation() makes those; std::bad_alloc
  LoraAdapter(std::string_view operation, Index in_features, Index out_features, const LoraConfig& config,
              std::uint64_t seed)
      : config_(checked(operation, config)),
        seed_(seed),
        a_(config.rank, in_features),
        b_(out_features, config.rank),
        lora_bias_(RowVector<Scalar>::Zero(config.lora_bias ? out_features : 0)) {
    if (config.rank == 0) return;
    if (takes_from_weight(config.init_lora_weights)) {
      throw ConfigError(operation, "init_lora_weights", "one that this kind of layer has", "pissa or olora");
    }
    if (config.init_lora_weights == InitLoraWeights::orthogonal) {
      initialize_orthogonal(seed, view_of(a_), view_of(b_));
    } else {
      initialize_factors(config.init_lora_weights, seed, view_of(a_), view_of(b_));
    }
  }

  /// Starts from given factors of the configured rank, without a bias of B. @throws ConfigError, ShapeError
  LoraAdapter(std::string_view operation, const LoraConfig& config, std::uint64_t seed, LoraFactors<Scalar> factors)
      : config_(checked(operation, config)), seed_(seed), a_(std::move(factors.A)), b_(std::move(factors.B)) {
    check_shape(operation, "A", a_, config.rank, -1);
    check_shape(operation, "B", b_, -1, config.rank);
  }

  [[nodiscard]] const LoraConfig& config() const noexcept { return config_; }
  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
  [[nodiscard]] Index rank() const noexcept { return a_.rows(); }
  [[nodiscard]] Scalar scaling() const noexcept { return static_cast<Scalar>(config_.scaling()); }
  [[nodiscard]] const Matrix<Scalar>& A() const noexcept { return a_; }
  [[nodiscard]] const Matrix<Scalar>& B() const noexcept { return b_; }
  [[nodiscard]] const RowVector<Scalar>& lora_bias() const noexcept { return lora_bias_; }
  [[nodiscard]] Matrix<Scalar>& A() noexcept { return a_; }
  [[nodiscard]] Matrix<Scalar>& B() noexcept { return b_; }
  [[nodiscard]] RowVector<Scalar>& lora_bias() noexcept { return lora_bias_; }

  /// @throws ConfigError when alpha, or the scaling it gives, is not finite.
  void set_alpha(std::string_view operation, double alpha) {
    LoraConfig changed = config_;
    changed.alpha = alpha;
    config_ = checked(operation, changed);
  }

  /// The update of the weight: s*B*A.
  [[nodiscard]] LowRankUpdate<Scalar> update() const noexcept { return {view_of(a_), view_of(b_), scaling()}; }

  /// In inference: U = X A^T in the workspace, and the term U * s*B^T for the weight's product.
  [[nodiscard]] LowRankTerm<Scalar> infer(const MatrixView<const Scalar>& x, Workspace& workspace) const {
    if (rank() == 0) return {};
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::down_projection, x.rows * rank());
    const MatrixView<Scalar> u{memory, x.rows, rank(), rank(), 1};
    kernels::project_down(x, DropoutMask<Scalar>{}, view_of(a_), Scalar(1), u, workspace.executor());
    return {u, scaled_b_transposed(workspace)};
  }

  /// In training: draws the dropout bits and U = drop(X) A^T into the record, and returns the term for the product.
  [[nodiscard]] LowRankTerm<Scalar> forward(const MatrixView<const Scalar>& x, LoraRecord<Scalar>& record,
                                            Workspace& workspace) const {
    record.clear();
    if (rank() > 0 && config_.dropout > 0) {
      record.dropout_bits().draw(config_.dropout, seed_, record.position, x.rows, x.cols, workspace.executor());
    }
    const auto u = record.prepare(x.rows, rank());
    if (rank() == 0) return {};
    kernels::project_down(x, mask(record), view_of(a_), Scalar(1), u, workspace.executor());
    return {u, scaled_b_transposed(workspace)};
  }

  /// The backward pass up to the factors: dB += s dY^T U, dA += V^T drop(X), dlora_bias += s sum(dY).
  /// Returns V = s dY B in the workspace. rank() > 0.
  [[nodiscard]] MatrixView<const Scalar> backward(const MatrixView<const Scalar>& x, const LoraRecord<Scalar>& record,
                                                  const MatrixView<const Scalar>& dy, LoraGradients<Scalar>& gradients,
                                                  Workspace& workspace) const {
    Executor& executor = workspace.executor();
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::down_projection, dy.rows * rank());
    const MatrixView<Scalar> v{memory, dy.rows, rank(), rank(), 1};
    kernels::project_down(dy, DropoutMask<Scalar>{}, scaled_b_transposed(workspace), Scalar(1), v, executor);
    kernels::add_outer(MatrixView<const Scalar>(v), x, mask(record), Scalar(1), view_of(gradients.A), executor);
    auto* transposed = workspace.reserve<Scalar>(Workspace::Slot::factor_gradient, rank() * dy.cols);
    const MatrixView<Scalar> db{transposed, rank(), dy.cols, dy.cols, 1};
    db.map().setZero();
    kernels::add_outer(record.down_projection(), dy, DropoutMask<Scalar>{}, scaling(), db, executor);
    gradients.B += db.map().transpose();
    if (config_.lora_bias) add_column_sums(dy, scaling(), gradients.lora_bias);
    return v;
  }

  /// The mask of a recorded pass; keeps everything without dropout.
  [[nodiscard]] DropoutMask<Scalar> mask(const LoraRecord<Scalar>& record) const noexcept {
    return config_.dropout > 0 ? record.dropout_bits().template mask<Scalar>(config_.dropout) : DropoutMask<Scalar>{};
  }

  /// Whether `record` holds a mask exactly if this adapter drops, of a size that fits `rows` rows.
  [[nodiscard]] bool fits(const LoraRecord<Scalar>& record, Index rows) const noexcept {
    const Index row_bytes = rank() > 0 && config_.dropout > 0 ? (a_.cols() + 7) / 8 : 0;
    return record.dropout_bits().bytes() == static_cast<std::size_t>(rows * row_bytes);
  }

  /// target += scale * (sum over the rows of dY, in order).
  static void add_column_sums(const MatrixView<const Scalar>& dy, Scalar scale, RowVector<Scalar>& target) noexcept {
    for (Index i = 0; i < dy.rows; ++i)
      for (Index j = 0; j < dy.cols; ++j) target[j] += scale * dy(i, j);
  }

 private:
  static const LoraConfig& checked(std::string_view operation, const LoraConfig& config) {
    check_config(operation, config);
    if (!std::isfinite(static_cast<Scalar>(config.scaling()))) {
      throw ConfigError(operation, "alpha", "a scaling that is finite in the layer's scalar type",
                        detail::number_text(config.alpha));
    }
    return config;
  }

  [[nodiscard]] MatrixView<const Scalar> scaled_b_transposed(Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::up_factor, b_.size());
    const MatrixView<Scalar> transposed{memory, b_.cols(), b_.rows(), b_.rows(), 1};
    kernels::transpose_scaled<Scalar>(view_of(b_), scaling(), memory);
    return transposed;
  }

  LoraConfig config_;
  std::uint64_t seed_;
  Matrix<Scalar> a_;
  Matrix<Scalar> b_;
  RowVector<Scalar> lora_bias_;
};

}  // namespace lora
