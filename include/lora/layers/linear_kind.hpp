// SPDX-License-Identifier: MIT
// What is specific to a linear layer: the shapes of its factors, its passes over rows, its update of the weight.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/qalora.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/layers/adapter_passes.hpp"
#include "lora/layers/linear_passes.hpp"
#include "lora/layers/operation.hpp"
#include "lora/layers/rows.hpp"

namespace lora {

/// Shapes of an adapter's factors.
struct FactorShape {
  Index a_rows = 0;
  Index a_cols = 0;
  Index b_rows = 0;
  Index b_cols = 0;

  /// Factors of this shape; their elements are not set. @throws std::bad_alloc
  template <class Scalar>
  [[nodiscard]] LoraFactors<Scalar> make() const {
    return {Matrix<Scalar>(a_rows, a_cols), Matrix<Scalar>(b_rows, b_cols)};
  }
};

/// PEFT's name of a parameter in a linear layer or a convolution.
[[nodiscard]] constexpr std::string_view parameter_name(ParameterRole role) noexcept {
  switch (role) {
    case ParameterRole::lora_A:
      return "lora_A.weight";
    case ParameterRole::lora_B:
      return "lora_B.weight";
    case ParameterRole::magnitude:
      return "lora_magnitude_vector.weight";
    case ParameterRole::lora_bias:
      return "lora_B.bias";
    default:
      return "bias";
  }
}

/// A linear layer whose adapters adapt all outputs, or E blocks of m outputs: A is (r E) x in_features, B is (m E) x r,
/// and block e gains s B_e A_e x. With use_qalora A has in_features / group columns. A value; const functions are
/// reentrant.
template <RealScalar ScalarType>
class LinearKind {
 public:
  using Scalar = ScalarType;
  using Passes = LinearPasses<Scalar>;
  using Batch = typename Passes::Batch;
  using Adapter = LoraAdapter<Scalar>;
  static constexpr bool has_input_gradient = true;

  /// `name` is the layer's class in error messages. Pre: it has static storage.
  LinearKind(std::string_view name, Index in_features, OutputBlocks blocks) noexcept
      : name_(name), in_features_(in_features), blocks_(std::move(blocks)) {}

  [[nodiscard]] std::string_view name() const noexcept { return name_; }
  [[nodiscard]] Index in_features() const noexcept { return in_features_; }
  [[nodiscard]] const OutputBlocks& blocks() const noexcept { return blocks_; }
  [[nodiscard]] static constexpr bool stored_transposed() noexcept { return false; }
  [[nodiscard]] Passes passes(const WeightRef<Scalar>& weight) const noexcept { return Passes(weight, blocks_); }

  [[nodiscard]] FactorShape factor_shape(const LoraConfig& config) const noexcept {
    const Index group = config.group_size();
    return {config.rank * blocks_.count(), group > 0 ? in_features_ / group : in_features_, blocks_.adapted(),
            config.rank};
  }

  /// @throws ConfigError for options that this layer does not support.
  void check(std::string_view operation, const LoraConfig& config) const {
    if (config.rank > 0 && blocks_.count() == 0) {
      throw ConfigError(operation, "enable_lora", "at least one enabled projection with rank 1 or more", "none");
    }
    if (config.use_qalora && in_features_ % config.qalora_group_size != 0) {
      throw ConfigError(operation, "qalora_group_size",
                        detail::joined({"a divisor of in_features, ", std::to_string(in_features_)}),
                        std::to_string(config.qalora_group_size));
    }
    const InitLoraWeights init = config.init_lora_weights;
    const bool of_factors_alone = init == InitLoraWeights::kaiming_uniform || init == InitLoraWeights::gaussian ||
                                  init == InitLoraWeights::random;
    if (!blocks_.whole() && config.rank > 0 && !of_factors_alone) {
      throw ConfigError(operation, "init_lora_weights", "kaiming_uniform, gaussian or random for stacked projections",
                        "another");
    }
  }

  /// Whether an adapter may subtract a start.
  [[nodiscard]] bool takes_start() const noexcept { return blocks_.whole(); }

