// SPDX-License-Identifier: MIT
// A layer of any kind as a model sees it: it accepts adapters, trains and merges them, and returns their weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/core/claim.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/layers/conv_kind.hpp"
#include "lora/layers/embedding_kind.hpp"
#include "lora/layers/layer_core.hpp"
#include "lora/layers/linear_kind.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

/// A snapshot of a layer's mode and merging: whether it trains, and the ids of the merged adapters in the order of
/// merging.
struct LayerMode {
  bool training = true;
  std::vector<std::uint64_t> merged;
};

/// What LoraModel needs from a layer. The layer itself stays with its owner.
template <RealScalar Scalar>
class ModelLayer {
 public:
  using Adapter = LoraAdapter<Scalar>;

  ModelLayer() = default;
  ModelLayer(const ModelLayer&) = delete;
  ModelLayer& operator=(const ModelLayer&) = delete;
  ModelLayer(ModelLayer&&) = delete;
  ModelLayer& operator=(ModelLayer&&) = delete;
  virtual ~ModelLayer() = default;

  [[nodiscard]] virtual ModuleKind kind() const noexcept = 0;
  [[nodiscard]] virtual Claim& claim() noexcept = 0;
  [[nodiscard]] virtual Index adapter_count() const noexcept = 0;
  [[nodiscard]] virtual bool stored_transposed() const noexcept = 0;
  /// Scalars of the frozen weight and its bias.
  [[nodiscard]] virtual Index base_size() const noexcept = 0;
  [[nodiscard]] virtual Index bias_size() const noexcept = 0;
  /// Scalars of all adapters, without the layer's bias, which one of them may train.
  [[nodiscard]] virtual Index adapter_size() const noexcept = 0;
  /// Scalars that train now.
  [[nodiscard]] virtual Index trainable_size() const noexcept = 0;

  /// The configuration this layer needs for an adapter with `file_rank` in a file, where `config` describes it either
  /// as the file does or as the layer does.
  [[nodiscard]] virtual LoraConfig config_of_file(const LoraConfig& config, Index file_rank) const = 0;
  /// @throws ConfigError, StateError if the layer would refuse an adapter of this configuration.
  virtual void check_adapter(std::string_view operation, const LoraConfig& config) const = 0;
  /// Creates an adapter without adding it. @throws like check_adapter; std::bad_alloc
  [[nodiscard]] virtual std::unique_ptr<Adapter> make_adapter(std::string_view operation, std::string_view name,
                                                              const LoraConfig& config, std::uint64_t seed) = 0;
  /// Makes room for adopt(). @throws std::bad_alloc
  virtual void reserve_adapter() = 0;
  virtual void adopt(std::unique_ptr<Adapter> adapter) noexcept = 0;
  virtual void erase_adapter(std::string_view name) noexcept = 0;
  [[nodiscard]] virtual const Adapter* find_adapter(std::string_view name) const noexcept = 0;
  /// Positions of those of the named adapters that the layer has. @throws std::bad_alloc
  [[nodiscard]] virtual std::vector<Index> positions(std::span<const std::string> names) const = 0;
  /// Positions of the active adapters, in their order.
  [[nodiscard]] virtual const std::vector<Index>& active() const noexcept = 0;
  /// Makes these the active adapters. Pre: nothing is merged.
  virtual void set_active(const std::vector<Index>& positions) noexcept = 0;
  virtual void enable_adapters(bool enabled) noexcept = 0;
  /// @throws ConfigError; StateError while merged
  virtual void check_scale(std::string_view operation, std::string_view name, double factor) const = 0;
  virtual void set_scale(std::string_view operation, std::string_view name, double factor) = 0;
  [[nodiscard]] virtual std::vector<Index> row_choices(std::span<const std::string> names) const = 0;
  virtual void set_row_choices(std::vector<Index>& choices) noexcept = 0;

