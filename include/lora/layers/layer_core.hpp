// SPDX-License-Identifier: MIT
// What all adapted layers share, whatever their inputs and weights: adapters, modes, merging, parameters, passes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/dora.hpp"
#include "lora/adapter/tape.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/workspace.hpp"
#include "lora/layers/adapter_merging.hpp"
#include "lora/layers/adapter_passes.hpp"
#include "lora/layers/adapter_set.hpp"
#include "lora/layers/layer_inference.hpp"
#include "lora/layers/operation.hpp"
#include "lora/layers/output_bias.hpp"
#include "lora/weight/merge_stack.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// The part of a layer that depends neither on the type of its inputs nor on the kind of its weight. It is compiled
/// once for each kind of layer and scalar. AdaptedLayer (layers/adapted_layer.hpp) is what users see.
///
/// A layer holds a frozen weight W0 and any number of named adapters; most hold one, called "default". An adapter
/// contributes to the output when it is active or merged. The first adapter of a layer becomes active at once, later
/// ones when set_adapter() or set_adapters() names them. Adapters that are active and not merged train.
///
/// - Calls without a name (lora_A(), set_factors(), ...) refer to the first active adapter.
/// - Merged adapters form a stack. Any of them can be taken out; when none is left, the weight is W0 bit for bit.
/// - While an adapter is merged, its values cannot be changed and the layer cannot train: trying either raises
///   StateError. Inference adds the active adapters that are not merged.
/// - Trained biases and starts belong to adapters, and count while the adapter is active or merged: without such an
///   adapter the output is that of the frozen layer. (PEFT trains the layer's own bias, which then stays as it is.) Of
///   several adapters with a bias, which only a LoraModel adds, one at a time can be active or merged.
///
/// Unknown names raise ConfigError. A function that throws has changed nothing, unless it says otherwise. Const
/// functions are reentrant; call the others from one thread at a time.
template <class KindType>
// NOLINTNEXTLINE(cppcoreguidelines-virtual-class-destructor): virtual for users who delete what derives from a layer.
class LayerCore {
 public:
  /// What is particular to this kind of layer.
  using Kind = KindType;
  using Scalar = typename Kind::Scalar;
  /// One named adapter.
  using Adapter = LoraAdapter<Scalar>;
  /// What a forward pass leaves for its backward pass.
  using Tape = LoraTape<Scalar>;
  /// The same under its former name.
  using Record = Tape;
  /// The gradients of the active adapters.
  using Gradients = LoraGradients<Scalar>;

  [[nodiscard]] Index in_features() const noexcept { return kind_.in_features(); }
  [[nodiscard]] Index out_features() const noexcept { return kind_.blocks().outputs; }
  /// What is particular to this kind of layer.
  [[nodiscard]] const Kind& kind() const noexcept { return kind_; }

  // The first active adapter.

  /// 0 without an adapter.
  [[nodiscard]] Index rank() const noexcept { return config().rank; }
  /// s, including the scale; 0 without an adapter.
  [[nodiscard]] Scalar scaling() const noexcept { return adapters_.first() ? adapters_.first()->scaling() : Scalar(0); }
  /// Without an adapter, the options the layer was created with, at rank 0.
  [[nodiscard]] const LoraConfig& config() const noexcept {
    return adapters_.first() != nullptr ? adapters_.first()->config() : plain_;
  }
  /// The seed it was created with; 0 without an adapter.
  [[nodiscard]] std::uint64_t seed() const noexcept { return adapters_.first() ? adapters_.first()->seed() : 0; }
  /// rank x in_features, or rank x in_features / group with use_qalora; empty without an adapter.
  [[nodiscard]] const Matrix<Scalar>& lora_A() const noexcept { return first_or_none().A; }
  /// out_features x rank; empty without an adapter.
  [[nodiscard]] const Matrix<Scalar>& lora_B() const noexcept { return first_or_none().B; }
  /// The bias of B, out_features; empty without lora_bias.
  [[nodiscard]] const RowVector<Scalar>& lora_bias() const noexcept { return first_or_none().lora_bias; }
  /// DoRA's magnitude, one element per adapted output; empty without use_dora.
  [[nodiscard]] const RowVector<Scalar>& magnitude() const noexcept { return first_or_none().magnitude; }

  /// The output's bias without the bias of B: that of the active or merged adapter that trains it, otherwise the
  /// layer's. Empty without bias.
  [[nodiscard]] const RowVector<Scalar>& bias() const noexcept { return output_bias().trained(adapters_.working()); }
  /// Whether the frozen layer has a bias.
  [[nodiscard]] bool has_bias() const noexcept { return bias_.size() > 0; }
  /// The bias of the frozen layer, whatever the adapters train.
  [[nodiscard]] const RowVector<Scalar>& base_bias() const noexcept { return bias_; }

  /// The weight that products use now, including what is merged, oriented as the caller stores it. A copy.
  [[nodiscard]] Matrix<Scalar> weight() const {
    Matrix<Scalar> result = make_oriented();
    weight_ref().read(0, 0, oriented(result));
    return result;
  }
  /// W0, whatever is merged, oriented as the caller stores it. A copy, bit for bit equal to the original.
  [[nodiscard]] Matrix<Scalar> base_weight() const {
    Matrix<Scalar> result = make_oriented();
    stack_.read_base(weight_ref(), oriented(result));
    return result;
  }
  /// What merging adds, bit for bit, oriented as the caller stores the weight: s (B A - B0 A0), where B0 A0 is the
  /// start of pissa and olora. Merging with DoRA also multiplies every output's weights by magnitude / norm; this is
  /// left out, as in PEFT's get_delta_weight. @throws ConfigError
  [[nodiscard]] Matrix<Scalar> delta_weight(std::string_view name) const {
    return delta_of(&named("delta_weight", name));
  }
  /// The same for the first active adapter; zeros if there is none.
  [[nodiscard]] Matrix<Scalar> delta_weight() const { return delta_of(adapters_.first()); }

  // Adapters by name.

