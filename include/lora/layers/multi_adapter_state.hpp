// The adapters of a layer that has several, and which of them are active, merged or neither.
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

#include "lora/core/shape.hpp"
#include "lora/core/workspace.hpp"
#include "lora/layers/adapter_slot.hpp"
#include "lora/layers/frozen_linear.hpp"
#include "lora/layers/merge_stack.hpp"

namespace lora {

/// Base of MultiLoraLinear (`Layer`): everything but the passes. Not thread-safe but for its const functions. Where a
/// function may throw, nothing has changed then, unless it says otherwise. Names that are not those of an adapter raise
/// ConfigError. `names` are any range of strings, or a list in braces.
template <class Layer, RealScalar Scalar, FrozenWeight Weight>
class MultiAdapterState {
 public:
  [[nodiscard]] Index in_features() const noexcept { return frozen_.in_features(); }
  [[nodiscard]] Index out_features() const noexcept { return frozen_.out_features(); }
  [[nodiscard]] bool fan_in_fan_out() const noexcept { return frozen_.fan_in_fan_out; }
  /// Empty without bias.
  [[nodiscard]] const RowVector<Scalar>& bias() const noexcept { return frozen_.bias; }
  [[nodiscard]] const Weight& frozen_weight() const noexcept { return frozen_.weight; }

  /// Adds an adapter, active if it is the layer's first. `config.fan_in_fan_out` counts for nothing: the orientation is
  /// the layer's. At most one adapter trains the layer's bias. With use_dora the magnitude starts as the norms of the
  /// rows of W0 + s*B*A. @throws ConfigError, std::bad_alloc; with use_dora StateError while anything is merged
  void add_adapter(std::string_view name, const LoraConfig& config, std::uint64_t seed) {
    constexpr std::string_view operation = "MultiLoraLinear::add_adapter";
    check_supported(operation, config, nullptr);
    LoraConfig own = config;
    own.fan_in_fan_out = fan_in_fan_out();
    std::vector<Index> active = active_;
    if (slots_.size() == 0) active.push_back(0);
    AdapterSlot<Scalar> slot(operation, name, next_id_, in_features(), out_features(), own, seed);
    if (config.use_dora) {
      require_nothing_merged(operation, "layer");
      slot.start_magnitude(frozen_.weight);
    }
    slots_.add(operation, std::move(slot));
    ++next_id_;
    active_.swap(active);
  }

  /// Removes an adapter. If it was the only active one, the first of the others in alphabetical order becomes active,
  /// as in PEFT. @throws ConfigError; StateError while it is merged.
  void delete_adapter(std::string_view name) {
    constexpr std::string_view operation = "MultiLoraLinear::delete_adapter";
    const Index gone = slots_.index_of(operation, name);
    slots_[gone].require_unmerged(operation);
    const bool was_active = is_active(gone);
    std::erase(active_, gone);
    for (Index& i : active_) i -= i > gone ? 1 : 0;
    slots_.erase(gone);
    if (was_active && active_.empty() && slots_.size() > 0) active_.push_back(first_by_name());
  }

  [[nodiscard]] bool has_adapter(std::string_view name) const noexcept { return slots_.find(name) >= 0; }
  /// In the order they were added. A copy.
  [[nodiscard]] std::vector<std::string> adapter_names() const {
    std::vector<std::string> names;
    for (Index i = 0; i < slots_.size(); ++i) names.push_back(slots_[i].name());
    return names;
  }
  /// Position in adapter_names(), which changes when an earlier one is deleted.
  [[nodiscard]] Index adapter_index(std::string_view name) const {
    return slots_.index_of("MultiLoraLinear::adapter_index", name);
  }

