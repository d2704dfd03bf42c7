// SPDX-License-Identifier: MIT
// A user's named layers and their adapters: injection by name, choosing what trains, merging and loading for all of
// them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/claim.hpp"
#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/injection_plan.hpp"
#include "lora/model/model_config.hpp"
#include "lora/model/model_layer.hpp"
#include "lora/model/model_parameter.hpp"
#include "lora/model/name_hash.hpp"
#include "lora/model/parameter_count.hpp"

namespace lora {

/// A registry of layers and parameters by dotted name. It owns none of them: each stays a member of the user's class,
/// which must outlive the model and must not move. Layers start as plain frozen ones (rank 0); `inject` gives adapters
/// to those whose names match a configuration, like PEFT's get_peft_model.
///
/// Adapters have names. The layers hold all of them; the active ones are used and train. Trained modules to save and
/// biases belong to the adapter that trains them. Only merging changes weights, and it is undone exactly, so removing
/// all adapters restores the original model. A function that throws has changed nothing, unless it says otherwise. One
/// thread at a time.
///
/// Destroying a model, or assigning another one to it, touches neither layers nor parameters: the layers keep their
/// adapters, what is merged stays merged, and a Trainable keeps the values of the active adapter that saves it, while
/// the user's own and those of inactive adapters are lost. Call unload() first to have the original ones back. A model
/// that was moved from is empty, like a new one.
template <RealScalar ScalarType>
class LoraModel {
 public:
  using Scalar = ScalarType;

  LoraModel() = default;
  LoraModel(const LoraModel&) = delete;
  LoraModel& operator=(const LoraModel&) = delete;
  LoraModel(LoraModel&&) noexcept = default;
  LoraModel& operator=(LoraModel&&) noexcept = default;
  ~LoraModel() = default;

  /// Registers a layer: LoraLinear, MergedLinear, LoraEmbedding, LoraConv or another AdaptableLayer.
  /// @throws ConfigError for a name that is taken, not a dotted name or the name of a parameter inside a layer, or a
  /// layer that already has a name; StateError after an injection, or for a layer of another model
  template <AdaptableLayer Layer>
  void add(std::string name, Layer& layer) {
    using Kind = typename Layer::Kind;
    add_layer(std::move(name), std::make_unique<HeldLayer<Kind>>(static_cast<LayerCore<Kind>&>(layer)));
  }
  /// Registers a parameter that is trained whole or not at all, by its full name ("head.weight", "norm.bias").
  /// `shape` is the shape in files; if empty, [rows, cols], or [cols] for one row. @throws like above; ShapeError when
  /// the shape has a different size
  void add(std::string name, Trainable<Scalar>& parameter, std::vector<Index> shape = {}) {
    require_addable(name, parameter.claim);
    for (std::size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
      const auto found = names_.find(name.substr(0, dot));
      if (found != names_.end() && found->second != nullptr) require_apart(found->first, *found->second, name);
    }
    Names one{{name, nullptr}};
    const std::shared_ptr<const void>& mine = token();
    parameters_.emplace_back(std::move(name), parameter, std::move(shape));
    names_.merge(one);
    parameter.claim.take(mine);
  }

  /// Names of the registered layers, in order.
  [[nodiscard]] std::vector<std::string> module_names() const {
    std::vector<std::string> names;
    for (const auto& [name, layer] : layers_) names.push_back(name);
    return names;
  }

  /// Gives a new adapter to every layer that `config` targets, makes it the active one, and makes only this adapter,
  /// the modules to save and the biases of `config.lora.bias` trainable. Each layer's seed is derived from `seed` and
  /// its name. Every targeted layer needs a rank of 1 or more, as in PEFT and its files: biases alone are no adapter.
  /// @throws ConfigError naming what matches nothing, is out of range or is refused by a layer, StateError while
  /// merged; std::bad_alloc
  InjectionReport inject(const LoraModelConfig& config, std::uint64_t seed, const std::string& adapter = "default") {
    constexpr std::string_view operation = "LoraModel::inject";
    require_new(operation, adapter);
    Plan plan(operation, config, layers_, parameters_);
    return add_adapter(operation, adapter, config, seed, plan, nullptr);
  }

