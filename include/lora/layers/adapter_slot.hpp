// One of the adapters of a layer that has several: factors under a name, their scale, and what training keeps for them.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/dora.hpp"
#include "lora/adapter/gradients.hpp"
#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/parameter.hpp"

namespace lora {

/// The name that stands for no adapter where each row of a batch chooses its own.
inline constexpr std::string_view base_adapter_name = "__base__";

namespace detail {

[[nodiscard]] inline std::string quoted(std::string_view name) {
  std::string text = "\"";
  text.append(name).append("\"");
  return text;
}

}  // namespace detail

/// A LoraAdapter with its name and the factor on its own scaling: s = factor * alpha / rank (or / sqrt(rank)).
/// Gradients and the optimisers' states live here, one set an adapter. A value; handles on its parameters hold while it
/// stays where it is.
template <RealScalar Scalar>
class AdapterSlot {
 public:
  /// @throws ConfigError for a name that is empty, holds a dot or stands for the base, for rank 0, and as LoraAdapter.
  AdapterSlot(std::string_view operation, std::string_view name, std::uint64_t id, Index in_features,
              Index out_features, const LoraConfig& config, std::uint64_t seed)
      : name_(checked_name(operation, name)),
        id_(id),
        adapter_(operation, in_features, out_features, checked_config(operation, config), seed),
        scaling_(adapter_.scaling()) {}

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Differs for every adapter a layer ever had, also for those swapped in.
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] const LoraAdapter<Scalar>& adapter() const noexcept { return adapter_; }
  [[nodiscard]] LoraAdapter<Scalar>& adapter() noexcept { return adapter_; }
  [[nodiscard]] Index rank() const noexcept { return adapter_.rank(); }

  /// The factor on the adapter's own alpha / rank.
  [[nodiscard]] double scale() const noexcept { return scale_; }
  /// s, the factor included.
  [[nodiscard]] Scalar scaling() const noexcept { return scaling_; }
  /// @throws ConfigError when the factor, or the scaling it gives, is not finite.
  void set_scale(std::string_view operation, double factor) {
    scaling_ = scaling_with(operation, factor);
    scale_ = factor;
  }
  /// The scaling that `factor` would give. @throws ConfigError when that is not finite.
  [[nodiscard]] Scalar scaling_with(std::string_view operation, double factor) const {
    LoraConfig scaled = adapter_.config();
    scaled.alpha *= factor;
    const auto scaling = static_cast<Scalar>(scaled.scaling());
    if (!std::isfinite(scaling)) {
      throw ConfigError(operation, "scale", "a factor that gives a finite scaling", detail::number_text(factor));
    }
    return scaling;
  }

  /// s*B*A. Valid while the slot stays where it is and its factors are not replaced.
  [[nodiscard]] LowRankUpdate<Scalar> update() const noexcept {
    LowRankUpdate<Scalar> update = adapter_.update();
    update.scale = scaling_;
    return update;
  }

  /// DoRA's magnitude; inactive without use_dora.
  [[nodiscard]] const DoraMagnitude<Scalar>& dora() const noexcept { return dora_; }
  [[nodiscard]] DoraMagnitude<Scalar>& dora() noexcept { return dora_; }
  /// Starts the magnitude that the configuration asks for as the norms of the rows of W0 + s*B*A. `weight` is unmerged.
  /// @throws std::bad_alloc
  template <FrozenWeight Weight>
  void start_magnitude(const Weight& weight) {
    if (adapter_.config().use_dora) dora_ = DoraMagnitude<Scalar>(weight, update());
  }

  /// Exchanges the adapter, neither of them with DoRA, and starts anew with it: scale 1, no gradients, no optimiser's
  /// state. O(1).
  void swap_adapter(LoraAdapter<Scalar>& other, std::uint64_t id) noexcept {
    std::swap(adapter_, other);
    id_ = id;
    scale_ = 1;
    scaling_ = adapter_.scaling();
    gradients_ = {};
    states_ = {};
  }

  /// True while the update stands merged in the weight, and nothing that it was made from may change.
  [[nodiscard]] bool merged() const noexcept { return merged_; }
  void set_merged(bool merged) noexcept { merged_ = merged; }
  /// @throws StateError naming the adapter while it is merged.
  void require_unmerged(std::string_view operation) const {
    if (merged_) {
      throw StateError(operation, "adapter " + detail::quoted(name_), "an unmerged adapter (call unmerge() first)",
                       "a merged one");
    }
  }

  /// Zero gradients of the right shapes; the layer's bias, where this adapter trains it, has `bias_size` elements.
  [[nodiscard]] LoraGradients<Scalar> make_gradients(Index bias_size) const {
    LoraGradients<Scalar> zero;
    zero.A = Matrix<Scalar>::Zero(adapter_.A().rows(), adapter_.A().cols());
    zero.B = Matrix<Scalar>::Zero(adapter_.B().rows(), adapter_.B().cols());
    zero.lora_bias = RowVector<Scalar>::Zero(adapter_.lora_bias().size());
    zero.magnitude = RowVector<Scalar>::Zero(dora_.value().size());
    zero.bias = RowVector<Scalar>::Zero(trained_bias_size(bias_size));
    return zero;
  }
  [[nodiscard]] Index trained_bias_size(Index bias_size) const noexcept {
    return adapter_.config().trains_bias() ? bias_size : 0;
  }