  /// Makes one adapter the active one; see set_adapters().
  Layer& set_adapter(std::string_view name) { return set_adapters(std::span(&name, 1)); }
  /// Makes these the active adapters, in this order, and takes those that are merged and not named out of the weight,
  /// so that the layer answers with these and no others. None at all is allowed. @throws ConfigError for a name that is
  /// unknown or given twice; as unmerge(names), and then the active ones are those they were.
  template <class Names = std::initializer_list<std::string_view>>
  Layer& set_adapters(const Names& names) {
    constexpr std::string_view operation = "MultiLoraLinear::set_adapters";
    std::vector<Index> chosen = positions(operation, names);
    remove_merged(operation, [&](Index i) { return std::find(chosen.begin(), chosen.end(), i) == chosen.end(); });
    active_.swap(chosen);
    return self();
  }
  /// Names of the active adapters in their order, whether or not adapters are enabled. A copy.
  [[nodiscard]] std::vector<std::string> active_adapters() const {
    std::vector<std::string> names;
    for (const Index i : active_) names.push_back(slots_[i].name());
    return names;
  }

  /// Unmerges everything and answers as the base layer until enable_adapters(). Nothing trains meanwhile.
  Layer& disable_adapters() noexcept {
    unmerge();
    enabled_ = false;
    return self();
  }
  /// The active adapters take part again. Merges nothing.
  Layer& enable_adapters() noexcept {
    enabled_ = true;
    return self();
  }
  [[nodiscard]] bool adapters_enabled() const noexcept { return enabled_; }

  /// s = factor * alpha / rank (or / sqrt(rank)). @throws ConfigError; StateError while merged.
  void set_scale(std::string_view name, double factor) {
    unmerged("MultiLoraLinear::set_scale", name).set_scale("MultiLoraLinear::set_scale", factor);
  }
  /// Multiplies the scale of every active adapter. @throws ConfigError; StateError while one is merged.
  void scale_layer(double factor) {
    rescale("MultiLoraLinear::scale_layer", [&](double scale) { return scale * factor; });
  }
  /// Divides the scale of every active adapter. The quotient is rounded. @throws as scale_layer().
  void unscale_layer(double factor) {
    rescale("MultiLoraLinear::unscale_layer", [&](double scale) { return scale / factor; });
  }
  /// Sets the scale of every active adapter to 1. @throws StateError while one is merged.
  void unscale_layer() {
    rescale("MultiLoraLinear::unscale_layer", [](double) { return 1.0; });
  }

  /// Factors, configuration and seed. @throws ConfigError
  [[nodiscard]] const LoraAdapter<Scalar>& adapter(std::string_view name) const {
    return slot("MultiLoraLinear::adapter", name).adapter();
  }
  /// s, the scale included. @throws ConfigError
  [[nodiscard]] Scalar scaling(std::string_view name) const { return slot("MultiLoraLinear::scaling", name).scaling(); }
  /// The factor on the adapter's own scaling. @throws ConfigError
  [[nodiscard]] double scale(std::string_view name) const { return slot("MultiLoraLinear::scale", name).scale(); }

  /// Replaces A and B. @throws ConfigError, ShapeError; StateError while merged.
  template <class A, class B>
  void set_factors(std::string_view name, const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    constexpr std::string_view operation = "MultiLoraLinear::set_factors";
    auto& adapter = unmerged(operation, name).adapter();
    check_shape(operation, "A", a, adapter.rank(), in_features());
    check_shape(operation, "B", b, out_features(), adapter.rank());
    Matrix<Scalar> new_a = a.derived();
    Matrix<Scalar> new_b = b.derived();
    adapter.A().swap(new_a);
    adapter.B().swap(new_b);
  }
  /// Replaces the bias of B. @throws ConfigError, ShapeError; StateError while merged.
  template <class B>
  void set_lora_bias(std::string_view name, const Eigen::DenseBase<B>& lora_bias) {
    constexpr std::string_view operation = "MultiLoraLinear::set_lora_bias";
    auto& adapter = unmerged(operation, name).adapter();
    check_shape(operation, "lora_bias", lora_bias, 1, adapter.lora_bias().size());
    adapter.lora_bias() = lora_bias.derived();
  }
  /// DoRA's magnitude, out_features scalars; empty without use_dora. @throws ConfigError
  [[nodiscard]] const RowVector<Scalar>& magnitude(std::string_view name) const {
    return slot("MultiLoraLinear::magnitude", name).dora().value();
  }
  /// Replaces DoRA's magnitude. @throws ConfigError; ShapeError, also without use_dora; StateError while merged.
  template <class M>
  void set_magnitude(std::string_view name, const Eigen::DenseBase<M>& magnitude) {
    constexpr std::string_view operation = "MultiLoraLinear::set_magnitude";
    auto& dora = unmerged(operation, name).dora();
    check_shape(operation, "magnitude", magnitude, 1, dora.value().size());
    dora.value() = magnitude.derived();
  }
  /// Exchanges the adapter of that name with `other`, of any rank, which gets the old one. The new one starts with
  /// scale 1, without gradients and without optimiser's state; handles on the old one's parameters end. O(1). @throws
  /// ConfigError, also where one of them has use_dora; ShapeError; StateError while merged.
  void swap_adapter(std::string_view name, LoraAdapter<Scalar>& other) {
    constexpr std::string_view operation = "MultiLoraLinear::swap_adapter";
    auto& target = unmerged(operation, name);
    check_shape(operation, "adapter.A", other.A(), -1, in_features());
    check_shape(operation, "adapter.B", other.B(), out_features(), other.rank());
    check_supported(operation, other.config(), &target);
    if (target.adapter().config().use_dora || other.config().use_dora) {
      throw ConfigError(operation, "use_dora", "false on both sides, for an adapter leaves its magnitude behind",
                        "true");
    }
    if (other.rank() == 0) throw ConfigError(operation, "adapter.rank", "1 or more", "0");
    target.swap_adapter(other, next_id_++);
  }

