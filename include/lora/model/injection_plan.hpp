// SPDX-License-Identifier: MIT
// What a configuration means for the layers and parameters of a model, worked out before anything changes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"
#include "lora/model/model_layer.hpp"
#include "lora/model/model_parameter.hpp"
#include "lora/model/module_names.hpp"

namespace lora {

/// The result of an injection.
struct InjectionReport {
  std::vector<std::string> modules;   ///< names of the targeted layers, in the order of registration
  std::vector<std::string> warnings;  ///< requests that could not be followed literally
};

namespace detail {

/// Layers by name, in the order of registration.
template <class Scalar>
using NamedLayers = std::vector<std::pair<std::string, std::unique_ptr<ModelLayer<Scalar>>>>;

/// Whether this configuration gives a layer, with or without bias, an adapter at all.
[[nodiscard]] inline bool is_adapter(const LoraConfig& config, Index bias_size) noexcept {
  return config.rank > 0 || (config.trains_bias() && bias_size > 0);
}

/// What an adapter means for each layer and parameter of a model.
template <class Scalar>
class InjectionPlan {
 public:
  /// @throws ConfigError naming what matches nothing or contradicts the model
  InjectionPlan(std::string_view operation, const LoraModelConfig& config, const NamedLayers<Scalar>& layers,
                const std::vector<ModelParameter<Scalar>>& parameters)
      : operation_(operation), layers_(layers), parameters_(parameters) {
    const Matcher matcher(config, operation);
    std::vector<std::string> names;
    for (const auto& [name, layer] : layers) {
      names.push_back(name);
      by_name_.emplace(name, layer.get());
    }
    const auto linear = [&](std::string_view name) { return by_name_.at(name)->kind() == ModuleKind::linear; };
    auto targeted = resolve_targets<Char>(config, names, linear, operation);
    report_ = {std::move(targeted.names), std::move(targeted.warnings)};
    for (const auto& [name, layer] : layers) configs_.push_back(plan_layer(matcher, name, *layer));
    for (const auto& parameter : parameters) {
      const bool saved = matcher.saves(module_of(parameter.name()));
      roles_.push_back({saved, saved || (config.lora.bias == BiasMode::all && names_bias(parameter.name()))});
    }
    warn_of_unsaved(config);
  }

  /// The configuration of each layer; rank 0 if it gets no adapter.
  [[nodiscard]] const std::vector<LoraConfig>& configs() const noexcept { return configs_; }
  /// Whether a parameter belongs to a module to save.
  [[nodiscard]] bool saves(std::size_t parameter) const { return roles_[parameter].saved; }
  /// Whether it trains: parameters of modules to save do, and so do biases if all biases train.
  [[nodiscard]] bool trains(std::size_t parameter) const { return roles_[parameter].trains; }
  [[nodiscard]] InjectionReport& report() noexcept { return report_; }

  /// Interprets the configuration as that of a file with `weights`; see ModelLayer::config_of_file.
  void take_file_configs(const AdapterWeights<Scalar>& weights) {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const auto found = weights.modules.find(layers_[i].first);
      if (found == weights.modules.end()) continue;
      configs_[i] = layers_[i].second->config_of_file(configs_[i], found->second.rank());
    }
  }

  /// @throws ConfigError listing what is missing, unknown or misshapen in `weights`, the first 20
  void check_weights(const AdapterWeights<Scalar>& weights) const {
    Trouble trouble;
    check_modules(weights, trouble);
    check_saved(weights, trouble);
    if (trouble.count == 0) return;
    if (trouble.count > Trouble::limit)
      trouble.text.append(", ... (").append(std::to_string(trouble.count)).append(")");
    throw ConfigError(operation_, "weights", "what the configuration targets in this model", trouble.text);
  }

 private:
  // Depends on Scalar, so that the matcher is compiled only where a plan is made.
  using Char = typename TextOf<Scalar>::Char;
  using Matcher = BasicModuleMatcher<Char>;
  struct Shape {
    std::vector<Index> extents;
  };
  // What weights lack or have too much: the first of it, and how much there is.
  struct Trouble {
    static constexpr std::size_t limit = 20;
    std::string text;
    std::size_t count = 0;
  };
  struct ParameterRole {
    bool saved;
    bool trains;
  };

