// A user's named layers, and adapters over them: injection by name, what trains, merging and loading over all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/injection_plan.hpp"
#include "lora/model/model_config.hpp"
#include "lora/model/model_layer.hpp"
#include "lora/model/model_parameter.hpp"
#include "lora/model/parameter_count.hpp"

namespace lora {

/// A registry of layers and parameters by dotted name. It owns none of them: each stays a member of the user's class,
/// which must outlive the model and not move. A layer starts as a plain frozen one (rank 0); `inject` gives adapters to
/// those whose names a configuration matches, as PEFT's get_peft_model does.
///
/// Several adapters may be added; one is active, the others are kept aside and take no part. One thread at a time.
template <RealScalar ScalarType>
class LoraModel {
 public:
  using Scalar = ScalarType;

  /// Registers a layer: LoraLinear, MergedLinear, LoraEmbedding, LoraConv or a class with ModelLayerTraits.
  /// @throws ConfigError for a name that is taken or not a dotted name, StateError after an injection
  template <AdaptableLayer Layer>
  void add(std::string name, Layer& layer) {
    check_name(name);
    layers_.emplace_back(std::move(name), std::make_unique<HeldLayer<Layer>>(layer));
  }
  /// Registers a parameter that is trained whole or not at all, by its full name ("head.weight", "norm.bias").
  /// `shape` is that of files; [rows, cols], or [cols] for one row, when it is empty.
  /// @throws as above; ShapeError when the shape has another size
  void add(std::string name, Trainable<Scalar>& parameter, std::vector<Index> shape = {}) {
    check_name(name);
    parameters_.emplace_back(std::move(name), parameter, std::move(shape));
  }

  /// Names of the registered layers, in order.
  [[nodiscard]] std::vector<std::string> module_names() const {
    std::vector<std::string> names;
    for (const auto& [name, layer] : layers_) names.push_back(name);
    return names;
  }

  /// Gives a new adapter to every layer that `config` targets, makes it the active one, and marks only it, the modules
  /// to save and the biases of `config.lora.bias` as trainable. Each layer's seed follows from `seed` and its name.
  /// @throws ConfigError naming what matches nothing or is out of range, StateError while merged; then nothing has
  /// changed. On std::bad_alloc no adapter is active.
  InjectionReport inject(const LoraModelConfig& config, std::uint64_t seed, const std::string& adapter = "default") {
    constexpr std::string_view operation = "LoraModel::inject";
    require_new(operation, adapter);
    Plan plan(operation, config, layers_, parameters_);
    park_active();
    activate(adapter, Adapter{config, seed, {}}, plan);
    return std::move(plan.report());
  }

  /// Adds the adapter that `weights` holds, as `inject` and then setting every value. Strict: the modules of `weights`
  /// are those that `config` targets here, and all shapes fit.
  /// @throws ConfigError or ShapeError listing what is missing, extra or misshapen; StateError while merged; then
  /// nothing has changed. On std::bad_alloc no adapter is active.
  InjectionReport load(const LoraModelConfig& config, const AdapterWeights<Scalar>& weights, std::uint64_t seed = 0,
                       const std::string& adapter = "default") {
    constexpr std::string_view operation = "LoraModel::load";
    require_new(operation, adapter);
    Plan plan(operation, config, layers_, parameters_);
    plan.take_file_configs();
    plan.check_weights(weights);
    park_active();
    activate(adapter, Adapter{config, seed, weights}, plan);
    return std::move(plan.report());
  }

  /// What the active adapter has learned. A copy. @throws StateError without one
  [[nodiscard]] AdapterWeights<Scalar> weights() const {
    require_active("LoraModel::weights");
    AdapterWeights<Scalar> weights;
    for (const auto& [name, layer] : layers_) {
      if (layer->config().rank > 0) weights.modules.emplace(name, layer->weights());
      const RowVector<Scalar> bias = layer->bias();
      if (bias.size() > 0 && layer->config().trains_bias()) {
        weights.saved.emplace(name + ".bias", SavedTensor<Scalar>{{bias.size()}, {bias.begin(), bias.end()}});
      }
    }
    for (const auto& parameter : parameters_) {
      if (parameter.trainable()) weights.saved.emplace(parameter.name(), parameter.saved());
    }
    return weights;
  }