  /// The weight as products use it now, with what is merged, oriented as the caller stores it. A copy.
  [[nodiscard]] Matrix<Scalar> weight() const {
    return frozen_.oriented([&](const MatrixView<Scalar>& out) { read_back(frozen_.weight, out); });
  }
  /// W0, whatever is merged, oriented as the caller stores it. A copy, equal bit for bit to what was given.
  [[nodiscard]] Matrix<Scalar> base_weight() const {
    return frozen_.oriented([&](const MatrixView<Scalar>& out) { stack_.read_base(frozen_.weight, out); });
  }
  /// s*B*A (its transpose with fan_in_fan_out): what merging adds, bit for bit, but for DoRA, whose magnitude this
  /// leaves out, as PEFT's get_delta_weight does. @throws ConfigError
  [[nodiscard]] Matrix<Scalar> delta_weight(std::string_view name) const {
    const auto update = slot("MultiLoraLinear::delta_weight", name).update();
    return frozen_.oriented([&](const MatrixView<Scalar>& out) { write_delta(update, out); });
  }

  /// Merges the active adapters, in their order, that are not merged yet. One with use_dora multiplies the rows of what
  /// it is merged into, so it is merged alone, and while anything else is merged it must not be active in a pass.
  /// @throws StateError naming the adapter when a sum is not finite, when it has use_dora and would not be alone, when
  /// the weight is read-only or adapters are disabled; std::bad_alloc. Then every bit is as it was.
  Layer& merge() {
    merge_all("MultiLoraLinear::merge", active_);
    return self();
  }
  /// Merges these, active or not, in this order, beside those that are merged already. @throws also ConfigError
  template <class Names = std::initializer_list<std::string_view>>
  Layer& merge(const Names& names) {
    constexpr std::string_view operation = "MultiLoraLinear::merge";
    merge_all(operation, positions(operation, names));
    return self();
  }
  /// Restores W0 bit for bit.
  Layer& unmerge() noexcept {
    stack_.truncate(frozen_.weight, 0);
    mark_merged();
    return self();
  }
  /// Takes these out of the weight; those that are not merged count for nothing. The weight is then, bit for bit, as if
  /// the others had been merged alone in their order. @throws ConfigError. Where one that stays was merged after one
  /// that goes, also std::bad_alloc, and StateError if a sum without the latter is not finite: then those named are
  /// out, and so are some that were merged after them; merged_adapters() tells, and the weight is exactly W0 and what
  /// it names.
  template <class Names = std::initializer_list<std::string_view>>
  Layer& unmerge(const Names& names) {
    constexpr std::string_view operation = "MultiLoraLinear::unmerge";
    const auto gone = positions(operation, names);
    remove_merged(operation, [&](Index i) { return std::find(gone.begin(), gone.end(), i) != gone.end(); });
    return self();
  }

