// SPDX-License-Identifier: MIT
// Combines several adapters of a model into one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/combine_factors.hpp"
#include "lora/model/combine_options.hpp"
#include "lora/model/name_hash.hpp"

namespace lora {

/// A reference to an adapter, and its weight in a combination.
template <RealScalar Scalar>
struct WeightedAdapter {
  const AdapterWeights<Scalar>* adapter = nullptr;  ///< which must outlive this object
  double weight = 1;                                ///< its factor, of either sign
};

namespace detail {

template <RealScalar Scalar>
class AdapterCombination {
 public:
  AdapterCombination(std::span<const WeightedAdapter<Scalar>> adapters, const CombineOptions& options)
      : adapters_(adapters), options_(as_peft_combines(options, adapters.size())) {
    check_combine_options(operation, options);
    if (adapters.empty()) throw ConfigError(operation, "adapters", "at least one adapter", "none");
    for (std::size_t i = 0; i < adapters.size(); ++i) {
      if (adapters[i].adapter != nullptr) continue;
      std::string got = "none for adapter ";
      throw ConfigError(operation, "adapters", "the weights of every adapter", got.append(std::to_string(i)));
    }
    follow_peft();
  }

  [[nodiscard]] AdapterWeights<Scalar> run() const {
    AdapterWeights<Scalar> result;
    for (const auto& adapter : adapters_) {
      for (const auto& entry : adapter.adapter->modules) {
        if (!result.modules.contains(entry.first)) result.modules.emplace(entry.first, combined(entry.first));
      }
    }
    for (const auto& adapter : adapters_)
      for (const auto& [name, tensor] : adapter.adapter->saved) add_saved(name, tensor, result);
    return result;
  }

 private:
  static constexpr std::string_view operation = "combine_adapters";

  /// In PEFT the default rank of an SVD is the largest rank of any adapter in any module.
  void follow_peft() {
    if (options_.compatibility != Compatibility::peft || options_.svd_rank) return;
    Index largest = 0;
    for (const auto& adapter : adapters_)
      for (const auto& entry : adapter.adapter->modules) largest = std::max(largest, entry.second.rank());
    if (largest > 0) options_.svd_rank = largest;
  }

  [[nodiscard]] ModuleWeights<Scalar> combined(const std::string& name) const {
    std::string label = "module \"";
    label.append(name).append("\"");
    const ModuleWeights<Scalar>* first = nullptr;
    std::vector<WeightedFactors<Scalar>> factors;
    ModuleWeights<Scalar> result;
    for (std::size_t i = 0; i < adapters_.size(); ++i) {
      const auto found = adapters_[i].adapter->modules.find(name);
      if (found == adapters_[i].adapter->modules.end()) continue;
      const ModuleWeights<Scalar>& module = found->second;
      if (first == nullptr) first = &module;
      std::string place = label;
      check(place.append(", adapter ").append(std::to_string(i)), *first, module);
      factors.push_back({view_of(module.A), view_of(module.B), module.scaling, adapters_[i].weight});
      add_bias(adapters_[i].weight, module, result.lora_bias);
    }
    auto mixed = FactorCombination<Scalar>(operation, label, std::span<const WeightedFactors<Scalar>>(factors),
                                           options_, name_hash(name))
                     .run();
    for (Index j = 0; j < result.lora_bias.size(); ++j) {
      if (is_finite(result.lora_bias[j])) continue;
      throw StateError(operation, label, "a lora_bias that is finite", "another");
    }
    result.kind = first->kind;
    result.kernel_size = first->kernel_size;
    result.A = std::move(mixed.A);
    result.B = std::move(mixed.B);
    result.scaling = mixed.scaling;
    return result;
  }

  void check(const std::string& label, const ModuleWeights<Scalar>& first, const ModuleWeights<Scalar>& module) const {
    if (module.kind != first.kind || module.kernel_size != first.kernel_size) {
      throw ShapeError(operation, label, "the kind and kernel size of the adapters before it", "another");
    }
    if (module.magnitude.size() > 0) {
      throw ConfigError(operation, label, "a delta weight that is scaling * B A", "DoRA, which is no sum");
    }
    if (module.qalora_group_size > 0) {
      throw ConfigError(operation, label, "a delta weight that is scaling * B A",
                        "QALoRA, whose A sees groups of inputs");
    }
    if (module.lora_bias.size() == 0) return;
    check_shape(operation, label + ", lora_bias", module.lora_bias, 1, module.B.rows());
    const CombinationType type = options_.combination_type;
    const bool sums = type == CombinationType::linear || type == CombinationType::cat || type == CombinationType::svd;
    if (sums && options_.compatibility == Compatibility::exact) return;
    std::string got = "one, with ";
    got.append(name_of(type)).append(sums ? " as PEFT does it" : "");
    throw ConfigError(operation, label, "no lora_bias other than with linear, cat and svd, exact", got);
  }

  static void add_bias(double weight, const ModuleWeights<Scalar>& module, RowVector<Scalar>& sum) {
    if (module.lora_bias.size() == 0) return;
    if (sum.size() == 0) sum = RowVector<Scalar>::Zero(module.lora_bias.size());
    for (Index j = 0; j < sum.size(); ++j) {
      sum[j] += static_cast<Scalar>(weight * module.scaling * static_cast<double>(module.lora_bias[j]));
    }
  }

  static void add_saved(const std::string& name, const SavedTensor<Scalar>& tensor, AdapterWeights<Scalar>& result) {
    if (result.saved.emplace(name, tensor).second) return;
    std::string label = "tensor \"";
    throw ConfigError(operation, label.append(name).append("\""), "at most one adapter that replaces it", "more");
  }

  std::span<const WeightedAdapter<Scalar>> adapters_;
  CombineOptions options_;
};

}  // namespace detail

/// Combines adapters module by module with combine_factors; modules are matched by name, and each new one has scaling
/// 1. As in PEFT, the result has every module that any adapter has. Adapters that lack a module are ignored in it, both
/// in sums and in the number that a disjoint mean divides by. Unlike PEFT's, the factors of modules that some adapters
/// lack are not padded with zeros to the rank of the others.
///
/// Adapters of pissa and olora belong to a weight without their start: convert them with plain_adapter first.
///
/// The default svd_rank with Compatibility::peft is the largest rank in the adapters. PEFT's is that of their
/// configurations, which may be larger than that of any module: pass svd_rank then.
///
/// With linear, cat and svd (exact), lora_bias becomes sum w_i s_i b_i; for other types, and in PEFT, it is undefined.
/// A tensor that an adapter replaces whole (a saved bias, a module to save) is copied unchanged, whatever the weight,
/// and at most one adapter may have it.
///
/// @throws ConfigError for options or weights out of range, no adapter, DoRA, QALoRA, a lora_bias for which the type is
/// undefined, or a tensor that two adapters replace; ShapeError naming the module whose shapes, ranks or kinds differ;
/// StateError naming one whose values are not finite; std::bad_alloc. The adapters are not changed. Pure and reentrant.
template <RealScalar Scalar>
[[nodiscard]] AdapterWeights<Scalar> combine_adapters(std::span<const WeightedAdapter<Scalar>> adapters,
                                                      const CombineOptions& options) {
  return detail::AdapterCombination<Scalar>(adapters, options).run();
}

}  // namespace lora