  /// Adds an adapter, active if it is the layer's first. `config.fan_in_fan_out` is ignored: the layer fixes the
  /// orientation. With use_dora the magnitude starts as the norms of the rows of the adapted weight. At most one
  /// adapter of a layer trains the layer's bias. @throws ConfigError, std::bad_alloc; StateError with use_dora, pissa
  /// or olora while anything is merged
  LORA_COLD void add_adapter(std::string_view name, const LoraConfig& config, std::uint64_t seed);
  /// Adds an adapter created by this layer or one of the same shape. @throws ConfigError, ShapeError, std::bad_alloc;
  /// StateError with use_dora while anything is merged
  void add_adapter(Adapter adapter);
  /// Creates an adapter for this layer without adding it. @throws like add_adapter
  [[nodiscard]] Adapter make_adapter(std::string_view name, const LoraConfig& config, std::uint64_t seed) {
    return make_adapter(op("add_adapter").text(), name, config, seed);
  }
  /// The same, with the name of the caller's operation for error messages.
  [[nodiscard]] LORA_COLD Adapter make_adapter(std::string_view operation, std::string_view name,
                                               const LoraConfig& config, std::uint64_t seed);
  /// Removes an adapter. If it was the only active one, the first of the others in alphabetical order becomes active,
  /// as in PEFT. @throws ConfigError, also where that one and a merged one both train the layer's bias; StateError
  /// while it is merged
  void delete_adapter(std::string_view name);
  /// Whether the layer holds an adapter of that name, active or not.
  [[nodiscard]] bool has_adapter(std::string_view name) const noexcept { return adapters_.find(name) >= 0; }
  /// Adapters that the layer holds, active or not.
  [[nodiscard]] Index adapter_count() const noexcept { return adapters_.size(); }
  /// In the order they were added. A copy.
  [[nodiscard]] std::vector<std::string> adapter_names() const {
    std::vector<std::string> names;
    for (Index i = 0; i < adapters_.size(); ++i) names.push_back(adapters_[i].name());
    return names;
  }
  /// Position in adapter_names(), which changes when an earlier one is deleted.
  [[nodiscard]] Index adapter_index(std::string_view name) const {
    return adapters_.index_of(op("adapter_index"), name);
  }
  /// An adapter by name. Valid until adapters are added or deleted. @throws ConfigError
  [[nodiscard]] const Adapter& adapter(std::string_view name) const { return named("adapter", name); }
  /// Names of the active adapters in their order, whether or not adapters are enabled. A copy.
  [[nodiscard]] std::vector<std::string> active_adapters() const {
    std::vector<std::string> names;
    for (const Index i : adapters_.active()) names.push_back(adapters_[i].name());
    return names;
  }
  /// Whether active adapters take part in passes; see disable_adapters().
  [[nodiscard]] bool adapters_enabled() const noexcept { return adapters_.enabled(); }

  /// s, including the scale. @throws ConfigError
  [[nodiscard]] Scalar scaling(std::string_view name) const { return named("scaling", name).scaling(); }
  /// The factor on the adapter's own scaling. @throws ConfigError
  [[nodiscard]] double scale(std::string_view name) const { return named("scale", name).scale(); }
  /// DoRA's magnitude of an adapter; empty without use_dora. @throws ConfigError
  [[nodiscard]] const RowVector<Scalar>& magnitude(std::string_view name) const {
    return named("magnitude", name).magnitude;
  }
  /// s = factor * alpha / rank (or / sqrt(rank)). @throws ConfigError; StateError while merged.
  void set_scale(std::string_view name, double factor) {
    unmerged("set_scale", name).set_scale(op("set_scale").text(), factor);
  }
  /// Multiplies the scale of every active adapter. @throws ConfigError; StateError while one is merged.
  void scale_layer(double factor) { rescale(op("scale_layer"), factor, Rescale::multiply); }
  /// Divides the scale of every active adapter. The quotient is rounded. @throws like scale_layer().
  void unscale_layer(double factor) { rescale(op("unscale_layer"), factor, Rescale::divide); }
  /// Sets the scale of every active adapter to 1. @throws StateError while one is merged.
  void unscale_layer() { rescale(op("unscale_layer"), 1.0, Rescale::set); }

  /// Replaces A and B, but not DoRA's magnitude or a start. @throws ShapeError; StateError while merged.
  template <class A, class B>
  void set_factors(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    replace_factors(first_unmerged("set_factors"), a, b);
  }
  /// The same for an adapter by name. @throws ConfigError too
  template <class A, class B>
  void set_factors(std::string_view name, const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    replace_factors(unmerged("set_factors", name), a, b);
  }
  /// Replaces the bias of B. @throws ShapeError, also without lora_bias; StateError while merged.
  template <class B>
  void set_lora_bias(const Eigen::DenseBase<B>& values) {
    replace_row(op("set_lora_bias"), "lora_bias", first_unmerged("set_lora_bias").lora_bias, values);
  }
  /// The same for an adapter by name. @throws ConfigError too
  template <class B>
  void set_lora_bias(std::string_view name, const Eigen::DenseBase<B>& values) {
    replace_row(op("set_lora_bias"), "lora_bias", unmerged("set_lora_bias", name).lora_bias, values);
  }
  /// Replaces the magnitude of DoRA. @throws ShapeError, also without use_dora; StateError while merged.
  template <class M>
  void set_magnitude(const Eigen::DenseBase<M>& values) {
    replace_row(op("set_magnitude"), "magnitude", first_unmerged("set_magnitude").magnitude, values);
  }
  /// The same for an adapter by name. @throws ConfigError too
  template <class M>
  void set_magnitude(std::string_view name, const Eigen::DenseBase<M>& values) {
    replace_row(op("set_magnitude"), "magnitude", unmerged("set_magnitude", name).magnitude, values);
  }
  /// Replaces the layer's bias as trained by an adapter. @throws ShapeError, also when the adapter does not train it.
  template <class B>
  void set_adapter_bias(std::string_view name, const Eigen::DenseBase<B>& values) {
    replace_row(op("set_adapter_bias"), "bias", unmerged("set_adapter_bias", name).bias, values);
  }
  /// Changes alpha, and with it the scaling. @throws ConfigError; StateError while merged.
  void set_alpha(double alpha) { first_unmerged("set_alpha").set_alpha(op("set_alpha").text(), alpha); }
  /// The same for an adapter by name.
  void set_alpha(std::string_view name, double alpha) {
    unmerged("set_alpha", name).set_alpha(op("set_alpha").text(), alpha);
  }