  /// Training mode; unmerges those whose configuration has merge_weights. @throws as unmerge(names)
  Layer& train(bool mode = true) {
    if (!mode) return eval();
    remove_merged("MultiLoraLinear::train", [&](Index i) { return slots_[i].adapter().config().merge_weights; });
    training_ = true;
    return self();
  }
  /// Evaluation mode; merges the active ones whose configuration has merge_weights, unless adapters are disabled.
  /// @throws as merge(); then the mode has not changed either.
  Layer& eval() {
    std::vector<Index> merging;
    for (const Index i : active_) {
      if (enabled_ && slots_[i].adapter().config().merge_weights) merging.push_back(i);
    }
    merge_all("MultiLoraLinear::eval", merging);
    training_ = false;
    return self();
  }
  [[nodiscard]] bool training() const noexcept { return training_; }

  /// Whether any adapter is merged.
  [[nodiscard]] bool merged() const noexcept { return !stack_.empty(); }
  /// Names in the order of merging. A copy.
  [[nodiscard]] std::vector<std::string> merged_adapters() const {
    std::vector<std::string> names;
    for (std::size_t m = 0; m < stack_.size(); ++m) names.push_back(slots_[position_of(stack_.key(m))].name());
    return names;
  }
  /// Bytes held beyond W0 while merged, without the copies of the factors: about one a weight for each merged adapter.
  [[nodiscard]] std::size_t merge_bytes() const noexcept { return stack_.bytes(); }

 protected:
  using Frozen = FrozenLinear<Scalar, Weight>;

  explicit MultiAdapterState(Frozen frozen) : frozen_(std::move(frozen)) {}
  ~MultiAdapterState() = default;
  MultiAdapterState(const MultiAdapterState&) = default;
  MultiAdapterState(MultiAdapterState&&) noexcept = default;
  MultiAdapterState& operator=(const MultiAdapterState&) = default;
  MultiAdapterState& operator=(MultiAdapterState&&) noexcept = default;

  [[nodiscard]] const Frozen& frozen() const noexcept { return frozen_; }
  [[nodiscard]] RowVector<Scalar>& mutable_bias() noexcept { return frozen_.bias; }
  [[nodiscard]] const AdapterSlots<Scalar>& slots() const noexcept { return slots_; }
  [[nodiscard]] AdapterSlots<Scalar>& slots() noexcept { return slots_; }

  /// Positions of the active adapters; none while adapters are disabled.
  [[nodiscard]] std::span<const Index> active() const noexcept {
    return enabled_ ? std::span<const Index>(active_) : std::span<const Index>();
  }
  /// Whether the adapter is part of the layer's answer.
  [[nodiscard]] bool takes_part(Index i) const noexcept { return slots_[i].merged() || (enabled_ && is_active(i)); }

  /// @throws StateError naming an adapter while one is merged.
  void require_nothing_merged(std::string_view operation, std::string_view argument) const {
    if (stack_.empty()) return;
    throw StateError(operation, argument, "no merged adapter (call train() or unmerge() first)",
                     detail::quoted(slots_[position_of(stack_.key(0))].name()) + " merged");
  }

  [[nodiscard]] const AdapterSlot<Scalar>& slot(std::string_view operation, std::string_view name) const {
    return slots_[slots_.index_of(operation, name)];
  }

 private:
  [[nodiscard]] Layer& self() noexcept { return static_cast<Layer&>(*this); }

  [[nodiscard]] AdapterSlot<Scalar>& unmerged(std::string_view operation, std::string_view name) {
    AdapterSlot<Scalar>& found = slots_[slots_.index_of(operation, name)];
    found.require_unmerged(operation);
    return found;
  }

  [[nodiscard]] bool is_active(Index i) const noexcept {
    return std::find(active_.begin(), active_.end(), i) != active_.end();
  }

  [[nodiscard]] Index first_by_name() const noexcept {
    Index first = 0;
    for (Index i = 1; i < slots_.size(); ++i) {
      if (slots_[i].name() < slots_[first].name()) first = i;
    }
    return first;
  }

  [[nodiscard]] Index position_of(std::uint64_t id) const noexcept {
    Index i = 0;
    while (slots_[i].id() != id) ++i;
    return i;
  }

