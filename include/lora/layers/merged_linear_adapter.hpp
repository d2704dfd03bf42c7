// The factors of a layer whose outputs are several projections, some of them adapted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/adapter/gradients.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/adapter/record.hpp"
#include "lora/core/random.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/weight/low_rank_update.hpp"

namespace lora {

/// The outputs are G projections of m = out_features / G each, E of which are adapted. Adapted projection e, in order,
/// owns rows [e r, (e+1) r) of A (r E x in_features) and rows [e m, (e+1) m) of B (m E x r): a grouped 1 x 1
/// convolution. U = drop(X) A^T (N x r E); the e-th adapted block of Y gains s U_e B_e^T, the others nothing.
///
/// Starts A Kaiming-uniform and B zero, or as the gaussian and random initialisations say with the rank of one
/// projection. A value: it knows nothing of the weight it adapts. Const functions are reentrant.
/// Source: microsoft/LoRA, loralib, MergedLinear.
template <RealScalar Scalar>
class MergedLinearAdapter {
 public:
  /// @throws ConfigError when an option is out of range or not one of this kind of layer, when out_features is no
  /// multiple of `enable_lora.size()`, or when the rank is not 0 and nothing is enabled; std::bad_alloc
  MergedLinearAdapter(std::string_view operation, Index in_features, Index out_features, std::vector<bool> enable_lora,
                      const LoraConfig& config, std::uint64_t seed)
      : config_(checked(operation, config)),
        seed_(seed),
        enable_lora_(std::move(enable_lora)),
        features_(checked_features(operation, out_features)),
        out_features_(out_features) {
    for (std::size_t g = 0; g < enable_lora_.size(); ++g)
      if (enable_lora_[g]) first_outputs_.push_back(static_cast<Index>(g) * features_);
    a_.resize(rank() * enabled(), in_features);
    b_.resize(features_ * enabled(), rank());
    if (rank() > 0) initialize();
  }

  [[nodiscard]] const LoraConfig& config() const noexcept { return config_; }
  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
  [[nodiscard]] const std::vector<bool>& enable_lora() const noexcept { return enable_lora_; }
  /// r, of each projection.
  [[nodiscard]] Index rank() const noexcept { return config_.rank; }
  /// E.
  [[nodiscard]] Index enabled() const noexcept { return static_cast<Index>(first_outputs_.size()); }
  /// r E, the columns of U.
  [[nodiscard]] Index total_rank() const noexcept { return a_.rows(); }
  [[nodiscard]] Scalar scaling() const noexcept { return static_cast<Scalar>(config_.scaling()); }
  [[nodiscard]] const Matrix<Scalar>& A() const noexcept { return a_; }
  [[nodiscard]] const Matrix<Scalar>& B() const noexcept { return b_; }
  [[nodiscard]] Matrix<Scalar>& A() noexcept { return a_; }
  [[nodiscard]] Matrix<Scalar>& B() noexcept { return b_; }

  /// @throws ConfigError when alpha, or the scaling it gives, is not finite.
  void set_alpha(std::string_view operation, double alpha) {
    LoraConfig changed = config_;
    changed.alpha = alpha;
    config_ = checked(operation, changed);
  }

  /// B as a factor of the whole weight: out_features x r E, zero outside the enabled blocks, so that s*B*A of rank r E
  /// has a block of rows for each projection, zero where it is not enabled.
  [[nodiscard]] Matrix<Scalar> expanded_B() const {
    Matrix<Scalar> expanded = Matrix<Scalar>::Zero(out_features_, total_rank());
    if (total_rank() == 0) return expanded;
    for (Index e = 0; e < enabled(); ++e) {
      expanded.block(first_output(e), e * rank(), features_, rank()) = b_.middleRows(e * features_, features_);
    }
    return expanded;
  }

  /// In inference: adds the adapter's part to Y, which holds the base layer's answer. U is in the workspace.
  void infer(const MatrixView<const Scalar>& x, const MatrixView<Scalar>& y, Workspace& workspace) const {
    if (rank() == 0) return;
    const auto u = columns(workspace, x.rows);
    kernels::project_down(x, DropoutMask<Scalar>{}, view_of(a_), Scalar(1), u, workspace.executor());
    add_blocks(u, y, workspace);
  }

  /// In training, before the base layer's product: draws the dropout bits and U into the record. Reads X only.
  void project(const MatrixView<const Scalar>& x, LoraRecord<Scalar>& record, Workspace& workspace) const {
    record.clear();
    if (rank() > 0 && config_.dropout > 0) {
      record.dropout_bits().draw(config_.dropout, seed_, record.position, x.rows, x.cols, workspace.executor());
    }
    const auto u = record.prepare(x.rows, total_rank());
    if (rank() == 0) return;
    kernels::project_down(x, mask(record), view_of(a_), Scalar(1), u, workspace.executor());
  }

  /// In training, after the base layer's product: adds s U_e B_e^T to the enabled blocks of Y.
  void add(const LoraRecord<Scalar>& record, const MatrixView<Scalar>& y, Workspace& workspace) const {
    if (rank() > 0) add_blocks(record.down_projection(), y, workspace);
  }

