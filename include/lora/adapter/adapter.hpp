// SPDX-License-Identifier: MIT
// One named adapter of a layer: its factors, its scale, and what training keeps for them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "lora/adapter/config.hpp"
#include "lora/adapter/gradients.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/parameter.hpp"

namespace lora {

/// The name a row uses for "no adapter" when each row of a batch chooses its own.
inline constexpr std::string_view base_adapter_name = "__base__";

/// The name of an adapter created without one.
inline constexpr std::string_view default_adapter_name = "default";

namespace detail {

[[nodiscard]] LORA_COLD inline std::string quoted(std::string_view name) { return joined({"\"", name, "\""}); }

/// `one of "a" "b"`: the first 20 names, and how many there are if there are more.
template <class Items, class NameOf>
[[nodiscard]] LORA_COLD std::string one_of(const Items& items, const NameOf& name_of) {
  constexpr std::size_t limit = 20;
  std::string text("one of");
  std::size_t listed = 0;
  for (const auto& item : items) {
    if (listed++ == limit) return joined({text, " ... (", std::to_string(items.size()), ")"});
    text.append(" ").append(detail::quoted(name_of(item)));
  }
  return text;
}

/// @throws ConfigError for a name that is empty, contains a dot or is base_adapter_name.
LORA_COLD inline std::string checked_adapter_name(std::string_view operation, std::string_view name) {
  if (name.empty() || name.find('.') != std::string_view::npos || name == base_adapter_name) {
    throw ConfigError(operation, "name",
                      joined({"a name without dots other than \"\" and ", quoted(base_adapter_name)}), quoted(name));
  }
  return std::string(name);
}

}  // namespace detail

/// What one adapter adds to a layer: s (B A - B0 A0), with A (rank x in_features) and B (out_features x rank) trainable
/// and s = scale * alpha / rank (or / sqrt(rank)). A0 and B0 are the start of an adapter that was initialised from the
/// frozen weight (pissa, olora): frozen, with the same shapes; other adapters have none. If the configuration asks for
/// them, there are also a bias of B, DoRA's magnitude, and the layer's bias as this adapter trains it. With use_qalora
/// A is rank x in_features / group and A P takes its place in the sum (adapter/qalora.hpp).
///
/// A value with no reference to the weight it adapts; the layer that creates it sets its shapes. Gradients and the
/// optimisers' moments are stored here, so that they are copied and moved with the adapter. Handles on its parameters
/// are valid until it is moved or destroyed.
template <RealScalar Scalar>
class LoraAdapter {
 public:
  /// @throws ConfigError for a bad name or configuration; std::bad_alloc
  LoraAdapter(std::string_view operation, std::string_view name, const LoraConfig& config, std::uint64_t seed,
              LoraFactors<Scalar> factors)
      : A(std::move(factors.A)),
        B(std::move(factors.B)),
        name_(detail::checked_adapter_name(operation, name)),
        config_(config),
        seed_(seed) {
    check_config(operation, config);
    scaling_ = checked_scaling(operation, "alpha", config.alpha, config, 1.0);
  }

  Matrix<Scalar> A;             ///< rank x in_features, or rank x in_features / group with use_qalora
  Matrix<Scalar> B;             ///< out_features x rank
  LoraFactors<Scalar> start;    ///< A0 and B0; empty if there is no start
  RowVector<Scalar> lora_bias;  ///< of B; empty without lora_bias
  RowVector<Scalar> magnitude;  ///< DoRA's m; empty without use_dora
  RowVector<Scalar> bias;       ///< the layer's bias while this adapter is active; empty unless it trains the bias

  /// The name that the layer's calls use.
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Its options, with alpha as set_alpha last left it.
  [[nodiscard]] const LoraConfig& config() const noexcept { return config_; }
  /// The seed of its start and of its dropout.
  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }
  /// Columns of B, without those of a start.
  [[nodiscard]] Index rank() const noexcept { return config_.rank; }
  /// Rows of A plus, if there is a start, rows of A0.
  [[nodiscard]] Index total_rank() const noexcept { return A.rows() + start.A.rows(); }
  /// Whether it has a magnitude.
  [[nodiscard]] bool uses_dora() const noexcept { return config_.use_dora; }
  /// Inputs that share a column of A with use_qalora; 0 without.
  [[nodiscard]] Index group_size() const noexcept { return config_.group_size(); }
  /// Whether it drops elements of its input in training.
  [[nodiscard]] bool drops() const noexcept { return config_.rank > 0 && config_.dropout > 0; }