  /// Adds the adapter in `weights`, like `inject` followed by setting every value. Strict: the modules of `weights`
  /// must be those that `config` targets here, with the scaling that it gives them, and all shapes must fit. `seed` is
  /// the one for `inject`; without one it is 0. An adapter with pissa_niter needs it: its values belong to a start that
  /// is not among `weights`, and only the seed it was injected with gives that start again (PEFT draws another one and
  /// is then wrong by the difference).
  /// @throws ConfigError listing what is missing, extra or misshapen, or for pissa_niter without a seed; StateError
  /// while merged; std::bad_alloc
  InjectionReport load(const LoraModelConfig& config, const AdapterWeights<Scalar>& weights,
                       std::optional<std::uint64_t> seed = std::nullopt, const std::string& adapter = "default") {
    constexpr std::string_view operation = "LoraModel::load";
    require_new(operation, adapter);
    if (!seed && config.lora.init_lora_weights == InitLoraWeights::pissa && config.lora.pissa_niter > 0) {
      throw ConfigError(operation, "seed", "the one that an adapter with pissa_niter was injected with", "none");
    }
    Plan plan(operation, config, layers_, parameters_);
    plan.take_file_configs(weights);
    plan.check_weights(weights);
    return add_adapter(operation, adapter, config, seed.value_or(0), plan, &weights);
  }

  /// The weights of the single active adapter. A copy. @throws StateError unless exactly one is active
  [[nodiscard]] AdapterWeights<Scalar> weights() const { return weights(sole_active("LoraModel::weights")); }
  /// The weights of an adapter, active or not. A copy. @throws ConfigError
  [[nodiscard]] AdapterWeights<Scalar> weights(const std::string& adapter) const {
    const Adapter& entry = find_adapter("LoraModel::weights", adapter)->second;
    AdapterWeights<Scalar> weights;
    for (const auto& [name, layer] : layers_) {
      const LoraAdapter<Scalar>* const own = layer->find_adapter(adapter);
      if (own == nullptr) continue;
      if (own->rank() > 0) weights.modules.emplace(name, layer->weights(*own));
      if (own->bias.size() == 0) continue;
      weights.saved.emplace(name + ".bias",
                            SavedTensor<Scalar>{{own->bias.size()}, {own->bias.begin(), own->bias.end()}});
    }
    for (const auto& saved : entry.saved) {
      const ModelParameter<Scalar>& parameter = parameters_[saved.parameter];
      weights.saved.emplace(parameter.name(), parameter.saved(entry.active ? parameter.current() : saved.other));
    }
    return weights;
  }

  /// Names of all adapters, in alphabetical order. A copy.
  [[nodiscard]] std::vector<std::string> adapter_names() const {
    std::vector<std::string> names;
    for (const auto& [name, adapter] : adapters_) names.push_back(name);
    return names;
  }
  /// Names of the active adapters, in their order.
  [[nodiscard]] const std::vector<std::string>& active_adapters() const noexcept { return active_; }
  /// The first of them; empty if there is none.
  [[nodiscard]] std::string active_adapter() const { return active_.empty() ? std::string() : active_.front(); }
  /// The configuration of an adapter. @throws ConfigError for an unknown name
  [[nodiscard]] const LoraModelConfig& config(const std::string& adapter) const {
    return find_adapter("LoraModel::config", adapter)->second.config;
  }
  /// That of the single active adapter. @throws StateError unless exactly one is active
  [[nodiscard]] const LoraModelConfig& config() const { return config(sole_active("LoraModel::config")); }

  /// Makes one adapter the active one; see set_adapters().
  void set_adapter(const std::string& adapter) { set_adapters({adapter}); }
  /// Makes these the active adapters, in this order; the list may be empty. Each keeps its factors, modules to save,
  /// biases, gradients and moments; no number is copied. Layers whose active adapters were changed by calls of their
  /// own follow again. Does nothing if these are active already, also while they are merged. @throws ConfigError for a
  /// name that is unknown or given twice, or when two of them train the same module to save or bias; StateError while
  /// merged
  void set_adapters(const std::vector<std::string>& adapters) {
    constexpr std::string_view operation = "LoraModel::set_adapters";
    require_distinct(operation, adapters);
    if (are_active(adapters)) return;
    require_unmerged(operation);
    activate(prepare_active(operation, adapters));
  }