  /// The backward pass up to the factors: dB_e += s dY_e^T U_e, dA += V^T drop(X) with V_e = s dY_e B_e.
  /// Returns V (N x r E) in the workspace. rank() > 0.
  [[nodiscard]] MatrixView<const Scalar> backward(const MatrixView<const Scalar>& x, const LoraRecord<Scalar>& record,
                                                  const MatrixView<const Scalar>& dy, LoraGradients<Scalar>& gradients,
                                                  Workspace& workspace) const {
    Executor& executor = workspace.executor();
    const auto v = columns(workspace, dy.rows);
    const auto factor = scaled_b_transposed(workspace);
    const auto u = record.down_projection();
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::factor_gradient, b_.size());
    const MatrixView<Scalar> db{memory, rank(), b_.rows(), b_.rows(), 1};  // of B transposed
    db.map().setZero();
    for (Index e = 0; e < enabled(); ++e) {
      const auto dy_e = dy.middle_cols(first_output(e), features_);
      kernels::project_down(dy_e, DropoutMask<Scalar>{}, factor.middle_cols(e * features_, features_), Scalar(1),
                            v.middle_cols(e * rank(), rank()), executor);
      kernels::add_outer(u.middle_cols(e * rank(), rank()), dy_e, DropoutMask<Scalar>{}, scaling(),
                         db.middle_cols(e * features_, features_), executor);
    }
    gradients.B += db.map().transpose();
    kernels::add_outer(MatrixView<const Scalar>(v), x, mask(record), Scalar(1), view_of(gradients.A), executor);
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

 private:
  static const LoraConfig& checked(std::string_view operation, const LoraConfig& config) {
    check_config(operation, config);
    if (!std::isfinite(static_cast<Scalar>(config.scaling()))) {
      throw ConfigError(operation, "alpha", "a scaling that is finite in the layer's scalar type",
                        detail::number_text(config.alpha));
    }
    if (config.lora_bias) throw ConfigError(operation, "lora_bias", "false for this kind of layer", "true");
    if (config.use_dora) throw ConfigError(operation, "use_dora", "false for this kind of layer", "true");
    const InitLoraWeights init = config.init_lora_weights;
    if (init != InitLoraWeights::kaiming_uniform && init != InitLoraWeights::gaussian &&
        init != InitLoraWeights::random) {
      throw ConfigError(operation, "init_lora_weights", "kaiming_uniform, gaussian or random", "another");
    }
    return config;
  }

  void initialize() noexcept {
    const RandomStream stream_a(seed_, detail::stream_of_A);
    const auto r = static_cast<double>(rank());
    if (config_.init_lora_weights == InitLoraWeights::gaussian) {
      fill_normal(view_of(a_), 1.0 / r, stream_a);
    } else {
      fill_uniform(view_of(a_), 1.0 / std::sqrt(static_cast<double>(a_.cols())), stream_a);
    }
    b_.setZero();
    if (config_.init_lora_weights == InitLoraWeights::random) {
      fill_uniform(view_of(b_), 1.0 / std::sqrt(r), RandomStream(seed_, detail::stream_of_B));
    }
  }

  [[nodiscard]] Index checked_features(std::string_view operation, Index out_features) const {
    const auto projections = static_cast<Index>(enable_lora_.size());
    if (projections == 0) throw ConfigError(operation, "enable_lora", "one entry for each projection", "none");
    if (out_features % projections != 0) {
      std::string expected = "a number of projections that divides out_features, ";
      expected += std::to_string(out_features);
      throw ConfigError(operation, "enable_lora", expected, std::to_string(projections));
    }
    const bool any = std::find(enable_lora_.begin(), enable_lora_.end(), true) != enable_lora_.end();
    if (config_.rank > 0 && !any) {
      throw ConfigError(operation, "enable_lora", "at least one enabled projection with rank 1 or more", "none");
    }
    return out_features / projections;
  }

  [[nodiscard]] Index first_output(Index e) const noexcept { return first_outputs_[static_cast<std::size_t>(e)]; }

  [[nodiscard]] MatrixView<Scalar> columns(Workspace& workspace, Index rows) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::down_projection, rows * total_rank());
    return {memory, rows, total_rank(), total_rank(), 1};
  }

  // A term of the weight's product would have to multiply the blocks that are zero too; one pass more over the enabled
  // blocks of Y costs no more (measured), and leaves the other outputs alone whatever U holds.
  void add_blocks(const MatrixView<const Scalar>& u, const MatrixView<Scalar>& y, Workspace& workspace) const {
    const auto factor = scaled_b_transposed(workspace);
    for (Index e = 0; e < enabled(); ++e) {
      kernels::add_project_up(u.middle_cols(e * rank(), rank()), factor.middle_cols(e * features_, features_),
                              DropoutMask<Scalar>{}, y.middle_cols(first_output(e), features_), workspace.executor());
    }
  }

  [[nodiscard]] MatrixView<const Scalar> scaled_b_transposed(Workspace& workspace) const {
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::up_factor, b_.size());
    const MatrixView<Scalar> transposed{memory, b_.cols(), b_.rows(), b_.rows(), 1};
    kernels::transpose_scaled<Scalar>(view_of(b_), scaling(), memory);
    return transposed;
  }

  LoraConfig config_;
  std::uint64_t seed_;
  std::vector<bool> enable_lora_;
  Index features_;  // m
  Index out_features_;
  std::vector<Index> first_outputs_;  // of the enabled projections
  Matrix<Scalar> a_;
  Matrix<Scalar> b_;
};

}  // namespace lora
