// The trainable factors of one convolution, and what they are to its frozen weight.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/gradients.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/kernels/convolution.hpp"
#include "lora/layers/conv_geometry.hpp"
#include "lora/layers/conv_record.hpp"
#include "lora/weight/low_rank_update.hpp"

namespace lora {

/// A (rank x fan_in), the kernel of a convolution to `rank` channels, and B (out_channels x rank / groups), one of 1 x
/// 1 behind it; with use_dora a magnitude per output channel. fan_in = in_channels / groups * product of the kernel.
///
/// With groups, rank / groups rows of A and of B's inputs belong to each group and see only its channels, so that the
/// update s*B*A has the frozen weight's shape: of group g, s * B_g * A_g. This is a value that knows nothing of the
/// weight; const functions are reentrant.
template <RealScalar Scalar>
class ConvAdapter {
 public:
  /// Starts A and B as the configuration says, the magnitude empty. @throws ConfigError, std::bad_alloc
  template <int Dim>
  ConvAdapter(std::string_view operation, const ConvGeometry<Dim>& geometry, const LoraConfig& config,
              std::uint64_t seed)
      : config_(checked(operation, config, geometry.groups)),
        seed_(seed),
        groups_(geometry.groups),
        a_(config.rank, geometry.fan_in()),
        b_(geometry.out_channels, config.rank / geometry.groups),
        lora_bias_(RowVector<Scalar>::Zero(config.lora_bias ? geometry.out_channels : 0)) {
    if (config.rank > 0) initialize_factors(config.init_lora_weights, seed, view_of(a_), view_of(b_));
  }

  [[nodiscard]] const LoraConfig& config() const noexcept { return config_; }
  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
  [[nodiscard]] Index rank() const noexcept { return a_.rows(); }
  [[nodiscard]] Index group_rank() const noexcept { return b_.cols(); }
  [[nodiscard]] Scalar scaling() const noexcept { return static_cast<Scalar>(config_.scaling()); }
  [[nodiscard]] const Matrix<Scalar>& A() const noexcept { return a_; }
  [[nodiscard]] const Matrix<Scalar>& B() const noexcept { return b_; }
  [[nodiscard]] const RowVector<Scalar>& lora_bias() const noexcept { return lora_bias_; }
  [[nodiscard]] const RowVector<Scalar>& magnitude() const noexcept { return magnitude_; }
  [[nodiscard]] Matrix<Scalar>& A() noexcept { return a_; }
  [[nodiscard]] Matrix<Scalar>& B() noexcept { return b_; }
  [[nodiscard]] RowVector<Scalar>& lora_bias() noexcept { return lora_bias_; }
  [[nodiscard]] RowVector<Scalar>& magnitude() noexcept { return magnitude_; }

  /// @throws ConfigError when alpha, or the scaling it gives, is not finite.
  void set_alpha(std::string_view operation, double alpha) {
    LoraConfig changed = config_;
    changed.alpha = alpha;
    config_ = checked(operation, changed, groups_);
  }

  /// The update of the weight's rows of group `g`.
  [[nodiscard]] LowRankUpdate<Scalar> update(Index g) const noexcept {
    const Index outputs = b_.rows() / groups_;
    return {view_of(a_).middle_rows(g * group_rank(), group_rank()), view_of(b_).middle_rows(g * outputs, outputs),
            scaling()};
  }

  /// The mask of a recorded pass; keeps everything without dropout.
  [[nodiscard]] DropoutMask<Scalar> mask(const DropoutBits& bits) const noexcept {
    return drops() ? bits.template mask<Scalar>(config_.dropout) : DropoutMask<Scalar>{};
  }
  [[nodiscard]] bool drops() const noexcept { return rank() > 0 && config_.dropout > 0; }

  /// Whether `bits` are a mask exactly if this adapter drops, of a size that fits.
  [[nodiscard]] bool fits(const DropoutBits& bits, Index samples, Index features) const noexcept {
    return bits.bytes() == static_cast<std::size_t>(drops() ? samples * ((features + 7) / 8) : 0);
  }

  /// Gradients of the right shapes, zero, with `bias_size` for the bias of the layer.
  [[nodiscard]] LoraGradients<Scalar> make_gradients(Index bias_size) const {
    const auto zeros = [](Index size) { return RowVector<Scalar>(RowVector<Scalar>::Zero(size)); };
    return {Matrix<Scalar>::Zero(a_.rows(), a_.cols()), Matrix<Scalar>::Zero(b_.rows(), b_.cols()),
            zeros(lora_bias_.size()), zeros(bias_size), zeros(magnitude_.size())};
  }
  /// @throws ShapeError unless they have these shapes.
  void check_gradients(std::string_view operation, const LoraGradients<Scalar>& gradients, Index bias_size) const {
    check_shape(operation, "gradients.A", gradients.A, a_.rows(), a_.cols());
    check_shape(operation, "gradients.B", gradients.B, b_.rows(), b_.cols());
    check_shape(operation, "gradients.lora_bias", gradients.lora_bias, 1, lora_bias_.size());
    check_shape(operation, "gradients.bias", gradients.bias, 1, bias_size);
    check_shape(operation, "gradients.magnitude", gradients.magnitude, 1, magnitude_.size());
  }