  [[nodiscard]] std::vector<std::string> adapter_names() const {
    std::vector<std::string> names;
    for (const auto& [name, adapter] : adapters_) names.push_back(name);
    return names;
  }
  /// Empty without an active adapter.
  [[nodiscard]] const std::string& active_adapter() const noexcept { return active_; }
  /// The configuration of an adapter. @throws ConfigError for a name that is not there
  [[nodiscard]] const LoraModelConfig& config(const std::string& adapter) const {
    return find_adapter("LoraModel::config", adapter)->second.config;
  }
  [[nodiscard]] const LoraModelConfig& config() const { return config(active_); }

  /// Makes another adapter the active one. What optimisers remember of the former is lost.
  /// @throws ConfigError for an unknown name, StateError while merged; then nothing has changed
  void set_adapter(const std::string& adapter) {
    constexpr std::string_view operation = "LoraModel::set_adapter";
    const auto found = find_adapter(operation, adapter);
    if (adapter == active_) return;
    require_unmerged(operation);
    Plan plan(operation, found->second.config, layers_, parameters_);
    if (!found->second.weights.modules.empty()) plan.take_file_configs();
    park_active();
    activate(adapter, found->second, plan);
  }

  /// Removes an adapter; if it was the active one, none is active afterwards and the layers are plain.
  /// @throws ConfigError for an unknown name, StateError while merged
  void delete_adapter(const std::string& adapter) {
    constexpr std::string_view operation = "LoraModel::delete_adapter";
    const auto found = find_adapter(operation, adapter);
    if (adapter == active_) {
      require_unmerged(operation);
      require_restorable(operation);
      make_plain();
    }
    adapters_.erase(found);
  }

  /// Freezes every registered parameter but the biases that `bias` names; adapters always train. As loralib's function
  /// of this name; inject() does it by itself.
  void mark_only_lora_as_trainable(BiasMode bias = BiasMode::none) {
    require_unmerged("LoraModel::mark_only_lora_as_trainable");
    for (auto& parameter : parameters_) {
      parameter.set_trainable(bias == BiasMode::all && detail::names_bias(parameter.name()));
    }
  }

  /// Handles on everything that trains, named "<module>.lora_A.weight" and so on. Valid until the next call that adds
  /// or removes an adapter.
  [[nodiscard]] std::vector<Parameter<Scalar>> trainable_parameters() {
    std::vector<Parameter<Scalar>> result;
    for (auto& [name, layer] : layers_) {
      for (Parameter<Scalar>& parameter : layer->parameters()) {
        std::string full = name;
        full += '.';
        full += parameter.name();
        parameter.rename(std::move(full));
        result.push_back(std::move(parameter));
      }
    }
    for (auto& parameter : parameters_) {
      if (parameter.trainable()) result.push_back(parameter.handle());
    }
    return result;
  }

  /// As PEFT counts: a module to save counts twice in `all`, as what was there and as what trains.
  [[nodiscard]] ParameterCount parameter_count() const {
    ParameterCount count;
    for (const auto& [name, layer] : layers_) {
      count.all += layer->base_size() + layer->adapter_size();
      for (const auto& parameter : layer->parameters()) count.trainable += parameter.size();
    }
    for (const auto& parameter : parameters_) {
      count.all += parameter.replaced() ? 2 * parameter.size() : parameter.size();
      if (parameter.trainable()) count.trainable += parameter.size();
    }
    return count;
  }