  /// Exchanges the adapter of that name with `other`, of any rank; names are not exchanged. Gradients and moments move
  /// with their adapter; handles on the old one's parameters become invalid. O(1).
  /// @throws ConfigError, ShapeError; StateError while merged, and with use_dora while anything is merged.
  void swap_adapter(std::string_view name, Adapter& other);
  /// Replaces the first active adapter by a new one; if none is active, replaces or adds the one named "default" and
  /// makes it active. With rank 0 only removes it.
  /// Gradients, moments, tape and dropout step start again as in a new layer; the modes stay. Handles from parameters()
  /// become invalid. @throws ConfigError, also when config.fan_in_fan_out differs from the layer's; StateError while
  /// merged
  void reset_adapter(const LoraConfig& config, std::uint64_t seed);

  // What trains.

  /// Gradients of the right shapes for the active adapters, in their order; zero. @throws std::bad_alloc
  [[nodiscard]] Gradients make_gradients() const;
  /// The gradients of an adapter, to which backward(dy) adds; allocated at the first use.
  [[nodiscard]] Gradients& gradients(std::string_view name) {
    return adapters_[adapters_.index_of(op("gradients"), name)].gradients();
  }
  /// Those of the first active adapter; empty if there is none.
  [[nodiscard]] Gradients& gradients() { return adapters_.first() ? adapters_.first()->gradients() : no_gradients_; }
  /// Zeroes the gradients of all adapters.
  void zero_grad() noexcept {
    for (Index i = 0; i < adapters_.size(); ++i) adapters_[i].zero_grad();
  }

  /// Handles on what trains. For each active adapter in order: A, B, then the magnitude, the bias of B and the layer's
  /// bias if they train; none while adapters are disabled. Names are PEFT's ("lora_A.weight") for an adapter called
  /// "default"; others include the adapter's name ("lora_A.other.weight"). Values of a merged adapter cannot be changed
  /// through them. The list is valid until adapters are added, deleted, swapped or activated; handles are valid until
  /// the layer or the adapter is moved or destroyed. A steady call allocates nothing.
  [[nodiscard]] std::span<Parameter<Scalar>> parameters() {
    if (!handles_.valid) collect_handles();
    return handles_.list;
  }
  /// Number of scalars that train.
  [[nodiscard]] Index trainable_parameter_count() const noexcept {
    Index count = 0;
    for (const Index i : adapters_.working()) count += adapters_[i].parameter_count();
    return count;
  }
  /// The dropout step that the next forward(x) uses; a checkpoint must save it.
  [[nodiscard]] std::uint64_t dropout_step() const noexcept { return dropout_step_; }
  /// Continues at the dropout step of a checkpoint.
  void set_dropout_step(std::uint64_t step) noexcept { dropout_step_ = step; }

  // Modes and merging.

  /// Whether the layer is in training mode, as a new one is.
  [[nodiscard]] bool training() const noexcept { return training_; }
  /// Whether any adapter is merged.
  [[nodiscard]] bool merged() const noexcept { return !stack_.empty(); }
  /// Names in the order of merging. A copy.
  [[nodiscard]] std::vector<std::string> merged_adapters() const {
    std::vector<std::string> names;
    for (std::size_t m = 0; m < stack_.size(); ++m) names.push_back(merged_adapter(m).name());
    return names;
  }
  /// Whether merge() is possible: false for a weight that is read-only or of a kind that cannot be merged into.
  [[nodiscard]] bool mergeable() { return weight_ref().mergeable(); }
  /// Bytes held besides W0 while merged, without the copies of the factors: about one per weight for each merged
  /// adapter.
  [[nodiscard]] std::size_t merge_bytes() const noexcept { return stack_.bytes(); }
  /// Bytes of W0 as stored, the bias, all adapters, and the norms of W0 for DoRA.
  [[nodiscard]] std::size_t parameter_bytes() const noexcept;

  /// @throws ConfigError for options that this layer does not support, StateError for those that need W0 while anything
  /// is merged.
  LORA_COLD void check_adapter(std::string_view operation, const LoraConfig& config) const;

  // Rows that choose their adapters.

  /// Lets each row of subsequent batches choose its adapter, like PEFT's `adapter_names`: `names` holds an adapter's
  /// name, or "__base__", for every sample. If a batch has a multiple of that number of rows, each sample has that many
  /// consecutive rows. Applies to infer(x) and forward(x) in evaluation mode until clear_row_adapters(). With
  /// `unknown_is_base`, the base computes the rows of a name that this layer does not have, as in PEFT; it also
  /// computes rows whose adapter is deleted. @throws ConfigError
  template <class Names = std::initializer_list<std::string_view>>
  void set_row_adapters(const Names& names, bool unknown_is_base = false) {
    std::vector<Index> choices;
    for (const std::string_view name : names) choices.push_back(row_choice("set_row_adapters", name, unknown_is_base));
    row_choices_.swap(choices);
  }
  /// Ends set_row_adapters(): the active adapters answer all rows again.
  void clear_row_adapters() noexcept { row_choices_.clear(); }
  /// The choice of a row for the frozen layer alone.
  static constexpr Index base_row = lora::base_row;

 protected:
  template <class>
  friend class HeldLayer;  // a model's view of a layer, model/model_layer.hpp

  using Passes = typename Kind::Passes;
  using Batch = typename Passes::Batch;

  LayerCore(Kind kind, const LoraConfig& config) : kind_(std::move(kind)) {
    plain_.rank = 0;
    plain_.alpha = config.alpha;
    plain_.fan_in_fan_out = config.fan_in_fan_out;
    plain_.merge_weights = config.merge_weights;
  }
  LayerCore(const LayerCore&) = default;
  LayerCore(LayerCore&&) noexcept = default;
  LayerCore& operator=(const LayerCore&) = default;
  LayerCore& operator=(LayerCore&&) noexcept = default;
  virtual ~LayerCore() = default;