  [[nodiscard]] LoraConfig plan_layer(const Matcher& matcher, const std::string& name,
                                      const ModelLayer<Scalar>& layer) {
    if (matcher.saves(name)) {
      throw ConfigError(operation_, "modules_to_save", "parameters that were added as Trainable",
                        joined({"the layer ", quoted_name(name), ", whose weight is frozen"}));
    }
    LoraConfig config = matcher.config_for(name);
    const bool stored_transposed = layer.stored_transposed();
    const bool targeted = matcher.targets(name, layer.kind() == ModuleKind::linear);
    if (targeted && layer.kind() == ModuleKind::linear && config.fan_in_fan_out != stored_transposed) {
      report_.warnings.push_back(joined(
          {name,
           config.fan_in_fan_out ? ": fan_in_fan_out is set, and the layer's weight is out_features x in_features"
                                 : ": fan_in_fan_out is not set, and the layer's weight is in_features x out_features",
           "; the layer's own orientation is used"}));
    }
    config.fan_in_fan_out = stored_transposed;
    if (targeted) {
      if (config.rank < 1) {
        throw ConfigError(operation_, "rank", "1 or more for " + quoted_name(name), std::to_string(config.rank));
      }
      return config;
    }
    LoraConfig none{.rank = 0, .fan_in_fan_out = stored_transposed, .merge_weights = config.merge_weights};
    if (config.bias == BiasMode::all) none.bias = BiasMode::all;
    return none;
  }

  void warn_of_unsaved(const LoraModelConfig& config) {
    for (const std::string& module : config.modules_to_save) {
      const auto means = [&](const ModelParameter<Scalar>& parameter) {
        return saves_module(module, module_of(parameter.name()));
      };
      if (std::none_of(parameters_.begin(), parameters_.end(), means)) {
        report_.warnings.push_back(joined({"modules_to_save ", quoted_name(module), " matches no parameter"}));
      }
    }
  }

  static void add(Trouble& trouble, std::string_view what, std::string_view name, std::string_view detail = {}) {
    if (trouble.count++ >= Trouble::limit) return;
    trouble.text = joined({trouble.text, trouble.text.empty() ? "" : ", ", what, " ", name, detail});
  }

  void check_modules(const AdapterWeights<Scalar>& weights, Trouble& trouble) const {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const auto& [name, layer] = layers_[i];
      const auto found = weights.modules.find(name);
      const bool wanted = configs_[i].rank > 0;
      if (found == weights.modules.end()) {
        if (wanted) add(trouble, "missing", name);
      } else if (!wanted) {
        add(trouble, "not targeted", name);
      } else if (const std::string misfit = layer->misfit(configs_[i], found->second); !misfit.empty()) {
        add(trouble, "misshapen", name, joined({" (", misfit, ")"}));
      }
    }
    for (const auto& module : weights.modules) {
      if (!by_name_.contains(module.first)) add(trouble, "unknown", module.first);
    }
  }

  void check_saved(const AdapterWeights<Scalar>& weights, Trouble& trouble) const {
    const auto shapes = saved_shapes();
    for (const auto& [name, shape] : shapes) {
      const auto found = weights.saved.find(name);
      if (found == weights.saved.end()) {
        add(trouble, "missing", name);
      } else if (found->second.shape != shape.extents || found->second.values.size() != elements(shape.extents)) {
        add(trouble, "misshapen", name);
      }
    }
    for (const auto& [name, tensor] : weights.saved) {
      if (!shapes.contains(name)) add(trouble, "unknown", name);
    }
  }

  static std::size_t elements(const std::vector<Index>& shape) noexcept {
    std::size_t count = 1;
    for (const Index extent : shape) count *= static_cast<std::size_t>(extent);
    return count;
  }

  // The shape of every tensor that an adapter of this plan replaces whole.
  [[nodiscard]] std::map<std::string, Shape, std::less<>> saved_shapes() const {
    std::map<std::string, Shape, std::less<>> shapes;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Index size = layers_[i].second->bias_size();
      if (size > 0 && configs_[i].trains_bias()) shapes.emplace(layers_[i].first + ".bias", Shape{{size}});
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (roles_[i].trains) shapes.emplace(parameters_[i].name(), Shape{parameters_[i].shape()});
    }
    return shapes;
  }

  std::string_view operation_;
  const NamedLayers<Scalar>& layers_;
  const std::vector<ModelParameter<Scalar>>& parameters_;
  std::map<std::string_view, const ModelLayer<Scalar>*> by_name_;
  std::vector<LoraConfig> configs_;
  std::vector<ParameterRole> roles_;
  InjectionReport report_;
};

}  // namespace detail
}  // namespace lora