  void zero_grad() noexcept {
    for (auto& [name, layer] : layers_) layer->zero_grad();
    for (auto& parameter : parameters_) parameter.zero_grad();
  }

  /// Training mode in every layer. @throws as merge()
  void train(bool mode = true) {
    all_or_none([mode](ModelLayer<Scalar>& layer) { mode ? layer.train() : layer.eval(); });
  }
  /// Evaluation mode in every layer; merges those whose configuration says so. @throws as merge()
  void eval() { train(false); }
  /// Merges every adapter. @throws StateError, std::bad_alloc; then every layer is as it was
  void merge() {
    all_or_none([](ModelLayer<Scalar>& layer) { layer.merge(); });
  }
  void unmerge() noexcept {
    for (auto& [name, layer] : layers_) layer->unmerge();
  }
  [[nodiscard]] bool merged() const noexcept {
    return std::any_of(layers_.begin(), layers_.end(), [](const auto& entry) { return entry.second->merged(); });
  }

  /// Makes the active adapter part of the weights for good; the layers are plain afterwards, and every adapter is gone.
  /// Modules to save keep their trained values. @throws as merge()
  void merge_and_unload() {
    require_active("LoraModel::merge_and_unload");
    merge();
    for (auto& [name, layer] : layers_) layer->merge_and_unload();
    for (auto& parameter : parameters_) parameter.keep();
    forget_adapters();
  }
  /// Takes every adapter away and gives modules to save their former values; the layers are plain afterwards.
  /// @throws StateError for an adapter that took its start from the weights (pissa, olora): they do not come back.
  void unload() {
    require_restorable("LoraModel::unload");
    unmerge();
    make_plain();
    adapters_.clear();
  }

 private:
  using Plan = detail::InjectionPlan<Scalar>;

  struct Adapter {
    LoraModelConfig config;
    std::uint64_t seed = 0;
    AdapterWeights<Scalar> weights;  // empty while the adapter is active, and before it first is
  };

  void check_name(std::string_view name) const {
    constexpr std::string_view operation = "LoraModel::add";
    if (name.empty() || name.front() == '.' || name.back() == '.' || name.find("..") != std::string_view::npos) {
      throw ConfigError(operation, "name", "a dotted name such as layers.0.q_proj", std::string(name));
    }
    const auto named = [&](const auto& entry) { return entry.first == name; };
    const auto same = [&](const ModelParameter<Scalar>& parameter) { return parameter.name() == name; };
    if (std::any_of(layers_.begin(), layers_.end(), named) ||
        std::any_of(parameters_.begin(), parameters_.end(), same)) {
      throw ConfigError(operation, "name", "one that is not registered yet", std::string(name));
    }
    if (!adapters_.empty()) {
      throw StateError(operation, "model", "one without adapters", std::to_string(adapters_.size()) + " adapters");
    }
  }

  void require_unmerged(std::string_view operation) const {
    if (merged())
      throw StateError(operation, "model", "unmerged layers (call train() or unmerge() first)", "merged ones");
  }
  void require_active(std::string_view operation) const {
    if (active_.empty()) throw StateError(operation, "model", "an active adapter", "none");
  }
  void require_new(std::string_view operation, const std::string& adapter) const {
    if (adapter.empty() || adapter.find('.') != std::string::npos) {
      throw ConfigError(operation, "adapter", "a name without dots", adapter);
    }
    if (adapters_.contains(adapter)) throw ConfigError(operation, "adapter", "a name that is not taken", adapter);
    require_unmerged(operation);
    for (const auto& [name, layer] : layers_) {
      if (adapters_.empty() && layer->config().rank > 0) {
        throw StateError(operation, name, "a layer of rank 0", "one that has an adapter of its own");
      }
    }
    const auto residual = std::find_if(adapters_.begin(), adapters_.end(), [](const auto& entry) {
      return takes_from_weight(entry.second.config.lora.init_lora_weights);
    });
    if (residual != adapters_.end()) {
      throw StateError(operation, residual->first, "adapters that leave the weights as they are",
                       "one that keeps a residual in them");
    }
  }