  /// Removes an adapter; if it was the only active one, none is active afterwards. Rows that chose it are answered by
  /// the frozen model, others keep their choice.
  /// @throws ConfigError for an unknown name, StateError while the model is merged; std::bad_alloc
  void delete_adapter(const std::string& adapter) {
    constexpr std::string_view operation = "LoraModel::delete_adapter";
    const auto found = find_adapter(operation, adapter);
    require_unmerged(operation);
    std::vector<std::string> rest = active_;
    rest.erase(std::remove(rest.begin(), rest.end(), adapter), rest.end());
    // Removing an adapter shifts positions, so the active ones are set again, in memory that is already reserved.
    const std::vector<std::vector<Index>> positions = positions_without(adapter, rest);
    activate(prepare_active(operation, rest));  // nothing throws from here on; `adapter` may refer to a name in active_
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].second->erase_adapter(found->first);
      layers_[i].second->set_active(positions[i]);
    }
    adapters_.erase(found);
  }

  /// The scale of an adapter in every layer: s = factor * alpha / rank (or / sqrt(rank)). @throws ConfigError;
  /// StateError while it is merged
  void set_scale(const std::string& adapter, double factor) {
    constexpr std::string_view operation = "LoraModel::set_scale";
    static_cast<void>(find_adapter(operation, adapter));
    for (const auto& [name, layer] : layers_) layer->check_scale(operation, adapter, factor);
    for (const auto& [name, layer] : layers_) layer->set_scale(operation, adapter, factor);
  }
  /// Unmerges everything and acts as the frozen model until enable_adapters(). Modules to save stay those of the active
  /// adapters.
  void disable_adapters() noexcept {
    for (const auto& [name, layer] : layers_) layer->enable_adapters(false);
  }
  /// Ends disable_adapters(). Nothing is merged again.
  void enable_adapters() noexcept {
    for (const auto& [name, layer] : layers_) layer->enable_adapters(true);
  }

  /// Lets each sample of subsequent batches choose its adapter in every layer, like PEFT's `adapter_names`: `names`
  /// holds the name of an adapter, or "__base__", for every sample. A layer without that adapter acts as the frozen
  /// layer for the sample. Applies in evaluation mode until clear_row_adapters(). Modules to save stay those of the
  /// active adapters, whatever the rows choose, while PEFT chooses them by row too: use weights(name).saved for those
  /// of the others. @throws ConfigError for an unknown name; std::bad_alloc
  void set_row_adapters(const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      if (name != base_adapter_name) static_cast<void>(find_adapter("LoraModel::set_row_adapters", name));
    }
    std::vector<std::vector<Index>> choices;
    for (const auto& [name, layer] : layers_) choices.push_back(layer->row_choices(names));
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].second->set_row_choices(choices[i]);
  }
  /// Ends set_row_adapters(): the active adapters answer all samples again.
  void clear_row_adapters() noexcept {
    for (const auto& [name, layer] : layers_) {
      std::vector<Index> none;
      layer->set_row_choices(none);
    }
  }

  /// Freezes every registered parameter except the biases that `bias` selects; adapters always train. Like loralib's
  /// function of this name; inject() calls it itself.
  void mark_only_lora_as_trainable(BiasMode bias = BiasMode::none) {
    require_unmerged("LoraModel::mark_only_lora_as_trainable");
    for (auto& parameter : parameters_) {
      parameter.set_trainable(bias == BiasMode::all && detail::names_bias(parameter.name()));
    }
  }

  /// Handles on everything that trains, named "<module>.lora_A.weight" and so on. Valid until the next call that adds,
  /// removes or activates an adapter. Allocates the list.
  [[nodiscard]] std::vector<Parameter<Scalar>> trainable_parameters() {
    std::vector<Parameter<Scalar>> result;
    for (auto& [name, layer] : layers_) {
      for (const Parameter<Scalar>& parameter : layer->parameters()) {
        result.push_back(parameter);
        std::string full = name;
        result.back().rename(full.append(".").append(parameter.name()));
      }
    }
    for (auto& parameter : parameters_) {
      if (parameter.trainable()) result.push_back(parameter.handle());
    }
    return result;
  }

  /// Counted as in PEFT: `all` includes every adapter, active or not, and a module to save once more for each adapter
  /// that trains it.
  [[nodiscard]] ParameterCount parameter_count() const {
    ParameterCount count;
    for (const auto& [name, layer] : layers_) {
      count.all += layer->base_size() + layer->adapter_size();
      count.trainable += layer->trainable_size();
    }
    for (const auto& parameter : parameters_) {
      count.all += parameter.size();
      if (parameter.trainable()) count.trainable += parameter.size();
    }
    for (const auto& [name, adapter] : adapters_) {
      for (const Saved& saved : adapter.saved) {
        if (saved.module_to_save) count.all += parameters_[saved.parameter].size();
      }
    }
    return count;
  }

  /// Zeroes all gradients, whether or not their parameters train now.
  void zero_grad() noexcept {
    for (auto& [name, layer] : layers_) layer->zero_grad();
    for (auto& parameter : parameters_) parameter.zero_grad();
    for (auto& [name, adapter] : adapters_) {
      for (Saved& saved : adapter.saved) ModelParameter<Scalar>::zero_grad(saved.other);
    }
  }

  /// Training mode in every layer. @throws like merge()
  void train(bool mode = true) {
    all_or_none([mode](ModelLayer<Scalar>& layer) { mode ? layer.train() : layer.eval(); });
  }
  /// Evaluation mode in every layer; merges if the configuration asks for it and the weight can be merged into. @throws
  /// like merge()
  void eval() { train(false); }
  /// Merges the active adapters in every layer. @throws StateError, also while adapters are disabled; std::bad_alloc
  void merge() { merge(active_); }
  /// Merges these adapters, active or not, beside what is merged already. An adapter that trains registered parameters
  /// (modules to save, or biases with BiasMode::all) must be active, because its values of them are used only then.
  /// @throws also ConfigError for a name that is unknown or given twice, or when two of these, the active and the
  /// merged ones train the same tensor; StateError for one that trains registered parameters and is not active
  void merge(const std::vector<std::string>& adapters) {
    constexpr std::string_view operation = "LoraModel::merge";
    require_distinct(operation, adapters);
    require_each_trained_once(operation, answering_with(adapters));
    require_saved_in_use(operation, adapters);
    all_or_none([&](ModelLayer<Scalar>& layer) { layer.merge(layer.positions(adapters)); });
  }
  /// Restores every weight bit for bit.
  void unmerge() noexcept {
    for (auto& [name, layer] : layers_) layer->unmerge();
  }
  /// Takes these adapters out of every weight. @throws ConfigError; otherwise like the layers' unmerge(names)
  void unmerge(const std::vector<std::string>& adapters) {
    require_distinct("LoraModel::unmerge", adapters);
    all_or_none([&](ModelLayer<Scalar>& layer) { layer.unmerge(layer.positions(adapters)); });
  }
  /// Whether any layer is merged.
  [[nodiscard]] bool merged() const noexcept {
    return std::any_of(layers_.begin(), layers_.end(), [](const auto& entry) { return entry.second->merged(); });
  }

  /// Merges the active adapters permanently, together with everything already merged, and removes all adapters. Modules
  /// to save keep their trained values. @throws like merge(); StateError without an active adapter
  void merge_and_unload() {
    if (active_.empty()) throw StateError("LoraModel::merge_and_unload", "model", "an active adapter", "none");
    std::vector<RowVector<Scalar>> biases;
    for (const auto& [name, layer] : layers_) biases.push_back(layer->answer_bias(layer->positions(active_)));
    merge();
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].second->keep_merged(biases[i]);
    for (auto& [name, adapter] : adapters_) {
      if (!adapter.active) continue;
      for (auto& saved : adapter.saved) parameters_[saved.parameter].set_trainable(true);
    }
    forget();
  }
  /// Removes the model's adapters: layers and modules to save are restored to their state before the first injection,
  /// bit for bit. The registered parameters stay frozen.
  void unload() noexcept {
    if (!adapters_.empty()) {
      unmerge();
      clear_row_adapters();
    }
    for (auto& [name, adapter] : adapters_) {
      if (adapter.active) exchange(adapter);
      for (auto& [layer_name, layer] : layers_) layer->erase_adapter(name);
    }
    for (auto& [name, layer] : layers_) layer->reset();
    forget();
  }

 private:
  using Plan = detail::InjectionPlan<Scalar>;

  // A parameter that an adapter trains whole. Holds the adapter's values while it is inactive, and the user's while it
  // is active.
  struct Saved {
    std::size_t parameter = 0;
    bool module_to_save = false;
    Trainable<Scalar> other;
  };
  // Of everything registered; null for a parameter.
  using Names = std::map<std::string, const ModelLayer<Scalar>*>;
  struct Adapter {
    LoraModelConfig config;
    std::vector<Saved> saved;
    bool active = false;
  };
  // A prepared change of the active adapters, which can be applied without an allocation.
  struct Activation {
    std::vector<std::string> names;
    std::vector<std::vector<Index>> positions;  // of each layer
  };

  void add_layer(std::string name, std::unique_ptr<ModelLayer<Scalar>> layer) {
    require_addable(name, layer->claim());
    const std::string inside = name + ".";
    for (auto it = names_.lower_bound(inside); it != names_.end() && it->first.starts_with(inside); ++it) {
      if (it->second == nullptr) require_apart(name, *layer, it->first);
    }
    Names one{{name, layer.get()}};
    const std::shared_ptr<const void>& mine = token();
    layers_.emplace_back(std::move(name), std::move(layer));
    names_.merge(one);
    layers_.back().second->claim().take(mine);
  }
  // A model that was moved from has none, and needs a new one.
  [[nodiscard]] const std::shared_ptr<const void>& token() {
    if (token_ == nullptr) token_ = std::make_shared<char>();
    return token_;
  }
  // `claim` is that of the layer or parameter that is to have this name.
  void require_addable(const std::string& name, const Claim& claim) const {
    constexpr std::string_view operation = "LoraModel::add";
    if (name.empty() || name.front() == '.' || name.back() == '.' || name.find("..") != std::string::npos) {
      throw ConfigError(operation, "name", "a dotted name such as layers.0.q_proj", detail::quoted(name));
    }
    if (!adapters_.empty()) {
      throw StateError(operation, "model", "one without adapters", std::to_string(adapters_.size()) + " adapters");
    }
    if (names_.contains(name)) throw ConfigError(operation, "name", "one that is not registered yet", name);
    if (claim.held_by(token_)) {
      throw ConfigError(operation, name, "what has no name yet", "what is registered as " + name_of(claim));
    }
    if (!claim.free_for(token_)) {
      throw StateError(operation, name, "what belongs to no other model", "what another model has");
    }
  }
  // Pre: it is a layer's or parameter's of this model.
  [[nodiscard]] std::string name_of(const Claim& claim) const {
    for (const auto& [name, layer] : layers_) {
      if (&layer->claim() == &claim) return name;
    }
    for (const auto& parameter : parameters_) {
      if (&parameter.current().claim == &claim) return parameter.name();
    }
    return {};
  }
  // In files and among the handles, a layer's bias and what its adapters learn have the layer's name before theirs.
  static void require_apart(const std::string& layer_name, const ModelLayer<Scalar>& layer,
                            const std::string& parameter) {
    if (!parameter.starts_with(layer_name + ".")) return;
    const std::string_view own = std::string_view(parameter).substr(layer_name.size() + 1);
    if (!own.starts_with("lora_") && (own != "bias" || layer.bias_size() == 0)) return;
    throw ConfigError("LoraModel::add", "name",
                      "a parameter outside the layer " + layer_name + ", which has its own " + std::string(own),
                      parameter);
  }

  void require_unmerged(std::string_view operation) const {
    if (merged())
      throw StateError(operation, "model", "unmerged layers (call train() or unmerge() first)", "merged ones");
  }
  void require_distinct(std::string_view operation, const std::vector<std::string>& adapters) const {
    for (std::size_t i = 0; i < adapters.size(); ++i) {
      static_cast<void>(find_adapter(operation, adapters[i]));
      if (std::find(adapters.begin(), adapters.begin() + static_cast<std::ptrdiff_t>(i), adapters[i]) !=
          adapters.begin() + static_cast<std::ptrdiff_t>(i)) {
        throw ConfigError(operation, "adapters", "every adapter once", adapters[i] + " again");
      }
    }
  }
  void require_new(std::string_view operation, const std::string& adapter) const {
    static_cast<void>(detail::checked_adapter_name(operation, adapter));
    if (adapters_.contains(adapter)) throw ConfigError(operation, "adapter", "a name that is not taken", adapter);
    require_unmerged(operation);
    for (const auto& [name, layer] : layers_) {
      if (adapters_.empty() && layer->adapter_count() > 0) {
        throw StateError(operation, name, "a layer of rank 0", "one that has an adapter of its own");
      }
      if (layer->find_adapter(adapter) == nullptr) continue;
      throw ConfigError(operation, "adapter", "a name that no adapter of " + name + " has", adapter);
    }
  }
  [[nodiscard]] const std::string& sole_active(std::string_view operation) const {
    if (active_.size() == 1) return active_.front();
    throw StateError(operation, "model", "one active adapter", std::to_string(active_.size()));
  }

  [[nodiscard]] auto find_adapter(std::string_view operation, const std::string& adapter) const {
    const auto found = adapters_.find(adapter);
    if (found == adapters_.end()) throw ConfigError(operation, "adapter", known_names(), detail::quoted(adapter));
    return found;
  }
  [[nodiscard]] std::string known_names() const {
    if (adapters_.empty()) return "a name, once an adapter is injected or loaded";
    return detail::one_of(adapters_, [](const auto& known) -> const std::string& { return known.first; });
  }

  // Checks every layer, builds every adapter separately, reserves all memory, and only then changes anything.
  InjectionReport add_adapter(std::string_view operation, const std::string& name, const LoraModelConfig& config,
                              std::uint64_t seed, Plan& plan, const AdapterWeights<Scalar>* weights) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (wants(plan, i)) layers_[i].second->check_adapter(naming(operation, i), plan.configs()[i]);
    }
    std::vector<std::unique_ptr<LoraAdapter<Scalar>>> made(layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (!wants(plan, i)) continue;
      auto& [layer_name, layer] = layers_[i];
      made[i] =
          layer->make_adapter(naming(operation, i), name, plan.configs()[i], seed ^ detail::name_hash(layer_name));
      if (weights != nullptr) fill(naming(operation, i), i, *made[i], *weights);
      layer->reserve_adapter();
    }
    Adapter adapter{config, {}, false};
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (!plan.trains(i)) continue;
      adapter.saved.push_back({i, plan.saves(i), parameters_[i].copy()});
      restore_user_values(i, adapter.saved.back().other);
      if (weights != nullptr) copy_saved(*weights, parameters_[i].name(), adapter.saved.back().other.value);
    }
    Activation activation{{name}, {}};
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      activation.positions.emplace_back();
      if (made[i] != nullptr) activation.positions.back().push_back(layers_[i].second->adapter_count());
    }
    InjectionReport report = std::move(plan.report());
    adapters_.emplace(name, std::move(adapter));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (made[i] != nullptr) layers_[i].second->adopt(std::move(made[i]));
    }
    activate(std::move(activation));
    return report;
  }
  [[nodiscard]] bool wants(const Plan& plan, std::size_t i) const {
    return detail::is_adapter(plan.configs()[i], layers_[i].second->bias_size());
  }
  [[nodiscard]] std::string naming(std::string_view operation, std::size_t layer) const {
    std::string text(operation);
    return text.append(" of ").append(layers_[layer].first);
  }
  void fill(std::string_view operation, std::size_t layer, LoraAdapter<Scalar>& adapter,
            const AdapterWeights<Scalar>& weights) const {
    const auto& [name, held] = layers_[layer];
    if (adapter.rank() > 0) held->fill(operation, adapter, weights.modules.at(name));
    if (adapter.bias.size() > 0) copy_saved(weights, name + ".bias", adapter.bias);
  }
  // Pre: the plan has checked the weights.
  template <class Target>
  static void copy_saved(const AdapterWeights<Scalar>& weights, const std::string& name, Target& target) {
    const std::vector<Scalar>& values = weights.saved.at(name).values;
    std::copy(values.begin(), values.end(), target.data());
  }
  // A new adapter starts from the user's own values, which an active adapter may have set aside.
  void restore_user_values(std::size_t parameter, Trainable<Scalar>& target) const {
    for (const auto& [name, adapter] : adapters_) {
      if (!adapter.active) continue;
      for (const Saved& saved : adapter.saved) {
        if (saved.parameter == parameter) target.value = saved.other.value;
      }
    }
  }

  [[nodiscard]] Activation prepare_active(std::string_view operation, const std::vector<std::string>& names) const {
    require_each_trained_once(operation, names);
    Activation activation{names, {}};
    for (const auto& [module, layer] : layers_) activation.positions.push_back(layer->positions(names));
    return activation;
  }
  void require_each_trained_once(std::string_view operation, const std::vector<std::string>& names) const {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      require_one_trains(operation, parameters_[i].name(), names, [&](const std::string& name) {
        const auto& saved = adapters_.at(name).saved;
        return std::any_of(saved.begin(), saved.end(), [i](const Saved& own) { return own.parameter == i; });
      });
    }
    for (const auto& [module, layer] : layers_) {
      require_one_trains(operation, module + ".bias", names, [&held = *layer](const std::string& name) {
        const LoraAdapter<Scalar>* const adapter = held.find_adapter(name);
        return adapter != nullptr && adapter->bias.size() > 0;
      });
    }
  }
  template <class Trains>
  static void require_one_trains(std::string_view operation, const std::string& tensor,
                                 const std::vector<std::string>& names, const Trains& trains) {
    const std::string* owner = nullptr;
    for (const std::string& name : names) {
      if (!trains(name)) continue;
      if (owner != nullptr) {
        throw ConfigError(operation, "adapters", "one that trains " + tensor, *owner + " and " + name);
      }
      owner = &name;
    }
  }
  // In the model, and in every layer: each has calls that change its own.
  [[nodiscard]] bool are_active(const std::vector<std::string>& adapters) const {
    return adapters == active_ && std::all_of(layers_.begin(), layers_.end(), [&](const auto& entry) {
             return entry.second->active() == entry.second->positions(adapters);
           });
  }
  // These, the active ones and those that are merged, each once.
  [[nodiscard]] std::vector<std::string> answering_with(std::vector<std::string> adapters) const {
    const auto add = [&](const std::vector<std::string>& more) {
      for (const std::string& name : more) {
        const bool known = std::find(adapters.begin(), adapters.end(), name) != adapters.end();
        if (!known && adapters_.contains(name)) adapters.push_back(name);  // a layer may have some of its own
      }
    };
    add(active_);
    for (const auto& [name, layer] : layers_) add(layer->merged_adapters());
    return adapters;
  }
  void require_saved_in_use(std::string_view operation, const std::vector<std::string>& adapters) const {
    for (const std::string& name : adapters) {
      const Adapter& adapter = adapters_.at(name);
      if (adapter.active || adapter.saved.empty()) continue;
      throw StateError(operation, "adapters", "active ones where parameters train whole (call set_adapters() first)",
                       name);
    }
  }
  // Positions of the active adapters after `gone` has been removed from its layer.
  [[nodiscard]] std::vector<std::vector<Index>> positions_without(const std::string& gone,
                                                                  const std::vector<std::string>& active) const {
    const std::vector<std::string> only{gone};
    std::vector<std::vector<Index>> positions;
    for (const auto& [name, layer] : layers_) {
      const std::vector<Index> leaving = layer->positions(only);
      positions.push_back(layer->positions(active));
      for (Index& i : positions.back()) i -= !leaving.empty() && i > leaving.front() ? 1 : 0;
    }
    return positions;
  }

  void activate(Activation activation) noexcept {
    for (auto& [name, adapter] : adapters_) {
      if (adapter.active) exchange(adapter);
    }
    for (auto& parameter : parameters_) parameter.set_trainable(false);
    for (const std::string& name : activation.names) exchange(adapters_.find(name)->second);
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].second->set_active(activation.positions[i]);
    active_.swap(activation.names);
  }
  // Swaps an adapter's own values into the user's parameters, or out again.
  void exchange(Adapter& adapter) noexcept {
    adapter.active = !adapter.active;
    for (Saved& saved : adapter.saved) {
      parameters_[saved.parameter].swap(saved.other);
      parameters_[saved.parameter].set_trainable(adapter.active);
    }
  }

  // Changes every layer or none: if one fails, those already changed are restored.
  template <class Change>
  void all_or_none(const Change& change) {
    std::vector<LayerMode> before;
    for (const auto& [name, layer] : layers_) before.push_back(layer->mode());
    std::size_t touched = 0;
    try {
      for (; touched < layers_.size(); ++touched) change(*layers_[touched].second);
    } catch (...) {
      for (std::size_t i = 0; i <= touched; ++i) layers_[i].second->restore(before[i]);
      throw;
    }
  }

  void forget() noexcept {
    adapters_.clear();
    active_.clear();
  }

  std::shared_ptr<const void> token_;  // lives as long as this model
  Names names_;
  detail::NamedLayers<Scalar> layers_;
  std::vector<ModelParameter<Scalar>> parameters_;
  std::map<std::string, Adapter> adapters_;
  std::vector<std::string> active_;
};

}  // namespace lora