  /// The weights of an adapter of this layer, in the form of files. A copy.
  [[nodiscard]] virtual ModuleWeights<Scalar> weights(const Adapter& adapter) const = 0;
  /// Why `weights` cannot be an adapter of `config` in this layer; empty if they can.
  [[nodiscard]] virtual std::string misfit(const LoraConfig& config, const ModuleWeights<Scalar>& weights) const = 0;
  /// Sets the values of an adapter with this layer's shapes. @throws ConfigError
  virtual void fill(std::string_view operation, Adapter& adapter, const ModuleWeights<Scalar>& weights) const = 0;

  [[nodiscard]] virtual std::span<Parameter<Scalar>> parameters() = 0;
  virtual void zero_grad() noexcept = 0;
  [[nodiscard]] virtual bool merged() const noexcept = 0;
  /// Names in the order of merging. A copy. @throws std::bad_alloc
  [[nodiscard]] virtual std::vector<std::string> merged_adapters() const = 0;
  /// A copy. @throws std::bad_alloc
  [[nodiscard]] virtual LayerMode mode() const = 0;
  /// Returns to an earlier mode; adapters and factors must be as they were then. Allocates only if adapters were
  /// unmerged since; without memory those stay unmerged.
  virtual void restore(const LayerMode& former) noexcept = 0;
  virtual void train() = 0;
  virtual void eval() = 0;
  virtual void merge(const std::vector<Index>& positions) = 0;
  virtual void unmerge(const std::vector<Index>& positions) = 0;
  virtual void unmerge() noexcept = 0;
  /// What the output adds once these are merged beside what is. A copy. @throws std::bad_alloc
  [[nodiscard]] virtual RowVector<Scalar> answer_bias(const std::vector<Index>& positions) const = 0;
  /// Keeps what is merged permanently, with this bias; the layer has no adapters afterwards.
  virtual void keep_merged(RowVector<Scalar>& bias) noexcept = 0;
  /// Restores the frozen layer, unless it has adapters.
  virtual void reset() noexcept = 0;
};

/// The kind that a layer has in files. Specialise it for your own kind of layer.
template <class Kind>
struct ModuleKindOf;
template <class Scalar>
struct ModuleKindOf<LinearKind<Scalar>> {
  static constexpr ModuleKind value = ModuleKind::linear;
};
template <class Scalar>
struct ModuleKindOf<EmbeddingKind<Scalar>> {
  static constexpr ModuleKind value = ModuleKind::embedding;
};
template <class Scalar, int Dim>
struct ModuleKindOf<ConvKind<Scalar, Dim>> {
  static constexpr ModuleKind value = Dim == 1   ? ModuleKind::conv1d
                                      : Dim == 2 ? ModuleKind::conv2d
                                                 : ModuleKind::conv3d;
};

/// A layer that can be added to a LoraModel: it derives from LayerCore, with a kind that exists in files.
template <class Layer>
concept AdaptableLayer = std::derived_from<Layer, LayerCore<typename Layer::Kind>> && requires {
  { ModuleKindOf<typename Layer::Kind>::value } -> std::convertible_to<ModuleKind>;
};

/// A reference to a layer of a given kind. The layer must outlive it and must not move.
///
/// In files, a layer whose adapters adapt E blocks of its outputs is a linear layer of rank r E whose B is zero outside
/// the blocks. Its alpha is E times the layer's (sqrt(E) times with use_rslora), which keeps the scaling.
template <class Kind>
class HeldLayer final : public ModelLayer<typename Kind::Scalar> {
 public:
  using Scalar = typename Kind::Scalar;
  using Adapter = LoraAdapter<Scalar>;
  using Core = LayerCore<Kind>;

  explicit HeldLayer(Core& layer) noexcept : layer_(layer) {}