  /// @throws ConfigError; StateError for pissa or olora with a weight that cannot be read; std::bad_alloc
  [[nodiscard]] Adapter make_adapter(std::string_view operation, std::string_view name, const LoraConfig& config,
                                     std::uint64_t seed, const WeightRef<Scalar>& weight) const {
    if (config.rank > 0 && takes_from_weight(config.init_lora_weights)) {
      LoraFactors<Scalar> factors = part_of_weight(operation, weight, config, seed);
      LoraFactors<Scalar> start = factors;
      Adapter adapter(operation, name, config, seed, std::move(factors));
      adapter.start = std::move(start);
      return adapter;
    }
    auto factors = factor_shape(config).template make<Scalar>();
    const InitLoraWeights init = config.init_lora_weights;
    if (config.rank > 0 && blocks_.whole() && init == InitLoraWeights::orthogonal) {
      initialize_orthogonal(seed, view_of(factors.A), view_of(factors.B));
    } else if (config.rank > 0) {
      initialize_factors(init, seed, view_of(factors.A), view_of(factors.B), config.rank);
    }
    return Adapter(operation, name, config, seed, std::move(factors));
  }

  /// s [B, -B0] [A; A0] of the whole weight, with zeros outside the adapted blocks; with use_qalora s B A P.
  [[nodiscard]] WholeUpdate<Scalar> whole_update(const Adapter& adapter, Workspace& workspace) const {
    const bool started = adapter.start.A.size() > 0;
    const Index rank = adapter.A.rows();
    const Index total = adapter.total_rank();
    const Index group = adapter.group_size();
    auto a = workspace.matrix<Scalar>(started || group > 0 ? total : 0, in_features_);
    auto b = workspace.matrix<Scalar>(started || !blocks_.whole() ? blocks_.outputs : 0, total);
    LowRankUpdate<Scalar> update{view_of(adapter.A), view_of(adapter.B), adapter.scaling()};
    if (a.rows > 0) {
      widen_factor<Scalar>(view_of(adapter.A), group, a.middle_rows(0, rank));
      if (started) widen_factor<Scalar>(view_of(adapter.start.A), group, a.middle_rows(rank, total - rank));
      update.a = a;
    }
    if (b.rows > 0) {
      std::fill_n(b.data, b.rows * b.cols, Scalar(0));
      for (Index e = 0; e < blocks_.count(); ++e) {
        for (Index j = 0; j < blocks_.features; ++j) {
          for (Index p = 0; p < adapter.B.cols(); ++p) {
            b(blocks_.begin(e) + j, e * adapter.B.cols() + p) = adapter.B(e * blocks_.features + j, p);
            if (started) b(j, rank + p) = -adapter.start.B(j, p);  // of one block, takes_start()
          }
        }
      }
      update.b = b;
    }
    return {std::move(a), std::move(b), update};
  }

  [[nodiscard]] std::string_view parameter_name(ParameterRole role) const noexcept {
    const bool is_factor = role == ParameterRole::lora_A || role == ParameterRole::lora_B;
    if (blocks_.whole() || !is_factor) return lora::parameter_name(role);
    return role == ParameterRole::lora_A ? "lora_A" : "lora_B";  // loralib's names for loralib's layer
  }

  [[nodiscard]] bool accepts(const LoraTape<Scalar>& tape) const noexcept {
    return tape.inputs() == in_features_ && tape.batch().extents == std::array<Index, 3>{};
  }
  void require_batch(const Operation& operation, const Batch& x, const LoraTape<Scalar>& tape) const {
    require_shape(operation, "x", tape.rows(), in_features_, x.rows, x.cols);
  }

  // How users' inputs and outputs are read.

  /// Whether an input of this type defines a whole batch.
  template <class Input>
  static constexpr bool takes = true;

