// SPDX-License-Identifier: MIT
// A configuration that describes every module of an adapter.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"
#include "lora/model/module_names.hpp"
#include "lora/model/name_pattern.hpp"
#include "lora/model/pattern_keys.hpp"

namespace lora {

namespace detail {

/// A key of rank_pattern and alpha_pattern that a name is found by: the name itself, or an expression that matches it
/// if the name has special characters.
[[nodiscard]] inline std::string pattern_key(std::string_view name) {
  if (is_plain_text(name)) return std::string(name);
  std::string key;
  for (const char c : name) {
    if (c == '.' || special_characters.find(c) != std::string_view::npos) key.push_back('\\');
    key.push_back(c);
  }
  return key;
}

/// Keys in an order in which every name finds its own key first. A key matches only names that are longer, or as long
/// with a character where the key has a dot.
inline void sort_keys(std::vector<std::string>& names) {
  const auto dots = [](const std::string& name) { return std::count(name.begin(), name.end(), '.'); };
  std::sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    if (a.size() != b.size()) return a.size() > b.size();
    return dots(a) != dots(b) ? dots(a) < dots(b) : a < b;
  });
}

/// Sets what trains whole: the modules to save, and which biases beside them.
template <class Scalar>
void describe_saved(LoraModelConfig& config, const AdapterWeights<Scalar>& weights) {
  std::set<std::string> whole;
  for (const auto& [name, tensor] : weights.saved) {
    const std::string module(module_of(name));
    if (!names_bias(name) && !weights.modules.contains(module)) whole.insert(module);
  }
  config.lora.bias = BiasMode::none;
  for (const auto& [name, tensor] : weights.saved) {
    const std::string module(module_of(name));
    if (!names_bias(name) || whole.contains(module)) continue;
    const bool adapted = weights.modules.contains(module);
    if (!adapted) config.lora.bias = BiasMode::all;
    if (adapted && config.lora.bias == BiasMode::none) config.lora.bias = BiasMode::lora_only;
  }
  config.modules_to_save.assign(whole.begin(), whole.end());
}

}  // namespace detail

/// `config` with target_modules, rank, alpha and their patterns, use_dora, use_qalora, lora_bias, bias and
/// modules_to_save replaced by those of `weights`: the modules by their full names, the first one's rank and alpha for
/// all, and patterns for those that differ. A pattern's key is a module's name, which also matches longer names that
/// end in it, and any character for its dots; modules that it would match by mistake have keys of their own before it.
/// Scaling is alpha / rank, or alpha / sqrt(rank) with `config.lora.use_rslora`.
/// @throws ConfigError like ModuleMatcher where names with special characters are too long or too many for expressions
template <RealScalar Scalar>
[[nodiscard]] LoraModelConfig described_config(LoraModelConfig config, const AdapterWeights<Scalar>& weights) {
  const bool by_root = config.lora.use_rslora;
  const auto alpha_of = [by_root](const ModuleWeights<Scalar>& module) {
    const auto rank = static_cast<double>(module.rank());
    return module.scaling * (by_root ? std::sqrt(rank) : rank);
  };
  config.rank_pattern.clear();
  config.alpha_pattern.clear();
  config.exclude_modules = {};
  config.layers_to_transform.clear();
  config.layers_pattern.clear();
  std::vector<std::string> names;
  for (const auto& [name, module] : weights.modules) names.push_back(name);
  config.target_modules = ModuleSelector::listed(names);
  detail::describe_saved(config, weights);
  if (names.empty()) return config;

  const ModuleWeights<Scalar>& first = weights.modules.begin()->second;
  config.lora.rank = first.rank();
  config.lora.alpha = alpha_of(first);
  config.lora.use_dora = first.magnitude.size() > 0;
  config.lora.lora_bias = first.lora_bias.size() > 0;
  config.lora.use_qalora = first.qalora_group_size > 0;
  if (config.lora.use_qalora) config.lora.qalora_group_size = first.qalora_group_size;

  const auto differs = [&](const std::string& name) {
    const ModuleWeights<Scalar>& module = weights.modules.at(name);
    return module.rank() != config.lora.rank || alpha_of(module) != config.lora.alpha;
  };
  std::vector<std::string> keys;
  for (const std::string& name : names) {
    if (differs(name)) keys.push_back(detail::pattern_key(name));
  }
  const detail::MatchBudget budget;
  const detail::BasicPatternKeys<typename detail::TextOf<Scalar>::Char> different("described_config", "modules",
                                                                                  std::move(keys), budget);
  const auto needs_key = [&](const std::string& name) {
    budget.grant(name);
    return different.find(name, budget).has_value();
  };
  names.erase(std::remove_if(names.begin(), names.end(), std::not_fn(needs_key)), names.end());
  detail::sort_keys(names);
  for (const std::string& name : names) {
    const ModuleWeights<Scalar>& module = weights.modules.at(name);
    config.rank_pattern.emplace_back(detail::pattern_key(name), module.rank());
    config.alpha_pattern.emplace_back(detail::pattern_key(name), alpha_of(module));
  }
  return config;
}

}  // namespace lora