  [[nodiscard]] virtual WeightRef<Scalar> weight_ref() noexcept = 0;
  [[nodiscard]] virtual WeightRef<Scalar> weight_ref() const noexcept = 0;
  /// Clears what a layer remembers of passes beside the tape here.
  virtual void forget_passes() noexcept {}

  [[nodiscard]] Operation op(std::string_view call) const noexcept { return {kind_.name(), call}; }

  /// Creates the adapter that the constructor's configuration asks for.
  LORA_COLD void start(const LoraConfig& config, std::uint64_t seed);
  /// @throws ShapeError unless the bias is a vector of out_features; nothing changes then.
  template <class B>
  void set_base_bias(const Eigen::DenseBase<B>& values) {
    if (values.size() != out_features()) {
      throw ShapeError(kind_.name(), "bias", std::to_string(out_features()) + " elements",
                       std::to_string(values.size()));
    }
    RowVector<Scalar> copy(values.size());
    for (Index j = 0; j < values.size(); ++j) copy[j] = values.derived().coeff(j);
    bias_.swap(copy);
  }

  void make_active(std::string_view call, std::vector<Index> chosen);
  template <class Names>
  [[nodiscard]] std::vector<Index> positions(std::string_view call, const Names& names) const {
    return adapters_.positions(op(call), names);
  }
  void enable(bool enabled) noexcept {
    if (!enabled) unmerge_all();
    adapters_.set_enabled(enabled);
    changed();
  }

  void train_mode();
  // Merges nothing that inference would then refuse: into an unsuitable weight, several adapters with DoRA or beside
  // one, or while rows choose their adapters.
  void eval_mode();
  void merge_active() { merge_positions(adapters_.active()); }
  void merge_positions(const std::vector<Index>& which);
  void unmerge_all() noexcept;
  void unmerge_positions(const std::vector<Index>& gone);
  /// Merges the active adapters into weight and bias permanently, and removes every adapter. @throws like merge()
  void merge_and_forget();
  /// Keeps what is merged in the weight permanently, makes `bias` the layer's, and removes every adapter.
  void keep_merged(RowVector<Scalar>& bias) noexcept;
  /// Makes these the active adapters. Pre: nothing is merged; `chosen` has each position at most once.
  void set_active(const std::vector<Index>& chosen) noexcept {
    adapters_.set_active(chosen);
    changed();
  }
  [[nodiscard]] Index row_choice(std::string_view call, std::string_view name, bool unknown_is_base) const;
  /// Restores the frozen layer, bit for bit.
  void forget_adapters() noexcept;

  // Passes over a batch whose shape has been checked.

  /// What the output adds to the products, with the biases of B, if these are active beside what is merged. A copy.
  [[nodiscard]] RowVector<Scalar> answer_bias(std::span<const Index> working) const {
    return output_bias().copy(working);
  }
  void infer_batch(const Batch& x, const MatrixView<Scalar>& y, Workspace& workspace) const;
  void infer_by_row(const Batch& x, std::span<const Index> choices, const MatrixView<Scalar>& y,
                    Workspace& workspace) const;
  template <class Choices>
  [[nodiscard]] ScratchMatrix<Index> choices_of(const Choices& choices, Workspace& workspace) const {
    auto result = workspace.row<Index>(static_cast<Index>(std::size(choices)));
    Index* next = result.data;
    for (const auto& choice : choices) {
      if constexpr (std::is_convertible_v<decltype(choice), std::string_view>) {
        *next++ = row_choice("infer", choice, /*unknown_is_base=*/false);
      } else {
        *next++ = static_cast<Index>(choice);
      }
    }
    return result;
  }

  void forward_batch(const Batch& x, Tape& tape, const MatrixView<Scalar>& y, Workspace& workspace) const;
  /// @throws ShapeError, StateError; nothing changes then.
  void check_tape(std::string_view call, const Batch& x, const Tape& tape, const MatrixView<const Scalar>& dy) const;
  void backward_batch(const Batch& x, const Tape& tape, const MatrixView<const Scalar>& dy,
                      std::span<Gradients* const> gradients, const MatrixView<Scalar>* dx, Workspace& workspace) const;
  /// A row of pointers to the caller's gradients of the working adapters. @throws ShapeError
  [[nodiscard]] ScratchMatrix<Gradients*> given_gradients(std::string_view call, Gradients& gradients,
                                                          Workspace& workspace) const;
  /// Pointers to the adapters' own gradients.
  [[nodiscard]] ScratchMatrix<Gradients*> own_gradients(Workspace& workspace);

  void require_tape(std::string_view call) const {
    if (tape_.rows() < 0) {
      throw StateError(op(call).text(), "layer", "a forward(x) in training mode before", "none");
    }
  }
  /// @throws StateError while anything is merged.
  LORA_COLD void require_nothing_merged(const Operation& operation, std::string_view argument) const;

  /// Passes of the working adapters.
  template <class SomePasses>
  [[nodiscard]] AdapterPasses<Kind, SomePasses> engine(const SomePasses& passes,
                                                       const WeightRef<Scalar>& weight) const noexcept {
    return {kind_, passes, weight, adapters_, adapters_.working(), squared_norms_};
  }
  // A magnitude's norms are computed from W0, never from a weight that contains other adapters.
  void require_no_unmerged_dora(std::string_view call) const;

  Kind kind_;
  bool training_ = true;
  Tape tape_;
  Workspace workspace_;
  std::uint64_t dropout_step_ = 0;

 private:
  enum class Rescale : std::uint8_t { multiply, divide, set };

  // Handles point into the layer, so a copy makes its own.
  struct Handles {
    std::vector<Parameter<Scalar>> list;
    bool valid = false;
    Handles() = default;
    Handles(const Handles& /*other*/) noexcept {}
    Handles& operator=(const Handles& /*other*/) noexcept {
      valid = false;
      return *this;
    }
  };