  /// s, including the scale.
  [[nodiscard]] Scalar scaling() const noexcept { return scaling_; }
  /// The factor on alpha / rank.
  [[nodiscard]] double scale() const noexcept { return scale_; }
  /// @throws ConfigError when the scaling with `factor` is not finite; nothing changes then.
  void set_scale(std::string_view operation, double factor) {
    scaling_ = checked_scaling(operation, "scale", factor, config_, factor);
    scale_ = factor;
  }
  /// @throws ConfigError like set_scale
  void check_scale(std::string_view operation, double factor) const {
    static_cast<void>(checked_scaling(operation, "scale", factor, config_, factor));
  }
  /// @throws ConfigError when alpha, or the scaling with it, is not finite; nothing changes then.
  void set_alpha(std::string_view operation, double alpha) {
    LoraConfig changed = config_;
    changed.alpha = alpha;
    check_config(operation, changed);
    scaling_ = checked_scaling(operation, "alpha", alpha, changed, scale_);
    config_ = changed;
  }

  /// Assigned by the layer, and unique among all adapters the layer ever had. A tape refers to adapters by this number.
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  /// For the layer that holds it.
  void set_id(std::uint64_t id) noexcept { id_ = id; }
  /// For the layer that holds it, which keeps names distinct.
  void swap_name(LoraAdapter& other) noexcept { name_.swap(other.name_); }

  /// True while the update is merged into the weight. Until it is unmerged, nothing the update was computed from may
  /// change.
  [[nodiscard]] bool merged() const noexcept { return merged_; }
  /// For the layer that holds it.
  void set_merged(bool merged) noexcept { merged_ = merged; }
  /// @throws StateError naming the adapter while it is merged.
  void require_unmerged(std::string_view operation) const {
    if (!merged_) return;
    throw StateError(operation, detail::joined({"adapter ", detail::quoted(name_)}),
                     "an unmerged one (call train() or unmerge() first)", "a merged one");
  }

  /// Zero gradients of the right shapes. @throws std::bad_alloc
  [[nodiscard]] LoraGradients<Scalar> make_gradients() const {
    LoraGradients<Scalar> zero;
    zero.A.resize(A.rows(), A.cols());
    zero.B.resize(B.rows(), B.cols());
    zero.lora_bias.resize(lora_bias.size());
    zero.bias.resize(bias.size());
    zero.magnitude.resize(magnitude.size());
    zero.set_zero();
    return zero;
  }
  /// The adapter's own gradients, allocated at the first use. @throws std::bad_alloc
  [[nodiscard]] LoraGradients<Scalar>& gradients() {
    if (gradients_.A.size() != A.size() || gradients_.B.size() != B.size() || gradients_.bias.size() != bias.size()) {
      gradients_ = make_gradients();
    }
    return gradients_;
  }
  /// Zeroes its own gradients.
  void zero_grad() noexcept { gradients_.set_zero(); }

  /// Calls body(role, value, gradient, moments) for what trains: A, B, then the magnitude, the bias of B and the
  /// layer's bias if present. @throws std::bad_alloc when the gradients are allocated at the first use
  template <class Body>
  void for_each_parameter(const Body& body) {
    LoraGradients<Scalar>& g = gradients();
    if (A.size() > 0) body(ParameterRole::lora_A, A.data(), g.A.data(), A.rows(), A.cols(), moments_[0]);
    if (B.size() > 0) body(ParameterRole::lora_B, B.data(), g.B.data(), B.rows(), B.cols(), moments_[1]);
    const auto row = [&](ParameterRole role, RowVector<Scalar>& value, RowVector<Scalar>& gradient, std::size_t at) {
      if (value.size() > 0) body(role, value.data(), gradient.data(), Index{1}, value.size(), moments_[at]);
    };
    row(ParameterRole::magnitude, magnitude, g.magnitude, 2);
    row(ParameterRole::lora_bias, lora_bias, g.lora_bias, 3);
    row(ParameterRole::bias, bias, g.bias, 4);
  }
  /// Where merged() is stored, for the handles on its parameters.
  [[nodiscard]] const bool* merged_flag() const noexcept { return &merged_; }

  /// Number of scalars that train.
  [[nodiscard]] Index parameter_count() const noexcept {
    return A.size() + B.size() + lora_bias.size() + magnitude.size() + bias.size();
  }
  /// Bytes of the factors, including the start, the biases and the magnitude.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(parameter_count() + start.A.size() + start.B.size()) * sizeof(Scalar);
  }

 private:
  LORA_COLD static Scalar checked_scaling(std::string_view operation, std::string_view argument, double value,
                                          LoraConfig config, double factor) {
    config.alpha *= factor;
    const auto scaling = static_cast<Scalar>(config.scaling());
    if (!is_finite(scaling)) {
      throw ConfigError(operation, argument, "a number that gives a scaling that is finite in the layer's scalar type",
                        detail::number_text(value));
    }
    return scaling;
  }

  std::string name_;
  std::uint64_t id_ = 0;
  LoraConfig config_;
  std::uint64_t seed_;
  double scale_ = 1;
  Scalar scaling_ = 0;
  bool merged_ = false;
  LoraGradients<Scalar> gradients_;
  std::array<Moments<Scalar>, 5> moments_;
};

}  // namespace lora