  /// The backward pass up to the factors, per group: dB += s dZ U^T, dA += V drop(X)^T over the unfolded input,
  /// dlora_bias += s sum(dY), where dZ = factors (.) dY, or dY where `factors` is null, and U is that of the forward
  /// pass. Returns V = s B^T dZ (rank x positions) in the workspace. rank() > 0.
  [[nodiscard]] MatrixView<const Scalar> backward(const kernels::ConvShape& shape, const MatrixView<const Scalar>& x,
                                                  const DropoutMask<Scalar>& mask, const MatrixView<const Scalar>& u,
                                                  const MatrixView<const Scalar>& dy, const Scalar* factors,
                                                  LoraGradients<Scalar>& gradients, Workspace& workspace) const {
    const Index rank = shape.group_rank;
    const Index fan_in = shape.fan_in();
    if (config_.lora_bias) add_channel_sums(dy, scaling(), gradients.lora_bias, workspace.executor());
    auto* memory = workspace.reserve<Scalar>(Workspace::Slot::down_projection, shape.rank() * shape.positions());
    const MatrixView<Scalar> v{memory, shape.rank(), shape.positions(), shape.positions(), 1};
    kernels::project_outputs<Scalar>(shape, dy, view_of(b_), scaling(), factors, v, workspace);
    const kernels::LineProductCall<Scalar> for_a{shape.walk, shape.groups, fan_in, rank, x, mask,
                                                 v,          Scalar(1),    nullptr};
    kernels::add_line_products(for_a, workspace, [&](Index line, Index p, Scalar sum) {
      gradients.A(line / fan_in * rank + p, line % fan_in) += sum;
    });
    const kernels::LineProductCall<Scalar> for_b{
        shape.output_walk(), shape.groups, shape.group_outputs, rank, dy, {}, u, scaling(), factors};
    kernels::add_line_products(for_b, workspace, [&](Index o, Index p, Scalar sum) { gradients.B(o, p) += sum; });
    return v;
  }

  /// bias + s * lora_bias in the workspace, or `bias` itself, or null where neither is. lora_bias counts whether the
  /// layer is merged or not.
  [[nodiscard]] const Scalar* effective_bias(const RowVector<Scalar>& bias, Workspace& workspace) const {
    if (!config_.lora_bias) return bias.size() > 0 ? bias.data() : nullptr;
    auto* sum = workspace.reserve<Scalar>(Workspace::Slot::bias, lora_bias_.size());
    for (Index o = 0; o < lora_bias_.size(); ++o)
      sum[o] = (bias.size() > 0 ? bias[o] : Scalar(0)) + scaling() * lora_bias_[o];
    return sum;
  }

  /// DoRA: the norm of every row of W0 + s*B*A, sums in double. `weight` is W0, out_channels x fan_in, rows contiguous.
  /// Allocates only to grow the workspace.
  void row_norms(const MatrixView<const Scalar>& weight, Scalar* norms, Workspace& workspace) const {
    const Index outputs = b_.rows() / groups_;
    const Index per_worker = kernels::separate_lines<Scalar>(a_.cols() + group_rank());
    auto* memory =
        workspace.reserve<Scalar>(Workspace::Slot::row_norm_terms, per_worker * workspace.executor().workers());
    const auto kernel = kernels::delta_kernel<Scalar>();
    parallel_ranges(workspace.executor(), b_.rows(), 8, [&](Index begin, Index end, int worker) {
      Scalar* const row = memory + worker * per_worker;
      Scalar* const coefficients = row + a_.cols();
      for (Index o = begin; o < end; ++o) {
        for (Index p = 0; p < group_rank(); ++p) coefficients[p] = scaling() * b_(o, p);
        kernel(coefficients, 1, a_.data() + o / outputs * group_rank() * a_.cols(), a_.cols(), group_rank(), a_.cols(),
               row);
        norms[o] = norm_of_sum(&weight(o, 0), row, a_.cols());
      }
    });
  }