  // The layer fixes the orientation.
  [[nodiscard]] LoraConfig own_config(LoraConfig config) const noexcept {
    config.fan_in_fan_out = plain_.fan_in_fan_out;
    return config;
  }
  [[nodiscard]] bool needs_adapter(const LoraConfig& config) const noexcept {
    return config.rank > 0 || (config.trains_bias() && bias_.size() > 0);
  }

  // Rows keep the adapter they chose; the frozen layer answers them once it is gone.
  void erase(Index gone) noexcept {
    adapters_.erase(gone);
    row_choices_.erase(gone);
  }

  // The adapters have changed, so what was cached about them is invalid.
  void changed() noexcept {
    handles_.valid = false;
    tape_.clear();
    forget_passes();
  }

  [[nodiscard]] const Adapter& first_or_none() const noexcept {
    static const Adapter none("LoraLayer", "none", LoraConfig{.rank = 0}, 0, {});
    return adapters_.first() != nullptr ? *adapters_.first() : none;
  }
  [[nodiscard]] const Adapter& named(std::string_view call, std::string_view name) const {
    return adapters_[adapters_.index_of(op(call), name)];
  }
  [[nodiscard]] const Adapter& merged_adapter(std::size_t m) const noexcept {
    return adapters_[adapters_.position_of(stack_.key(m))];
  }
  [[nodiscard]] Adapter& unmerged(std::string_view call, std::string_view name) {
    Adapter& found = adapters_[adapters_.index_of(op(call), name)];
    found.require_unmerged(op(call).text());
    return found;
  }
  [[nodiscard]] Adapter& first_unmerged(std::string_view call) {
    Adapter* const first = adapters_.first();
    if (first == nullptr) throw StateError(op(call).text(), "layer", "an active adapter", "none");
    first->require_unmerged(op(call).text());
    return *first;
  }

  template <class A, class B>
  void replace_factors(Adapter& adapter, const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    require_shape(op("set_factors"), "A", adapter.A.rows(), adapter.A.cols(), a.rows(), a.cols());
    require_shape(op("set_factors"), "B", adapter.B.rows(), adapter.B.cols(), b.rows(), b.cols());
    Matrix<Scalar> new_a = a.derived();
    Matrix<Scalar> new_b = b.derived();
    // The memory stays, so that handles on the parameters stay valid.
    std::copy_n(new_a.data(), new_a.size(), adapter.A.data());
    std::copy_n(new_b.data(), new_b.size(), adapter.B.data());
  }
  template <class Values>
  static void replace_row(const Operation& operation, std::string_view argument, RowVector<Scalar>& target,
                          const Eigen::DenseBase<Values>& values) {
    require_shape(operation, argument, 1, target.size(), values.rows(), values.cols());
    const RowVector<Scalar> copy = values.derived();  // `values` may be an expression over the target
    std::copy_n(copy.data(), copy.size(), target.data());
  }
  [[nodiscard]] Matrix<Scalar> make_oriented() const {
    const bool transposed = plain_.fan_in_fan_out || kind_.stored_transposed();
    return transposed ? Matrix<Scalar>(in_features(), out_features()) : Matrix<Scalar>(out_features(), in_features());
  }
  [[nodiscard]] MatrixView<Scalar> oriented(Matrix<Scalar>& matrix) const noexcept {
    const bool transposed = plain_.fan_in_fan_out || kind_.stored_transposed();
    return transposed ? view_of(matrix).transpose() : view_of(matrix);
  }
  [[nodiscard]] Matrix<Scalar> delta_of(const Adapter* adapter) const;

  LORA_COLD void require_one_bias(const Operation& operation, const LoraConfig& config, Index replaced) const;
  LORA_COLD void require_fits(const Operation& operation, const Adapter& adapter);
  LORA_COLD void check_ready(const Operation& operation, const Adapter& adapter) const;
  LORA_COLD void check_gradients(const Operation& operation, const Adapter& adapter, const Gradients& gradients) const;

  // Pre: nothing is merged into W0.
  void prepare_norms() {
    if (squared_norms_.empty()) squared_norms_ = squared_row_norms(weight_ref());
  }
  LORA_COLD void start_magnitude(Adapter& adapter);

  LORA_COLD void collect_handles();
  [[nodiscard]] std::string parameter_name(ParameterRole role, std::string_view adapter) const;

  void rescale(const Operation& operation, double factor, Rescale how);
  // Whether inference works with these merged: one merged adapter at most has DoRA, and no active one beside it.
  [[nodiscard]] bool answers_merged(const std::vector<Index>& which) const;

  [[nodiscard]] AdapterMerging<Kind> merging() noexcept {
    return {kind_, weight_ref(), adapters_, stack_, squared_norms_};
  }
  [[nodiscard]] OutputBias<Scalar> output_bias() const noexcept { return {kind_.blocks(), adapters_, bias_}; }
  [[nodiscard]] LayerInference<Kind> inference() const noexcept {
    return {kind_, weight_ref(), adapters_, output_bias(), squared_norms_};
  }

  AdapterSet<Scalar> adapters_;
  MergeStack<Scalar> stack_;
  RowVector<Scalar> bias_;
  LoraConfig plain_;
  std::vector<double> squared_norms_;
  SampleChoices row_choices_;
  Handles handles_;
  Claim claim_;
  Gradients no_gradients_;
};

template <class KindType>
void LayerCore<KindType>::add_adapter(std::string_view name, const LoraConfig& config, std::uint64_t seed) {
  adapters_.require_new(op("add_adapter"), name);
  require_one_bias(op("add_adapter"), config, -1);
  adapters_.add(make_adapter(name, config, seed));
  changed();
}

template <class KindType>
void LayerCore<KindType>::add_adapter(Adapter adapter) {
  adapters_.require_new(op("add_adapter"), adapter.name());
  require_one_bias(op("add_adapter"), adapter.config(), -1);
  require_fits(op("add_adapter"), adapter);
  adapters_.add(std::move(adapter));
  changed();
}

