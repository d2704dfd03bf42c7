// SPDX-License-Identifier: MIT
// What is specific to a convolution: the shapes of its factors, its passes over images, its update of the weight.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/layers/adapter_passes.hpp"
#include "lora/layers/conv_passes.hpp"
#include "lora/layers/linear_kind.hpp"

namespace lora {

/// A convolution with a given geometry. A (rank x fan_in) is the kernel of a convolution to `rank` channels, and B
/// (out_channels x rank / groups) that of the 1 x 1 convolution after it, with fan_in = in_channels / groups * product
/// of the kernel. With groups, rank / groups rows of A and of B's inputs belong to each group and see only its
/// channels, so that the update s B A has the frozen weight's shape. A value; const functions are reentrant.
template <RealScalar ScalarType, int Dim>
class ConvKind {
 public:
  using Scalar = ScalarType;
  using Passes = ConvPasses<Scalar, Dim>;
  using Batch = typename Passes::Batch;
  using Adapter = LoraAdapter<Scalar>;
  using Geometry = ConvGeometry<Dim>;
  static constexpr bool has_input_gradient = true;

  explicit ConvKind(const Geometry& geometry)
      : geometry_(geometry), blocks_(OutputBlocks::all(geometry.out_channels)) {}

  [[nodiscard]] static constexpr std::string_view name() noexcept { return "LoraConv"; }
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] Index in_features() const noexcept { return geometry_.fan_in(); }
  [[nodiscard]] const OutputBlocks& blocks() const noexcept { return blocks_; }
  [[nodiscard]] static constexpr bool stored_transposed() noexcept { return false; }
  [[nodiscard]] Passes passes(const WeightRef<Scalar>& weight) const noexcept { return Passes(weight, geometry_); }

  [[nodiscard]] FactorShape factor_shape(const LoraConfig& config) const noexcept {
    return {config.rank, geometry_.fan_in(), geometry_.out_channels, config.rank / geometry_.groups};
  }

  /// @throws ConfigError for options that this layer does not support.
  void check(std::string_view operation, const LoraConfig& config) const {
    if (config.rank % geometry_.groups != 0) {
      throw ConfigError(operation, "rank",
                        detail::joined({"a multiple of ", std::to_string(geometry_.groups), " groups"}),
                        std::to_string(config.rank));
    }
    if (config.use_qalora) throw ConfigError(operation, "use_qalora", "false for a convolution", "true");
    if (config.fan_in_fan_out) throw ConfigError(operation, "fan_in_fan_out", "false for a convolution", "true");
    if (config.rank > 0 && config.init_lora_weights > InitLoraWeights::random) {
      throw ConfigError(operation, "init_lora_weights", "kaiming_uniform, gaussian or random for a convolution",
                        "another");
    }
  }

  [[nodiscard]] static constexpr bool takes_start() noexcept { return false; }

  [[nodiscard]] Adapter make_adapter(std::string_view operation, std::string_view name, const LoraConfig& config,
                                     std::uint64_t seed, const WeightRef<Scalar>& /*weight*/) const {
    auto factors = factor_shape(config).template make<Scalar>();
    if (config.rank > 0) initialize_factors(config.init_lora_weights, seed, view_of(factors.A), view_of(factors.B));
    return Adapter(operation, name, config, seed, std::move(factors));
  }

  /// s B A of the whole weight; with groups, B has zeros for the ranks that an output does not see.
  [[nodiscard]] WholeUpdate<Scalar> whole_update(const Adapter& adapter, Workspace& workspace) const {
    const bool grouped = geometry_.groups > 1;
    const Index rank = adapter.A.rows();
    auto a = workspace.matrix<Scalar>(0, 0);
    auto b = workspace.matrix<Scalar>(grouped ? geometry_.out_channels : 0, rank);
    LowRankUpdate<Scalar> update{view_of(adapter.A), view_of(adapter.B), adapter.scaling()};
    if (grouped) {
      std::fill_n(b.data, b.rows * b.cols, Scalar(0));
      const Index own = rank / geometry_.groups;
      for (Index o = 0; o < geometry_.out_channels; ++o) {
        const Index first = o / geometry_.group_outputs() * own;
        for (Index q = 0; q < own; ++q) b(o, first + q) = adapter.B(o, q);
      }
      update.b = b;
    }
    return {std::move(a), std::move(b), update};
  }

  [[nodiscard]] static std::string_view parameter_name(ParameterRole role) noexcept {
    return lora::parameter_name(role);
  }

  [[nodiscard]] bool accepts(const LoraTape<Scalar>& tape) const noexcept {
    const auto extents = Passes::image_extents(tape.batch());
    return takes_extents(geometry_, extents) &&
           tape.inputs() == detail::saturated_product(geometry_.in_channels, extents);
  }
  void require_batch(const Operation& operation, const Batch& x, const LoraTape<Scalar>& tape) const {
    require_shape(operation, "x", tape.rows(), tape.inputs(), x.rows.rows, x.rows.cols);
  }

  // How users' inputs and outputs are read: tensors, which know their extents, or Images.

  template <class Input>
  static constexpr bool takes = TensorLike<Input> || detail::is_images<Input>;