  /// Calls body with the rows of `x`. @throws ShapeError
  template <class Input, class Body>
  void with_batch(const Operation& operation, const Input& x, Workspace& /*workspace*/, const Body& body) const {
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      require_shape(operation, "x", -1, in_features_, rows.rows, rows.cols);
      body(rows);
    });
  }
  /// The same for the backward pass of the batch that filled a tape.
  template <class Input, class Body>
  void with_tape_batch(const Operation& operation, const Input& x, const LoraTape<Scalar>& /*tape*/,
                       Workspace& workspace, const Body& body) const {
    with_batch(operation, x, workspace, body);
  }
  template <class Input>
  [[nodiscard]] auto make_output(const Operation& /*operation*/, const Input& x) const {
    check_input_scalar<Scalar, Input>();  // before the output, which has the input's scalars, is found wrong
    return RowsOf<Input>::make_output(x, blocks_.outputs);
  }
  template <class Output>
  [[nodiscard]] MatrixView<Scalar> output(const Operation& operation, Output& y, const Batch& x) const {
    const MatrixView<Scalar> rows = output_rows<Scalar>(operation, "y", y, x.rows, blocks_.outputs);
    require_apart(operation, "y", rows, "x", x);
    return rows;
  }
  template <class OutputGradient, class Body>
  void with_output_gradient(const Operation& /*operation*/, const OutputGradient& dy, const LoraTape<Scalar>& /*tape*/,
                            const Body& body) const {
    with_rows<Scalar>(dy, body);
  }
  template <class OutputGradient>
  [[nodiscard]] auto make_input_gradient(const OutputGradient& dy, const LoraTape<Scalar>& /*tape*/) const {
    return RowsOf<OutputGradient>::make_output(dy, in_features_);
  }
  template <class InputGradient>
  [[nodiscard]] MatrixView<Scalar> input_gradient(const Operation& operation, InputGradient& dx, const Batch& x,
                                                  const LoraTape<Scalar>& tape) const {
    const MatrixView<Scalar> rows = output_rows<Scalar>(operation, "dx", dx, tape.rows(), in_features_);
    require_apart(operation, "dx", rows, "x", x);
    return rows;
  }

  /// The input of the last forward pass in training mode.
  class Memory {
   public:
    /// Makes room for a batch. @throws std::bad_alloc
    void reserve(const Batch& x) {
      const auto wanted = static_cast<std::size_t>(x.rows * x.cols);
      if (values_.size() < wanted) values_.resize(wanted);
    }
    void assign(const Batch& x) noexcept { copy_elements(x, MatrixView<Scalar>{values_.data(), x.rows, x.cols}); }
    [[nodiscard]] Batch batch(const LoraTape<Scalar>& tape) const noexcept {
      return {values_.data(), tape.rows(), tape.inputs(), tape.inputs(), 1};
    }

   private:
    std::vector<Scalar> values_;
  };

 private:
  // Pissa and olora, in double. `Wide` is a parameter so that only layers that are used compile the start.
  template <class Wide = double>
  [[nodiscard]] LORA_COLD static LoraFactors<Scalar> part_of_weight(std::string_view operation,
                                                                    const WeightRef<Scalar>& weight,
                                                                    const LoraConfig& config, std::uint64_t seed) {
    const Index outputs = weight.out_features();
    const Index inputs = weight.in_features();
    std::vector<Wide> values(static_cast<std::size_t>(outputs * inputs));
    for_each_row(weight, [&](Index i, const Scalar* row) { std::copy_n(row, inputs, values.begin() + i * inputs); });
    const MatrixView<const Wide> w{values.data(), outputs, inputs, inputs, 1};
    const auto found = factors_from_weight(operation, w, config, seed);
    LoraFactors<Scalar> factors{Matrix<Scalar>(config.rank, inputs), Matrix<Scalar>(outputs, config.rank)};
    for (Index i = 0; i < found.A.size(); ++i) factors.A.data()[i] = static_cast<Scalar>(found.A.data()[i]);
    for (Index i = 0; i < found.B.size(); ++i) factors.B.data()[i] = static_cast<Scalar>(found.B.data()[i]);
    return factors;
  }

  std::string_view name_;
  Index in_features_;
  OutputBlocks blocks_;
};

#if defined(LORA_COMPILED)
extern template class AdapterPasses<LinearKind<float>, LinearPasses<float>>;
extern template class AdapterPasses<LinearKind<double>, LinearPasses<double>>;
#endif

}  // namespace lora