template <class KindType>
auto LayerCore<KindType>::make_adapter(std::string_view operation, std::string_view name, const LoraConfig& config,
                                       std::uint64_t seed) -> Adapter {
  const LoraConfig own = own_config(config);
  check_adapter(operation, own);
  Adapter adapter = kind_.make_adapter(operation, name, own, seed, weight_ref());
  if (own.trains_bias()) adapter.bias = bias_;
  adapter.lora_bias.resize(own.lora_bias ? kind_.blocks().adapted() : 0);
  std::fill_n(adapter.lora_bias.data(), adapter.lora_bias.size(), Scalar(0));
  if (own.use_dora) start_magnitude(adapter);
  return adapter;
}

template <class KindType>
void LayerCore<KindType>::delete_adapter(std::string_view name) {
  const Operation operation = op("delete_adapter");
  const Index gone = adapters_.index_of(operation, name);
  adapters_[gone].require_unmerged(operation.text());
  const Index next = adapters_.successor(gone);
  adapters_.require_one_bias(operation, [&](Index i) { return i == next || adapters_[i].merged(); });
  erase(gone);
  changed();
}

template <class KindType>
void LayerCore<KindType>::swap_adapter(std::string_view name, Adapter& other) {
  const Operation operation = op("swap_adapter");
  const Index i = adapters_.index_of(operation, name);
  adapters_[i].require_unmerged(operation.text());
  require_fits(operation, other);
  require_one_bias(operation, other.config(), i);
  adapters_.swap(i, other);
  changed();
}

template <class KindType>
void LayerCore<KindType>::reset_adapter(const LoraConfig& config, std::uint64_t seed) {
  const Operation operation = op("reset_adapter");
  require_nothing_merged(operation, "layer");
  if (config.fan_in_fan_out != plain_.fan_in_fan_out) {
    throw ConfigError(operation.text(), "fan_in_fan_out", plain_.fan_in_fan_out ? "true" : "false",
                      plain_.fan_in_fan_out ? "false" : "true");
  }
  check_config(operation.text(), config);
  const bool none_active = adapters_.active().empty();
  const Index replaced = none_active ? adapters_.find(default_adapter_name) : adapters_.active().front();
  if (!needs_adapter(config)) {
    if (replaced >= 0) erase(replaced);
  } else {
    require_one_bias(operation, config, replaced);
    Adapter fresh = make_adapter(replaced >= 0 ? adapters_[replaced].name() : default_adapter_name, config, seed);
    const std::vector<Index> alone{replaced >= 0 ? replaced : adapters_.size()};
    replaced >= 0 ? adapters_.replace(replaced, std::move(fresh)) : adapters_.add(std::move(fresh));
    if (none_active) adapters_.set_active(alone);
  }
  plain_.merge_weights = config.merge_weights;
  dropout_step_ = 0;
  changed();
}

template <class KindType>
auto LayerCore<KindType>::make_gradients() const -> Gradients {
  Gradients gradients;
  const auto working = adapters_.working();
  for (std::size_t i = 0; i < working.size(); ++i) {
    (i == 0 ? gradients : gradients.others.emplace_back()) = adapters_[working[i]].make_gradients();
  }
  return gradients;
}

template <class KindType>
auto LayerCore<KindType>::parameter_bytes() const noexcept -> std::size_t {
  std::size_t bytes = weight_ref().bytes() + static_cast<std::size_t>(bias_.size()) * sizeof(Scalar) +
                      squared_norms_.size() * sizeof(double);
  for (Index i = 0; i < adapters_.size(); ++i) bytes += adapters_[i].bytes();
  return bytes;
}

template <class KindType>
void LayerCore<KindType>::check_adapter(std::string_view operation, const LoraConfig& config) const {
  const LoraConfig own = own_config(config);
  check_config(operation, own);
  kind_.check(operation, own);
  if (stack_.empty() || (!own.use_dora && !takes_from_weight(own.init_lora_weights))) return;
  throw StateError(operation, "layer", "nothing merged (call train() or unmerge() first)", "a merged adapter");
}

template <class KindType>
void LayerCore<KindType>::start(const LoraConfig& config, std::uint64_t seed) {
  check_config(kind_.name(), config);
  if (needs_adapter(config)) add_adapter(default_adapter_name, config, seed);
}

template <class KindType>
void LayerCore<KindType>::make_active(std::string_view call, std::vector<Index> chosen) {
  const auto stays = [&](Index i) { return std::find(chosen.begin(), chosen.end(), i) != chosen.end(); };
  adapters_.require_one_bias(op(call), stays);
  merging().remove(op(call), [&](Index i) { return !stays(i); });
  adapters_.set_active(chosen);
  changed();
}

template <class KindType>
void LayerCore<KindType>::train_mode() {
  merging().remove(op("train"), [&](Index i) { return adapters_[i].config().merge_weights; });
  training_ = true;
}

template <class KindType>
void LayerCore<KindType>::eval_mode() {
  std::vector<Index> which;
  for (const Index i : adapters_.working()) {
    if (adapters_[i].config().merge_weights) which.push_back(i);
  }
  const bool merges = row_choices_.empty() && !which.empty() && mergeable() && answers_merged(which);
  if (merges) merging().merge(op("eval"), which);
  training_ = false;
}

template <class KindType>
bool LayerCore<KindType>::answers_merged(const std::vector<Index>& which) const {
  Index merged = 0;
  Index beside = 0;
  for (Index i = 0; i < adapters_.size(); ++i) {
    if (!adapters_[i].uses_dora()) continue;
    const auto is = [&](std::span<const Index> list) { return std::find(list.begin(), list.end(), i) != list.end(); };
    if (adapters_[i].merged() || is(which)) {
      ++merged;
    } else if (is(adapters_.working())) {
      ++beside;
    }
  }
  return merged < 2 && beside == 0;
}

template <class KindType>
void LayerCore<KindType>::merge_positions(const std::vector<Index>& which) {
  merging().merge(op("merge"), which);
}

template <class KindType>
void LayerCore<KindType>::unmerge_all() noexcept {
  merging().truncate(0);
}