  /// factors = magnitude / norms; the two may be the same. A row whose norm is 0, or not a normal number, has no
  /// direction: its factor is 1.
  void divide(const Scalar* norms, Scalar* factors) const noexcept {
    for (Index o = 0; o < magnitude_.size(); ++o)
      factors[o] = has_direction(norms[o]) ? magnitude_[o] / norms[o] : Scalar(1);
  }

  /// With use_dora starts the magnitude as the norms of the rows of W0 + s*B*A. @throws std::bad_alloc
  void start_magnitude(const MatrixView<const Scalar>& weight) {
    if (!config_.use_dora) return;
    Workspace workspace;
    magnitude_.resize(b_.rows());
    row_norms(weight, magnitude_.data(), workspace);
  }

  /// DoRA's magnitude over norm for A and B as they are, out_channels scalars in the workspace.
  [[nodiscard]] Scalar* factors(const MatrixView<const Scalar>& weight, Workspace& workspace) const {
    auto* result = workspace.reserve<Scalar>(Workspace::Slot::output_factors, b_.rows());
    row_norms(weight, result, workspace);
    divide(result, result);
    return result;
  }

  /// DoRA: adds (sum over samples and positions, in order, of dY (.) Z) / norms, 0 for a row without direction.
  void add_magnitude_gradient(const MatrixView<const Scalar>& z, const Scalar* norms,
                              const MatrixView<const Scalar>& dy, RowVector<Scalar>& gradient,
                              Executor& executor) const {
    const Index size = dy.cols / magnitude_.size();
    parallel_ranges(executor, magnitude_.size(), 8, [&](Index begin, Index end, int /*worker*/) {
      for (Index o = begin; o < end; ++o) {
        if (!has_direction(norms[o])) continue;
        const Scalar sum =
            sum_of(dy.rows, size, [&](Index n, Index p) { return dy(n, o * size + p) * z(n, o * size + p); });
        gradient[o] += sum / norms[o];
      }
    });
  }

  /// target += scale * (sum over samples and positions, in order, of each output channel of dY).
  static void add_channel_sums(const MatrixView<const Scalar>& dy, Scalar scale, RowVector<Scalar>& target,
                               Executor& executor) {
    const Index size = dy.cols / std::max<Index>(target.size(), 1);
    parallel_ranges(executor, target.size(), 8, [&](Index begin, Index end, int /*worker*/) {
      for (Index o = begin; o < end; ++o) {
        target[o] += scale * sum_of(dy.rows, size, [&](Index n, Index p) { return dy(n, o * size + p); });
      }
    });
  }

 private:
  template <class T>
  using Sums = std::array<T, 8>;  // sums that do not wait for each other

  static const LoraConfig& checked(std::string_view operation, const LoraConfig& config, Index groups) {
    check_config(operation, config);
    if (!std::isfinite(static_cast<Scalar>(config.scaling()))) {
      throw ConfigError(operation, "alpha", "a scaling that is finite in the layer's scalar type",
                        detail::number_text(config.alpha));
    }
    if (config.rank % groups != 0) {
      std::string expected = "a multiple of ";
      expected += std::to_string(groups);
      expected += " groups";
      throw ConfigError(operation, "rank", expected, std::to_string(config.rank));
    }
    if (config.fan_in_fan_out) throw ConfigError(operation, "fan_in_fan_out", "false for a convolution", "true");
    if (config.init_lora_weights > InitLoraWeights::random) {
      throw ConfigError(operation, "init_lora_weights", "kaiming_uniform, gaussian or random for a convolution",
                        "another");
    }
    return config;
  }

  [[nodiscard]] static bool has_direction(Scalar norm) noexcept { return norm >= std::numeric_limits<Scalar>::min(); }

  template <class Value>
  [[nodiscard]] static Scalar sum_of(Index samples, Index size, const Value& value) {
    Sums<Scalar> sums{};
    for (Index n = 0; n < samples; ++n)
      for (Index p = 0; p < size; ++p) sums[static_cast<std::size_t>(p % 8)] += value(n, p);
    return total(sums);
  }

  [[nodiscard]] static Scalar norm_of_sum(const Scalar* a, const Scalar* b, Index size) {
    Sums<double> sums{};
    for (Index i = 0; i < size; ++i) {
      const double sum = static_cast<double>(a[i]) + static_cast<double>(b[i]);
      sums[static_cast<std::size_t>(i % 8)] += sum * sum;
    }
    return static_cast<Scalar>(std::sqrt(total(sums)));
  }

  template <class T>
  [[nodiscard]] static T total(const Sums<T>& s) noexcept {
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }

  LoraConfig config_;
  std::uint64_t seed_;
  Index groups_;
  Matrix<Scalar> a_;
  Matrix<Scalar> b_;
  RowVector<Scalar> lora_bias_;
  RowVector<Scalar> magnitude_;
};

}  // namespace lora