  [[nodiscard]] ModuleKind kind() const noexcept override { return ModuleKindOf<Kind>::value; }
  [[nodiscard]] Claim& claim() noexcept override { return layer_.claim_; }
  [[nodiscard]] Index adapter_count() const noexcept override { return layer_.adapters_.size(); }
  [[nodiscard]] bool stored_transposed() const noexcept override { return layer_.plain_.fan_in_fan_out; }
  [[nodiscard]] Index base_size() const noexcept override {
    return layer_.in_features() * layer_.out_features() + bias_size();
  }
  [[nodiscard]] Index bias_size() const noexcept override { return layer_.bias_.size(); }
  [[nodiscard]] Index adapter_size() const noexcept override {
    Index size = 0;
    for (Index i = 0; i < layer_.adapters_.size(); ++i) {
      size += layer_.adapters_[i].parameter_count() - layer_.adapters_[i].bias.size();
    }
    return size;
  }
  [[nodiscard]] Index trainable_size() const noexcept override { return layer_.trainable_parameter_count(); }

  [[nodiscard]] LoraConfig config_of_file(const LoraConfig& config, Index file_rank) const override {
    LoraConfig own = config;
    const Index count = blocks().count();
    if (blocks().whole() || count == 0 || own.rank % count != 0 || own.rank != file_rank) return own;
    own.rank /= count;
    own.alpha /= own.use_rslora ? std::sqrt(static_cast<double>(count)) : static_cast<double>(count);
    return own;
  }
  void check_adapter(std::string_view operation, const LoraConfig& config) const override {
    layer_.check_adapter(operation, config);
  }
  [[nodiscard]] std::unique_ptr<Adapter> make_adapter(std::string_view operation, std::string_view name,
                                                      const LoraConfig& config, std::uint64_t seed) override {
    return std::make_unique<Adapter>(layer_.make_adapter(operation, name, config, seed));
  }
  void reserve_adapter() override { layer_.adapters_.reserve_one(); }
  void adopt(std::unique_ptr<Adapter> adapter) noexcept override {
    layer_.adapters_.adopt(std::move(adapter));
    layer_.changed();
  }
  void erase_adapter(std::string_view name) noexcept override {
    const Index found = layer_.adapters_.find(name);
    if (found < 0) return;
    layer_.erase(found);
    layer_.changed();
  }
  [[nodiscard]] const Adapter* find_adapter(std::string_view name) const noexcept override {
    const Index found = layer_.adapters_.find(name);
    return found < 0 ? nullptr : &layer_.adapters_[found];
  }
  [[nodiscard]] std::vector<Index> positions(std::span<const std::string> names) const override {
    std::vector<Index> found;
    for (const std::string& name : names) {
      if (const Index i = layer_.adapters_.find(name); i >= 0) found.push_back(i);
    }
    return found;
  }
  [[nodiscard]] const std::vector<Index>& active() const noexcept override { return layer_.adapters_.active(); }
  void set_active(const std::vector<Index>& positions) noexcept override { layer_.set_active(positions); }
  void enable_adapters(bool enabled) noexcept override { layer_.enable(enabled); }
  void check_scale(std::string_view operation, std::string_view name, double factor) const override {
    const Adapter* const adapter = find_adapter(name);
    if (adapter == nullptr) return;
    adapter->require_unmerged(operation);
    adapter->check_scale(operation, factor);
  }
  void set_scale(std::string_view operation, std::string_view name, double factor) override {
    const Index found = layer_.adapters_.find(name);
    if (found >= 0) layer_.adapters_[found].set_scale(operation, factor);
  }
  [[nodiscard]] std::vector<Index> row_choices(std::span<const std::string> names) const override {
    std::vector<Index> choices;
    for (const std::string& name : names) {
      choices.push_back(layer_.row_choice("set_row_adapters", name, /*unknown_is_base=*/true));
    }
    return choices;
  }
  void set_row_choices(std::vector<Index>& choices) noexcept override { layer_.row_choices_.swap(choices); }

