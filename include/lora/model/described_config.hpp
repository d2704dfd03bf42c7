// SPDX-License-Identifier: MIT
// A configuration that describes every module of an adapter.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

/// `config` with target_modules, rank, alpha and their patterns, use_dora, use_qalora, lora_bias and modules_to_save
/// replaced by those of `weights`: the modules by their full names, the first one's rank and alpha for all, and
/// patterns for those that differ. In rank_pattern and alpha_pattern the first matching key wins, so longer names come
/// first. Scaling is alpha / rank, or alpha / sqrt(rank) with `config.lora.use_rslora`.
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
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() > b.size() : a < b;
  });
  if (!names.empty()) {
    const ModuleWeights<Scalar>& first = weights.modules.begin()->second;
    config.lora.rank = first.rank();
    config.lora.alpha = alpha_of(first);
    config.lora.use_dora = first.magnitude.size() > 0;
    config.lora.lora_bias = first.lora_bias.size() > 0;
    config.lora.use_qalora = first.qalora_group_size > 0;
    if (config.lora.use_qalora) config.lora.qalora_group_size = first.qalora_group_size;
  }
  for (const std::string& name : names) {
    const ModuleWeights<Scalar>& module = weights.modules.at(name);
    bool needs_key = module.rank() != config.lora.rank || alpha_of(module) != config.lora.alpha;
    for (const auto& [key, rank] : config.rank_pattern) {
      needs_key = needs_key || (key.size() > name.size() && detail::means_module(name, key));
    }
    if (needs_key) {
      config.rank_pattern.emplace_back(name, module.rank());
      config.alpha_pattern.emplace_back(name, alpha_of(module));
    }
  }
  return config;
}

}  // namespace lora