  /// The adapter's own gradients; memory for them comes with the first use.
  [[nodiscard]] LoraGradients<Scalar>& gradients(Index bias_size) {
    if (gradients_.A.size() == 0) gradients_ = make_gradients(bias_size);
    return gradients_;
  }
  void zero_grad() noexcept { gradients_.set_zero(); }

  /// Appends "lora_A.<name>.weight", "lora_B.<name>.weight", then "lora_magnitude_vector.<name>.weight",
  /// "lora_B.<name>.bias" and "bias" where they train.
  void append_parameters(std::vector<Parameter<Scalar>>& list, RowVector<Scalar>& bias) {
    LoraGradients<Scalar>& g = gradients(bias.size());
    const auto add = [&](std::string name, ParameterRole role, std::size_t state, auto& value, auto& gradient) {
      if (gradient.size() == 0) return;
      list.emplace_back(std::move(name), role, value.data(), gradient.data(), value.rows(), value.cols(),
                        states_[state], &merged_);
    };
    add(parameter_name("lora_A", "weight"), ParameterRole::lora_A, 0, adapter_.A(), g.A);
    add(parameter_name("lora_B", "weight"), ParameterRole::lora_B, 1, adapter_.B(), g.B);
    add(parameter_name("lora_magnitude_vector", "weight"), ParameterRole::magnitude, 2, dora_.value(), g.magnitude);
    add(parameter_name("lora_B", "bias"), ParameterRole::lora_bias, 3, adapter_.lora_bias(), g.lora_bias);
    add("bias", ParameterRole::bias, 4, bias, g.bias);
  }

  /// Bytes of the factors, the bias of B, and the magnitude with the norms of W0.
  [[nodiscard]] std::size_t bytes() const noexcept {
    const Index scalars = adapter_.A().size() + adapter_.B().size() + adapter_.lora_bias().size();
    return static_cast<std::size_t>(scalars) * sizeof(Scalar) + dora_.bytes();
  }
  /// Scalars that train, but for the layer's bias.
  [[nodiscard]] Index parameter_count() const noexcept {
    return adapter_.A().size() + adapter_.B().size() + adapter_.lora_bias().size() + dora_.value().size();
  }

 private:
  static std::string checked_name(std::string_view operation, std::string_view name) {
    if (name.empty() || name.find('.') != std::string_view::npos || name == base_adapter_name) {
      std::string expected = "a name without dots other than ";
      expected.append(detail::quoted("")).append(" and ").append(detail::quoted(base_adapter_name));
      throw ConfigError(operation, "name", expected, detail::quoted(name));
    }
    return std::string(name);
  }

  static const LoraConfig& checked_config(std::string_view operation, const LoraConfig& config) {
    if (config.rank == 0) throw ConfigError(operation, "rank", "1 or more", "0");
    return config;
  }

  [[nodiscard]] std::string parameter_name(std::string_view factor, std::string_view kind) const {
    std::string text(factor);
    text.append(".").append(name_).append(".").append(kind);
    return text;
  }

  std::string name_;
  std::uint64_t id_;
  LoraAdapter<Scalar> adapter_;
  DoraMagnitude<Scalar> dora_;
  double scale_ = 1;
  Scalar scaling_;
  bool merged_ = false;
  LoraGradients<Scalar> gradients_;
  std::array<Moments<Scalar>, 5> states_;
};

/// The adapters of a layer in the order they were added. Slots stay where they are while others come and go.
template <RealScalar Scalar>
class AdapterSlots {
 public:
  using Slot = AdapterSlot<Scalar>;

  AdapterSlots() = default;
  AdapterSlots(const AdapterSlots& other) {
    slots_.reserve(other.slots_.size());
    for (const auto& slot : other.slots_) slots_.push_back(std::make_unique<Slot>(*slot));
  }
  AdapterSlots(AdapterSlots&&) noexcept = default;
  AdapterSlots& operator=(const AdapterSlots& other) { return *this = AdapterSlots(other); }
  AdapterSlots& operator=(AdapterSlots&&) noexcept = default;
  ~AdapterSlots() = default;

  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(slots_.size()); }
  [[nodiscard]] const Slot& operator[](Index i) const noexcept { return *slots_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] Slot& operator[](Index i) noexcept { return *slots_[static_cast<std::size_t>(i)]; }

  /// Position of the adapter, or -1.
  [[nodiscard]] Index find(std::string_view name) const noexcept {
    for (Index i = 0; i < size(); ++i) {
      if ((*this)[i].name() == name) return i;
    }
    return -1;
  }
  /// @throws ConfigError naming the adapters there are.
  [[nodiscard]] Index index_of(std::string_view operation, std::string_view name) const {
    const Index found = find(name);
    if (found < 0) throw ConfigError(operation, "adapter", known_names(), detail::quoted(name));
    return found;
  }

  /// @throws ConfigError when there is one of that name.
  void add(std::string_view operation, Slot slot) {
    if (find(slot.name()) >= 0) {
      throw ConfigError(operation, "name", "one that no adapter of the layer has", detail::quoted(slot.name()));
    }
    slots_.push_back(std::make_unique<Slot>(std::move(slot)));
  }
  void erase(Index i) noexcept { slots_.erase(slots_.begin() + i); }

 private:
  [[nodiscard]] std::string known_names() const {
    if (slots_.empty()) return "a name, once an adapter is added";
    std::string text = "one of";
    for (const auto& slot : slots_) text.append(" ").append(detail::quoted(slot->name()));
    return text;
  }

  std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace lora