  template <class Input, class Body>
  void with_batch(const Operation& operation, const Input& x, Workspace& /*workspace*/, const Body& body) const {
    const ImageExtents<Dim> extents = extents_in(x);
    static_cast<void>(checked_output(operation, extents));
    read_images(operation, rows_in(x), extents, body);
  }
  template <class Input, class Body>
  void with_tape_batch(const Operation& operation, const Input& x, const LoraTape<Scalar>& tape,
                       Workspace& /*workspace*/, const Body& body) const {
    read_images(operation, rows_in(x), Passes::image_extents(tape.batch()), body, /*check=*/tape.rows() >= 0);
  }
  template <class Input>
  [[nodiscard]] auto make_output(const Operation& operation, const Input& x) const {
    const ImageExtents<Dim> extents = extents_in(x);
    const ImageExtents<Dim> output = checked_output(operation, extents);
    Index samples = 0;
    read_images(operation, rows_in(x), extents, [&](const Batch& batch) { samples = batch.rows.rows; });
    return make_images<Dim>(rows_in(x), samples, geometry_.out_channels, output);
  }
  template <class Output>
  [[nodiscard]] MatrixView<Scalar> output(const Operation& operation, Output& y, const Batch& x) const {
    const auto rows = output_images<Scalar, Dim>(operation, "y", y, x.rows.rows, geometry_.out_channels,
                                                 unchecked_output_extents(geometry_, x.extents));
    require_apart(operation, "y", rows, "x", x.rows);
    return rows;
  }
  template <class OutputGradient, class Body>
  void with_output_gradient(const Operation& operation, const OutputGradient& dy, const LoraTape<Scalar>& tape,
                            const Body& body) const {
    if (tape.rows() >= 0) {
      check_images<Dim>(operation, "dy", dy, tape.rows(), geometry_.out_channels,
                        unchecked_output_extents(geometry_, Passes::image_extents(tape.batch())));
    }
    with_images<Scalar, Dim>(dy, body);
  }
  template <class OutputGradient>
  [[nodiscard]] auto make_input_gradient(const OutputGradient& dy, const LoraTape<Scalar>& tape) const {
    return make_images<Dim>(dy, tape.rows(), geometry_.in_channels, Passes::image_extents(tape.batch()));
  }
  template <class InputGradient>
  [[nodiscard]] MatrixView<Scalar> input_gradient(const Operation& operation, InputGradient& dx, const Batch& x,
                                                  const LoraTape<Scalar>& tape) const {
    const auto rows = output_images<Scalar, Dim>(operation, "dx", dx, tape.rows(), geometry_.in_channels,
                                                 Passes::image_extents(tape.batch()));
    require_apart(operation, "dx", rows, "x", x.rows);
    return rows;
  }

  /// The images of the last forward pass in training mode.
  class Memory {
   public:
    void reserve(const Batch& x) { rows_.reserve(x.rows); }
    void assign(const Batch& x) noexcept { rows_.assign(x.rows); }
    [[nodiscard]] Batch batch(const LoraTape<Scalar>& tape) const noexcept {
      return {rows_.batch(tape), Passes::image_extents(tape.batch())};
    }

   private:
    typename LinearKind<Scalar>::Memory rows_;
  };

 private:
  template <class Input>
  [[nodiscard]] static ImageExtents<Dim> extents_in(const Input& x) {
    if constexpr (TensorLike<Input>) {
      return extents_of<Dim>(x);
    } else {
      return x.extents;
    }
  }
  template <class Input>
  [[nodiscard]] static const auto& rows_in(const Input& x) noexcept {
    if constexpr (detail::is_images<Input>) {
      return x.rows;
    } else {
      return x;
    }
  }
  [[nodiscard]] ImageExtents<Dim> checked_output(const Operation& operation, const ImageExtents<Dim>& extents) const {
    if (takes_extents(geometry_, extents)) return unchecked_output_extents(geometry_, extents);
    return output_extents(operation.text(), geometry_, extents);
  }
  template <class Input, class Body>
  void read_images(const Operation& operation, const Input& x, const ImageExtents<Dim>& extents, const Body& body,
                   bool check = true) const {
    if (check) check_images<Dim>(operation, "x", x, -1, geometry_.in_channels, extents);
    with_images<Scalar, Dim>(x, [&](const MatrixView<const Scalar>& rows) {
      if (check) {
        require_shape(operation, "x", -1, detail::saturated_product(geometry_.in_channels, extents), rows.rows,
                      rows.cols);
      }
      body(Batch{rows, extents});
    });
  }

  Geometry geometry_;
  OutputBlocks blocks_;
};

#if defined(LORA_COMPILED)
extern template class AdapterPasses<ConvKind<float, 1>, ConvPasses<float, 1>>;
extern template class AdapterPasses<ConvKind<float, 2>, ConvPasses<float, 2>>;
extern template class AdapterPasses<ConvKind<float, 3>, ConvPasses<float, 3>>;
extern template class AdapterPasses<ConvKind<double, 1>, ConvPasses<double, 1>>;
extern template class AdapterPasses<ConvKind<double, 2>, ConvPasses<double, 2>>;
extern template class AdapterPasses<ConvKind<double, 3>, ConvPasses<double, 3>>;
#endif

}  // namespace lora