template <class KindType>
void LayerCore<KindType>::unmerge_positions(const std::vector<Index>& gone) {
  merging().remove(op("unmerge"), [&](Index i) { return std::find(gone.begin(), gone.end(), i) != gone.end(); });
}

template <class KindType>
void LayerCore<KindType>::merge_and_forget() {
  RowVector<Scalar> sum = answer_bias(adapters_.active());
  merge_active();
  keep_merged(sum);
}

template <class KindType>
void LayerCore<KindType>::keep_merged(RowVector<Scalar>& bias) noexcept {
  stack_.forget();
  bias_.swap(bias);
  forget_adapters();
}

template <class KindType>
void LayerCore<KindType>::forget_adapters() noexcept {
  unmerge_all();
  adapters_.clear();
  adapters_.set_enabled(true);
  row_choices_.clear();
  dropout_step_ = 0;
  squared_norms_.clear();
  changed();
}

template <class KindType>
void LayerCore<KindType>::infer_batch(const Batch& x, const MatrixView<Scalar>& y, Workspace& workspace) const {
  if (!row_choices_.empty()) {
    const auto choices = row_choices_.of_rows(op("infer"), Passes::shape(x).rows, workspace);
    return infer_by_row(x, {choices.data, static_cast<std::size_t>(choices.cols)}, y, workspace);
  }
  require_no_unmerged_dora("infer");
  inference().infer(x, adapters_.working(), y, workspace);
}

template <class KindType>
void LayerCore<KindType>::infer_by_row(const Batch& x, std::span<const Index> choices, const MatrixView<Scalar>& y,
                                       Workspace& workspace) const {
  require_nothing_merged(op("infer"), "adapters chosen by row");
  inference().infer_by_row(op("infer"), x, choices, y, workspace);
}

template <class KindType>
void LayerCore<KindType>::forward_batch(const Batch& x, Tape& tape, const MatrixView<Scalar>& y,
                                        Workspace& workspace) const {
  require_nothing_merged(op("forward"), "layer");
  tape.clear();
  const WeightRef<Scalar> weight = weight_ref();
  const Passes passes = kind_.passes(weight);
  const auto bias = workspace.row<Scalar>(out_features());
  engine(passes, weight).forward(x, output_bias().sum(adapters_.working(), bias.data), tape, y, workspace);
}

template <class KindType>
void LayerCore<KindType>::check_tape(std::string_view call, const Batch& x, const Tape& tape,
                                     const MatrixView<const Scalar>& dy) const {
  const Operation operation = op(call);
  require_nothing_merged(operation, "layer");
  if (tape.rows() < 0) throw StateError(operation.text(), "tape", "one that forward has filled", "a new one");
  const WeightRef<Scalar> weight = weight_ref();
  const Passes passes = kind_.passes(weight);
  if (!kind_.accepts(tape) || !engine(passes, weight).fits(tape)) {
    throw StateError(operation.text(), "tape", "one that this layer's forward has filled with the adapters of now",
                     "one of another layer or of other adapters");
  }
  const MatrixShape shape = passes.answer_shape(tape.batch());
  require_shape(operation, "dy", shape.rows, shape.cols, dy.rows, dy.cols);
  kind_.require_batch(operation, x, tape);
}

template <class KindType>
void LayerCore<KindType>::backward_batch(const Batch& x, const Tape& tape, const MatrixView<const Scalar>& dy,
                                         std::span<Gradients* const> gradients, const MatrixView<Scalar>* dx,
                                         Workspace& workspace) const {
  const WeightRef<Scalar> weight = weight_ref();
  const Passes passes = kind_.passes(weight);
  engine(passes, weight).backward(x, tape, dy, gradients, dx, workspace);
}

template <class KindType>
auto LayerCore<KindType>::given_gradients(std::string_view call, Gradients& gradients, Workspace& workspace) const
    -> ScratchMatrix<Gradients*> {
  const auto working = adapters_.working();
  if (working.size() > 1 && gradients.size() != working.size()) {
    throw ShapeError(op(call).text(), "gradients", std::to_string(working.size()) + " sets, one an active adapter",
                     std::to_string(gradients.size()));
  }
  auto pointers = workspace.row<Gradients*>(static_cast<Index>(working.size()));
  for (std::size_t i = 0; i < working.size(); ++i) {
    check_gradients(op(call), adapters_[working[i]], gradients[i]);
    pointers.data[i] = &gradients[i];
  }
  return pointers;
}

template <class KindType>
auto LayerCore<KindType>::own_gradients(Workspace& workspace) -> ScratchMatrix<Gradients*> {
  const auto working = adapters_.working();
  auto pointers = workspace.row<Gradients*>(static_cast<Index>(working.size()));
  for (std::size_t i = 0; i < working.size(); ++i) pointers.data[i] = &adapters_[working[i]].gradients();
  return pointers;
}

template <class KindType>
void LayerCore<KindType>::require_nothing_merged(const Operation& operation, std::string_view argument) const {
  if (stack_.empty()) return;
  throw StateError(operation.text(), argument, "nothing merged (call train() or unmerge() first)",
                   "adapter " + detail::quoted(merged_adapter(0).name()) + " merged");
}

template <class KindType>
void LayerCore<KindType>::require_no_unmerged_dora(std::string_view call) const {
  if (stack_.empty()) return;
  for (const Index i : adapters_.working()) {
    if (adapters_[i].uses_dora() && !adapters_[i].merged()) {
      require_nothing_merged(op(call), "active adapter with use_dora");
    }
  }
}

template <class KindType>
auto LayerCore<KindType>::delta_of(const Adapter* adapter) const -> Matrix<Scalar> {
  Matrix<Scalar> result = make_oriented();
  std::fill_n(result.data(), result.size(), Scalar(0));
  if (adapter == nullptr || adapter->rank() == 0) return result;
  Workspace workspace;
  const auto whole = kind_.whole_update(*adapter, workspace);
  write_delta(whole.update, oriented(result));
  return result;
}