  void require_restorable(std::string_view operation) const {
    if (!active_.empty() && takes_from_weight(config().lora.init_lora_weights)) {
      throw StateError(operation, active_, "an adapter that leaves the weights as they are",
                       "one that keeps a residual in them (merge_and_unload() is possible)");
    }
  }

  [[nodiscard]] auto find_adapter(std::string_view operation, const std::string& adapter) const {
    const auto found = adapters_.find(adapter);
    if (found == adapters_.end()) throw ConfigError(operation, "adapter", "the name of an adapter", adapter);
    return found;
  }
  [[nodiscard]] auto find_adapter(std::string_view operation, const std::string& adapter) {
    const auto found = adapters_.find(adapter);
    if (found == adapters_.end()) throw ConfigError(operation, "adapter", "the name of an adapter", adapter);
    return found;
  }

  void park_active() {
    if (!active_.empty()) adapters_.at(active_).weights = weights();
    make_plain();
  }

  // Rank 0 everywhere, former values in the modules to save.
  void make_plain() {
    for (auto& [name, layer] : layers_) layer->reset_adapter(detail::without_adapter(layer->config()), 0);
    for (auto& parameter : parameters_) parameter.restore();
    active_.clear();
  }
  // Each layer's seed follows from its name (FNV-1a) alone, not from the order of registration.
  static std::uint64_t seed_of(std::uint64_t seed, std::string_view name) noexcept {
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3U;
    return hash ^ seed;
  }

  void activate(const std::string& name, Adapter adapter, const Plan& plan) {
    try {
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        layers_[i].second->reset_adapter(plan.configs()[i], seed_of(adapter.seed, layers_[i].first));
      }
      for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (plan.saves(i)) parameters_[i].replace();
        parameters_[i].set_trainable(plan.trains(i));
      }
      if (!adapter.weights.modules.empty()) set_values(adapter.weights);
      adapter.weights = {};
      adapters_[name] = std::move(adapter);
    } catch (...) {
      make_plain();
      throw;
    }
    active_ = name;
  }

  void set_values(const AdapterWeights<Scalar>& weights) {
    for (auto& [name, layer] : layers_) {
      if (layer->config().rank > 0) layer->load(weights.modules.at(name));
      for (const auto& parameter : layer->parameters()) {
        if (parameter.role() != ParameterRole::bias) continue;
        const auto saved = weights.saved.find(name + ".bias");
        if (saved == weights.saved.end()) continue;
        std::copy(saved->second.values.begin(), saved->second.values.end(), parameter.value().data());
      }
    }
    for (auto& parameter : parameters_) {
      const auto saved = weights.saved.find(parameter.name());
      if (saved != weights.saved.end()) parameter.set(saved->second.values);
    }
  }

  // Every layer, or none: those that were brought to a new weights go back when a later one fails.
  template <class Change>
  void all_or_none(const Change& change) {
    struct Before {
      bool training;
      bool merged;
    };
    std::vector<Before> before;
    before.reserve(layers_.size());
    try {
      for (auto& [name, layer] : layers_) {
        before.push_back({layer->training(), layer->merged()});
        change(*layer);
      }
    } catch (...) {
      for (std::size_t i = 0; i < before.size(); ++i) {
        ModelLayer<Scalar>& layer = *layers_[i].second;
        if (layer.training() != before[i].training) before[i].training ? layer.train() : layer.eval();
        if (!before[i].merged) layer.unmerge();
      }
      throw;
    }
  }

  void forget_adapters() {
    adapters_.clear();
    active_.clear();
  }

  detail::NamedLayers<Scalar> layers_;
  std::vector<ModelParameter<Scalar>> parameters_;
  std::map<std::string, Adapter> adapters_;
  std::string active_;
};

}  // namespace lora