  [[nodiscard]] ModuleWeights<Scalar> weights(const Adapter& adapter) const override {
    ModuleWeights<Scalar> weights;
    weights.kind = kind();
    weights.A = adapter.A;
    weights.B = adapter.B;
    weights.lora_bias = adapter.lora_bias;
    weights.magnitude = adapter.magnitude;
    weights.scaling = adapter.config().scaling();
    weights.qalora_group_size = adapter.group_size();
    weights.kernel_size = kernel_size();
    if (!blocks().whole()) spread(adapter, weights);
    return weights;
  }
  [[nodiscard]] std::string misfit(const LoraConfig& config, const ModuleWeights<Scalar>& weights) const override {
    if (weights.kind != kind()) return "it is a module of another kind";
    const Index count = blocks().whole() ? 1 : blocks().count();
    const FactorShape shape = layer_.kind_.factor_shape(config);
    const Index outputs = blocks().outputs;
    if (weights.qalora_group_size != config.group_size()) return "its qalora_group_size is another";
    if (!weights.kernel_size.empty() && weights.kernel_size != kernel_size()) return "its kernel has other extents";
    std::string text;
    const auto add = [&](std::string_view what, const std::string& got, const std::string& expected) {
      if (got == expected) return;
      text = detail::joined({text, text.empty() ? "" : "; ", what, " is ", got, ", expected ", expected});
    };
    const auto add_shape = [&](std::string_view what, Index rows, Index cols, Index wanted_rows, Index wanted_cols) {
      add(what, shape_text(rows, cols), shape_text(wanted_rows, wanted_cols));
    };
    add_shape("A", weights.A.rows(), weights.A.cols(), shape.a_rows, shape.a_cols);
    add_shape("B", weights.B.rows(), weights.B.cols(), outputs, shape.b_cols * count);
    add_shape("lora_bias", 1, weights.lora_bias.size(), 1, config.lora_bias ? outputs : 0);
    add_shape("magnitude", 1, weights.magnitude.size(), 1, config.use_dora ? outputs : 0);
    if (!detail::same_scaling(weights.scaling, config.scaling())) {
      add("scaling", detail::number_text(weights.scaling),
          detail::number_text(config.scaling()) + ", which alpha and rank give");
    }
    return text;
  }
  void fill(std::string_view operation, Adapter& adapter, const ModuleWeights<Scalar>& weights) const override {
    if (!blocks().whole()) return gather(operation, adapter, weights);
    adapter.A = weights.A;
    adapter.B = weights.B;
    adapter.lora_bias = weights.lora_bias;
    adapter.magnitude = weights.magnitude;
  }

  [[nodiscard]] std::span<Parameter<Scalar>> parameters() override { return layer_.parameters(); }
  void zero_grad() noexcept override { layer_.zero_grad(); }
  [[nodiscard]] bool merged() const noexcept override { return layer_.merged(); }
  [[nodiscard]] std::vector<std::string> merged_adapters() const override { return layer_.merged_adapters(); }
  [[nodiscard]] LayerMode mode() const override {
    LayerMode mode{layer_.training(), {}};
    for (std::size_t m = 0; m < layer_.stack_.size(); ++m) mode.merged.push_back(layer_.stack_.key(m));
    return mode;
  }
  void restore(const LayerMode& former) noexcept override {
    layer_.training_ = former.training;
    std::size_t common = 0;
    while (common < std::min(former.merged.size(), layer_.stack_.size()) &&
           layer_.stack_.key(common) == former.merged[common]) {
      ++common;
    }
    layer_.merging().truncate(common);
    if (common == former.merged.size()) return;
    try {
      std::vector<Index> positions;
      for (const std::uint64_t id : former.merged) positions.push_back(layer_.adapters_.position_of(id));
      layer_.merge_positions(positions);
    } catch (...) {
      // No memory: the weight is exactly W0 plus what is still merged.
    }
  }
  void train() override { layer_.train_mode(); }
  void eval() override { layer_.eval_mode(); }
  void merge(const std::vector<Index>& positions) override { layer_.merge_positions(positions); }
  void unmerge(const std::vector<Index>& positions) override { layer_.unmerge_positions(positions); }
  void unmerge() noexcept override { layer_.unmerge_all(); }
  [[nodiscard]] RowVector<Scalar> answer_bias(const std::vector<Index>& positions) const override {
    return layer_.answer_bias(positions);
  }
  void keep_merged(RowVector<Scalar>& bias) noexcept override { layer_.keep_merged(bias); }
  void reset() noexcept override {
    if (layer_.adapters_.size() == 0) layer_.forget_adapters();
  }