template <class KindType>
void LayerCore<KindType>::require_one_bias(const Operation& operation, const LoraConfig& config, Index replaced) const {
  if (!config.trains_bias() || bias_.size() == 0) return;
  for (Index i = 0; i < adapters_.size(); ++i) {
    if (i == replaced || adapters_[i].bias.size() == 0) continue;
    throw ConfigError(operation.text(), "bias", "none beside an adapter that trains the layer's bias",
                      "another mode than that of " + detail::quoted(adapters_[i].name()));
  }
}

template <class KindType>
void LayerCore<KindType>::require_fits(const Operation& operation, const Adapter& adapter) {
  const auto fits = [&](std::string_view argument, const Matrix<Scalar>& factor, Index rows, Index cols) {
    require_shape(operation, argument, rows, cols, factor.rows(), factor.cols());
  };
  check_ready(operation, adapter);
  const auto shape = kind_.factor_shape(adapter.config());
  fits("adapter.A", adapter.A, shape.a_rows, shape.a_cols);
  fits("adapter.B", adapter.B, shape.b_rows, shape.b_cols);
  const Index adapted = kind_.blocks().adapted();
  const auto optional = [&](std::string_view argument, const RowVector<Scalar>& row, bool wanted, Index size) {
    require_shape(operation, argument, 1, wanted ? size : 0, 1, row.size());
  };
  optional("adapter.lora_bias", adapter.lora_bias, adapter.config().lora_bias, adapted);
  optional("adapter.magnitude", adapter.magnitude, adapter.config().use_dora, adapted);
  optional("adapter.bias", adapter.bias, adapter.config().trains_bias(), bias_.size());
  if (adapter.start.A.size() > 0 || adapter.start.B.size() > 0) {
    fits("adapter.start.A", adapter.start.A, shape.a_rows, shape.a_cols);
    fits("adapter.start.B", adapter.start.B, shape.b_rows, shape.b_cols);
  }
  if (adapter.uses_dora()) prepare_norms();
}

template <class KindType>
void LayerCore<KindType>::check_ready(const Operation& operation, const Adapter& adapter) const {
  LoraConfig options = own_config(adapter.config());
  options.init_lora_weights = InitLoraWeights::kaiming_uniform;  // its factors exist
  kind_.check(operation.text(), options);
  if (adapter.merged()) throw StateError(operation.text(), "adapter", "an unmerged one", "a merged one");
  if (adapter.start.A.size() > 0 && !kind_.takes_start()) {
    throw ConfigError(operation.text(), "adapter.start", "none in a layer of this kind", "one of pissa or olora");
  }
  if (adapter.uses_dora()) require_nothing_merged(operation, "layer");
}

template <class KindType>
void LayerCore<KindType>::check_gradients(const Operation& operation, const Adapter& adapter,
                                          const Gradients& gradients) const {
  require_shape(operation, "gradients.A", adapter.A.rows(), adapter.A.cols(), gradients.A.rows(), gradients.A.cols());
  require_shape(operation, "gradients.B", adapter.B.rows(), adapter.B.cols(), gradients.B.rows(), gradients.B.cols());
  require_shape(operation, "gradients.lora_bias", 1, adapter.lora_bias.size(), 1, gradients.lora_bias.size());
  require_shape(operation, "gradients.bias", 1, adapter.bias.size(), 1, gradients.bias.size());
  require_shape(operation, "gradients.magnitude", 1, adapter.magnitude.size(), 1, gradients.magnitude.size());
}

template <class KindType>
void LayerCore<KindType>::start_magnitude(Adapter& adapter) {
  prepare_norms();
  Workspace workspace;
  const auto norms = workspace.row<double>(out_features());
  const auto whole = kind_.whole_update(adapter, workspace);
  row_norms(weight_ref(), whole.update, squared_norms_, norms.data, workspace);
  adapter.magnitude.resize(kind_.blocks().adapted());
  kind_.blocks().for_each(
      [&](Index adapted, Index output) { adapter.magnitude[adapted] = static_cast<Scalar>(norms.data[output]); });
}

template <class KindType>
void LayerCore<KindType>::collect_handles() {
  std::vector<Parameter<Scalar>> list;
  for (const Index i : adapters_.working()) {
    Adapter& adapter = adapters_[i];
    adapter.for_each_parameter(
        [&](ParameterRole role, Scalar* value, Scalar* gradient, Index rows, Index cols, Moments<Scalar>& moments) {
          list.emplace_back(parameter_name(role, adapter.name()), role, value, gradient, rows, cols, moments,
                            adapter.merged_flag());
        });
  }
  handles_.list.swap(list);
  handles_.valid = true;
}

template <class KindType>
auto LayerCore<KindType>::parameter_name(ParameterRole role, std::string_view adapter) const -> std::string {
  std::string name(kind_.parameter_name(role));
  if (adapter == default_adapter_name || role == ParameterRole::bias) return name;
  const std::size_t dot = name.find('.');
  const std::string inserted = detail::joined({".", adapter});
  return dot == std::string::npos ? name + inserted : name.insert(dot, inserted);
}

template <class KindType>
void LayerCore<KindType>::rescale(const Operation& operation, double factor, Rescale how) {
  const auto changed_scale = [&](const Adapter& adapter) {
    return how == Rescale::multiply ? adapter.scale() * factor
           : how == Rescale::divide ? adapter.scale() / factor
                                    : factor;
  };
  for (const Index i : adapters_.active()) {
    adapters_[i].require_unmerged(operation.text());
    adapters_[i].check_scale(operation.text(), changed_scale(adapters_[i]));
  }
  for (const Index i : adapters_.active()) {
    adapters_[i].set_scale(operation.text(), changed_scale(adapters_[i]));
  }
}

template <class KindType>
auto LayerCore<KindType>::row_choice(std::string_view call, std::string_view name, bool unknown_is_base) const
    -> Index {
  if (name == base_adapter_name) return base_row;
  const Index found = unknown_is_base ? adapters_.find(name) : adapters_.index_of(op(call), name);
  return found < 0 ? base_row : found;
}

}  // namespace lora