  template <class Names>
  [[nodiscard]] std::vector<Index> positions(std::string_view operation, const Names& names) const {
    std::vector<Index> found;
    for (const std::string_view name : names) {
      const Index i = slots_.index_of(operation, name);
      if (std::find(found.begin(), found.end(), i) != found.end()) {
        throw ConfigError(operation, "names", "every adapter once", detail::quoted(name) + " again");
      }
      found.push_back(i);
    }
    return found;
  }

  // `target` is the adapter that gives way, if any.
  void check_supported(std::string_view operation, const LoraConfig& config, const AdapterSlot<Scalar>* target) const {
    if (takes_from_weight(config.init_lora_weights)) {
      throw ConfigError(operation, "init_lora_weights", "one that leaves the weight to the other adapters",
                        "pissa or olora (LoraLinear has them)");
    }
    if (config.bias == BiasMode::none) return;
    for (Index i = 0; i < slots_.size(); ++i) {
      if (&slots_[i] != target && slots_[i].adapter().config().bias != BiasMode::none) {
        throw ConfigError(operation, "bias", "none beside an adapter that trains the layer's bias",
                          "another mode than that of " + detail::quoted(slots_[i].name()));
      }
    }
  }

  void merge_all(std::string_view operation, std::span<const Index> which) {
    if (!enabled_ && !which.empty()) throw StateError(operation, "layer", "enabled adapters", "disabled ones");
    check_magnitudes(operation, which);
    const std::size_t before = stack_.size();
    try {
      for (const Index i : which) {
        if (slots_[i].merged()) continue;
        std::string naming(operation);
        naming.append(" of ").append(detail::quoted(slots_[i].name()));
        push(naming, slots_[i]);
      }
    } catch (...) {
      stack_.truncate(frozen_.weight, before);
      throw;
    }
    mark_merged();
  }

  void push(std::string_view operation, const AdapterSlot<Scalar>& slot) {
    Workspace workspace;
    std::span<const Scalar> factors;
    if (slot.dora().active()) factors = slot.dora().factors(frozen_.weight, slot.update(), workspace);
    stack_.push(operation, frozen_.weight, slot.id(), slot.update(), factors);
  }

  // W0 + deltas with f (.) (...) around some of them is not the sum of what the adapters add.
  void check_magnitudes(std::string_view operation, std::span<const Index> which) const {
    Index together = 0;
    Index with_magnitude = -1;
    for (Index i = 0; i < slots_.size(); ++i) {
      if (!slots_[i].merged() && std::find(which.begin(), which.end(), i) == which.end()) continue;
      ++together;
      if (slots_[i].dora().active()) with_magnitude = i;
    }
    if (with_magnitude < 0 || together == 1) return;
    throw StateError(operation, "adapter " + detail::quoted(slots_[with_magnitude].name()),
                     "to be merged alone, for it has use_dora", std::to_string(together) + " merged together");
  }

  template <class Leaves>
  void remove_merged(std::string_view operation, const Leaves& leaves) {
    struct Mark {
      MultiAdapterState& state;
      ~Mark() { state.mark_merged(); }
    } const mark{*this};
    stack_.remove(
        operation, frozen_.weight, [&](std::uint64_t id) { return leaves(position_of(id)); },
        [&](std::uint64_t id) { return slots_[position_of(id)].update(); });
  }

  void mark_merged() noexcept {
    for (Index i = 0; i < slots_.size(); ++i) slots_[i].set_merged(stack_.contains(slots_[i].id()));
  }

  template <class Change>
  void rescale(std::string_view operation, const Change& change) {
    for (const Index i : active_) {
      slots_[i].require_unmerged(operation);
      static_cast<void>(slots_[i].scaling_with(operation, change(slots_[i].scale())));
    }
    for (const Index i : active_) slots_[i].set_scale(operation, change(slots_[i].scale()));
  }

  Frozen frozen_;
  AdapterSlots<Scalar> slots_;
  std::vector<Index> active_;
  MergeStack<Scalar> stack_;
  std::uint64_t next_id_ = 1;
  bool enabled_ = true;
  bool training_ = true;
};

}  // namespace lora