 private:
  [[nodiscard]] const OutputBlocks& blocks() const noexcept { return layer_.kind_.blocks(); }

  // Of a convolution; empty for other kinds.
  [[nodiscard]] std::vector<Index> kernel_size() const {
    if constexpr (requires { layer_.kind_.geometry().kernel; }) {
      const auto& kernel = layer_.kind_.geometry().kernel;
      return {kernel.begin(), kernel.end()};
    } else {
      return {};
    }
  }

  // Where `b`, the B of a file, has element p of an adapted row.
  [[nodiscard]] Scalar& in_file(Matrix<Scalar>& b, Index adapted, Index output, Index rank, Index p) const noexcept {
    return b(output, adapted / blocks().features * rank + p);
  }
  // Expands the rows of the adapted blocks to rows of all outputs.
  void spread(const Adapter& adapter, ModuleWeights<Scalar>& weights) const {
    const Index rank = adapter.B.cols();
    weights.B.setZero(blocks().outputs, rank * blocks().count());
    if (adapter.lora_bias.size() > 0) weights.lora_bias.setZero(blocks().outputs);
    if (adapter.magnitude.size() > 0) {
      weights.magnitude.resize(blocks().outputs);
      for (Index j = 0; j < blocks().outputs; ++j) weights.magnitude[j] = base_norm(j);
    }
    blocks().for_each([&](Index adapted, Index output) {
      for (Index p = 0; p < rank; ++p) in_file(weights.B, adapted, output, rank, p) = adapter.B(adapted, p);
      if (adapter.lora_bias.size() > 0) weights.lora_bias[output] = adapter.lora_bias[adapted];
      if (adapter.magnitude.size() > 0) weights.magnitude[output] = adapter.magnitude[adapted];
    });
  }
  // The inverse of spread(). Outside the blocks, `weights` must have the values of an adapter that does not change
  // those outputs.
  void gather(std::string_view operation, Adapter& adapter, const ModuleWeights<Scalar>& weights) const {
    const Index rank = adapter.B.cols();
    Matrix<Scalar> rest = weights.B;
    RowVector<Scalar> rest_of_bias = weights.lora_bias;
    std::vector<bool> adapts(static_cast<std::size_t>(blocks().outputs));
    adapter.A = weights.A;
    blocks().for_each([&](Index adapted, Index output) {
      adapts[static_cast<std::size_t>(output)] = true;
      for (Index p = 0; p < rank; ++p) {
        adapter.B(adapted, p) = std::exchange(in_file(rest, adapted, output, rank, p), Scalar(0));
      }
      if (rest_of_bias.size() > 0) adapter.lora_bias[adapted] = std::exchange(rest_of_bias[output], Scalar(0));
      if (weights.magnitude.size() > 0) adapter.magnitude[adapted] = weights.magnitude[output];
    });
    const auto require = [&](bool holds, const char* what, const char* expected) {
      if (!holds) throw ConfigError(operation, what, expected, "other numbers");
    };
    constexpr const char* zeros = "zeros outside the enabled projections";
    require(all_zero(rest), "B", zeros);
    require(all_zero(rest_of_bias), "lora_bias", zeros);
    for (Index j = 0; j < weights.magnitude.size(); ++j) {
      constexpr double tolerance = 0.01;  // files of 16-bit numbers round the norms
      const auto norm = static_cast<double>(base_norm(j));
      require(adapts[static_cast<std::size_t>(j)] ||
                  std::abs(static_cast<double>(weights.magnitude[j]) - norm) <= tolerance * norm,
              "magnitude", "the norms of W0 outside the enabled projections");
    }
  }
  template <class Values>
  static bool all_zero(const Values& values) {
    return std::all_of(values.data(), values.data() + values.size(), [](Scalar value) { return value == Scalar(0); });
  }
  [[nodiscard]] Scalar base_norm(Index output) const {
    return static_cast<Scalar>(std::sqrt(layer_.squared_norms_[static_cast<std::size_t>(output)]));
  }

  Core& layer_;
};

}  // namespace lora
