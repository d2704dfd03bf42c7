// SPDX-License-Identifier: MIT
// How a whole model is adapted: the options of PEFT's LoraConfig beyond one layer, and what they mean for a module.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"
#include "lora/model/module_names.hpp"
#include "lora/model/name_pattern.hpp"
#include "lora/model/pattern_keys.hpp"
#include "lora/model/quoted_name.hpp"

namespace lora {

/// The class of the base model into which PEFT should load an adapter.
struct AutoMapping {
  std::string base_model_class;  ///< "LlamaForCausalLM", ...
  std::string parent_library;    ///< the Python module it is imported from
};

/// Options of one adapter over a model, by PEFT's names. A plain aggregate:
/// `{.lora = {.rank = 8, .alpha = 16}, .target_modules = {"q_proj", "v_proj"}}`.
struct LoraModelConfig {
  LoraConfig lora{};                          ///< for every adapted layer, except for the patterns below
  ModuleSelector target_modules{};            ///< which layers are adapted
  ModuleSelector exclude_modules{};           ///< which layers are not adapted although targeted
  std::vector<Index> layers_to_transform{};   ///< with a list of targets: only layers with these numbers; empty means
                                              ///< all
  std::vector<std::string> layers_pattern{};  ///< the segment before a layer's number in names; empty: any one segment
  /// Different ranks for some modules, by the first key that, as a regular expression, matches the module's name or the
  /// end of it after a dot.
  std::vector<std::pair<std::string, Index>> rank_pattern{};
  std::vector<std::pair<std::string, double>> alpha_pattern{};  ///< likewise for alpha
  std::vector<std::string> modules_to_save{};                   ///< modules that train whole; never adapted
  std::string base_model_name_or_path{};                        ///< of the base model, or empty
  std::string revision{};                                       ///< of the base model, or empty
  std::string task_type{};                                      ///< "CAUSAL_LM", ..., or empty
  std::optional<AutoMapping> auto_mapping{};                    ///< kept for PEFT; not used here
};

/// @throws ConfigError naming the first option that is out of range or contradicts another, as PEFT's LoraConfig would.
/// ModuleMatcher checks that patterns are regular expressions when it compiles them.
template <class Char = char>
void check_config(std::string_view operation, const LoraModelConfig& config) {
  check_config(operation, config.lora);
  const auto kind = config.target_modules.kind();
  const bool one_string = kind == ModuleSelector::Kind::pattern || kind == ModuleSelector::Kind::all_linear;
  if (one_string && !config.layers_to_transform.empty()) {
    throw ConfigError(operation, "layers_to_transform", "target_modules to be a list of names with it",
                      "a pattern or all-linear");
  }
  if (config.layers_to_transform.empty() && !config.layers_pattern.empty()) {
    throw ConfigError(operation, "layers_pattern", "layers_to_transform with it", "none");
  }
  for (const auto& [key, rank] : config.rank_pattern) {
    if (rank < 1) {
      throw ConfigError(operation, detail::joined({"rank_pattern ", detail::quoted_name(key)}), "1 or more",
                        std::to_string(rank));
    }
  }
  for (const auto& [key, alpha] : config.alpha_pattern) {
    if (!is_finite(alpha)) {
      throw ConfigError(operation, detail::joined({"alpha_pattern ", detail::quoted_name(key)}), "a finite number",
                        detail::number_text(alpha));
    }
  }
}

/// A configuration prepared for queries about many modules. It keeps copies of what it needs. A query raises
/// ConfigError when patterns and names together take unreasonably many steps. Thread safety: any number of threads may
/// query one object. Use `ModuleMatcher`; it is a template so that it is compiled only where it is used.
template <class Char>
class BasicModuleMatcher {
 public:
  /// @throws ConfigError like check_config, or for a pattern that is not a regular expression (see
  /// ModuleSelector::matching)
  explicit BasicModuleMatcher(const LoraModelConfig& config, std::string_view operation = "ModuleMatcher")
      : lora_((check_config(operation, config), config.lora)),
        target_(operation, "target_modules", config.target_modules),
        exclude_(operation, "exclude_modules", config.exclude_modules),
        layers_(operation, config.layers_to_transform, config.layers_pattern, budget_),
        saved_names_(config.modules_to_save),
        ranks_(operation, "rank_pattern", config.rank_pattern, budget_),
        alphas_(operation, "alpha_pattern", config.alpha_pattern, budget_) {
    for (const std::string& name : config.modules_to_save) {
      saved_.emplace_back(operation, "modules_to_save", name, detail::PatternPlace::name_part, budget_);
      saved_steps_ += detail::MatchBudget::steps_to_search(name);
    }
  }

  /// Whether exclude_modules or modules_to_save prevents this module from being adapted.
  [[nodiscard]] bool excludes(std::string_view module, bool is_linear = true) const {
    budget_.grant(module);
    return exclude_.matches(module, is_linear, budget_) || matches_saved(module);
  }

  /// Whether this module is adapted. `is_linear` matters only for all-linear. As in PEFT, layers_to_transform does not
  /// exclude a module whose full name is in the list of targets.
  [[nodiscard]] bool targets(std::string_view module, bool is_linear = true) const {
    budget_.grant(module);
    const bool named = target_.has(module, budget_) ||
                       (target_.matches(module, is_linear, budget_) && layers_.passes(module, budget_));
    return named && !excludes(module, is_linear);
  }

  /// Whether this module, or one that contains it, is one of modules_to_save. As in PEFT, that is any name with such an
  /// ending: "head" saves "lm_head". The expressions that prevent a module from being adapted (excludes()) do not
  /// count.
  [[nodiscard]] bool saves(std::string_view module) const {
    budget_.grant(module);
    const auto outers = static_cast<std::uint64_t>(1 + std::count(module.begin(), module.end(), '.'));
    budget_.spend(outers * saved_steps_);
    return std::any_of(saved_names_.begin(), saved_names_.end(),
                       [&](const std::string& name) { return detail::saves_module(name, module); });
  }

  /// The options of one module: `lora` with its rank and alpha from the patterns.
  [[nodiscard]] LoraConfig config_for(std::string_view module) const {
    budget_.grant(module);
    LoraConfig config = lora_;
    if (const auto key = ranks_.keys.find(module, budget_)) config.rank = ranks_.values[*key];
    if (const auto key = alphas_.keys.find(module, budget_)) config.alpha = alphas_.values[*key];
    return config;
  }

  /// Keys of rank_pattern ("rank_pattern \"q\"") and alpha_pattern that determine no module's rank or alpha.
  [[nodiscard]] std::vector<std::string> unused_patterns(std::span<const std::string> modules) const {
    std::vector<std::string> unused;
    collect_unused("rank_pattern ", ranks_.keys, modules, unused);
    collect_unused("alpha_pattern ", alphas_.keys, modules, unused);
    return unused;
  }

 private:
  using Pattern = detail::BasicNamePattern<Char>;
  using PatternKeys = detail::BasicPatternKeys<Char>;
  template <class Value>
  struct PatternTable {
    PatternTable(std::string_view operation, std::string_view option,
                 const std::vector<std::pair<std::string, Value>>& pattern, const detail::MatchBudget& budget)
        : keys(operation, option, keys_of(pattern), budget) {
      for (const auto& [key, value] : pattern) values.push_back(value);
    }
    static std::vector<std::string> keys_of(const std::vector<std::pair<std::string, Value>>& pattern) {
      std::vector<std::string> keys;
      keys.reserve(pattern.size());
      for (const auto& [key, value] : pattern) keys.push_back(key);
      return keys;
    }

    PatternKeys keys;
    std::vector<Value> values;
  };

  void collect_unused(std::string_view option, const PatternKeys& keys, std::span<const std::string> modules,
                      std::vector<std::string>& unused) const {
    std::vector<bool> used(keys.keys().size());
    for (const std::string& module : modules) {
      if (const auto key = keys.find(module, budget_)) used[*key] = true;
    }
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (!used[i]) unused.push_back(detail::joined({option, detail::quoted_name(keys.keys()[i])}));
    }
  }

  [[nodiscard]] bool matches_saved(std::string_view module) const {
    for (const Pattern& pattern : saved_) {
      if (pattern.matches(module, budget_)) return true;
    }
    return false;
  }

  LoraConfig lora_;
  detail::MatchBudget budget_;
  detail::BasicSelectorMatcher<Char> target_;
  detail::BasicSelectorMatcher<Char> exclude_;
  detail::BasicLayerFilter<Char> layers_;
  std::vector<std::string> saved_names_;
  std::uint64_t saved_steps_ = 0;  // to compare a name with all of them
  PatternTable<Index> ranks_;
  PatternTable<double> alphas_;
  std::vector<Pattern> saved_;
};

/// A configuration prepared for queries about many modules.
using ModuleMatcher = BasicModuleMatcher<char>;

namespace detail {

/// Char is char. A template that names it so uses a matcher only where it is instantiated.
template <class>
struct TextOf {
  using Char = char;
};

}  // namespace detail

/// ModuleMatcher(config).targets(module, is_linear), for a single query. @throws ConfigError like ModuleMatcher
template <class Char = char>
[[nodiscard]] bool targets(const LoraModelConfig& config, std::string_view module, bool is_linear = true) {
  return BasicModuleMatcher<Char>(config, "targets").targets(module, is_linear);
}

/// ModuleMatcher(config).config_for(module), for a single query. @throws ConfigError like ModuleMatcher
template <class Char = char>
[[nodiscard]] LoraConfig config_for(const LoraModelConfig& config, std::string_view module) {
  return BasicModuleMatcher<Char>(config, "config_for").config_for(module);
}

/// The modules of a model that a configuration selects.
struct TargetedModules {
  std::vector<std::string> names;     ///< of the adapted modules, in the model's order
  std::vector<std::string> warnings;  ///< names and patterns of the configuration that match nothing
};

namespace detail {

template <class Char>
void warn_of_unmatched(std::basic_string_view<Char> option, const ModuleSelector& selector,
                       std::span<const std::string> modules, std::vector<std::string>& warnings) {
  const BasicNameList<Char> list(selector.names());
  std::vector<bool> means(list.size());
  for (const std::string& module : modules) {
    any_end(module, [&](std::string_view end) {
      if (const auto found = list.find(end)) means[*found] = true;
      return false;
    });
  }
  for (const std::string& name : selector.names()) {
    if (means[*list.find(name)]) continue;
    warnings.push_back(joined({option, " ", quoted_name(name), " matches no module"}));
  }
}

template <class Selector>
[[nodiscard]] std::string target_text(const Selector& selector) {
  if (selector.kind() == ModuleSelector::Kind::all_linear) return "all-linear";
  if (selector.kind() != ModuleSelector::Kind::pattern) {
    return selector.names().empty() ? "no name at all" : quoted_names(selector.names());
  }
  return joined({"the pattern ", quoted_name(selector.pattern())});
}

template <class Char>
[[noreturn]] void throw_nothing_targeted(std::basic_string_view<Char> operation, const LoraModelConfig& config,
                                         std::span<const std::string> modules, std::size_t excluded) {
  std::string got =
      joined({"none among ", std::to_string(modules.size()), modules.size() == 1 ? " module" : " modules"});
  const auto add = [&got](std::string_view text, std::string_view detail, std::string_view end = {}) {
    got = joined({got, text, detail, end});
  };
  if (!modules.empty()) add(" (", quoted_names(modules, 8), ")");
  if (excluded > 0) add("; exclude_modules and modules_to_save took ", std::to_string(excluded));
  if (!config.layers_to_transform.empty()) {
    add("; layers_to_transform lets pass", {});
    for (const Index layer : config.layers_to_transform) add(" ", std::to_string(layer));
  }
  if (!config.layers_pattern.empty()) add("; layers_pattern is ", quoted_names(config.layers_pattern));
  throw ConfigError(operation, "target_modules", joined({"a module that matches ", target_text(config.target_modules)}),
                    got);
}

struct EveryModuleIsLinear {
  [[nodiscard]] constexpr bool operator()(std::string_view /*module*/) const noexcept { return true; }
};

}  // namespace detail

/// The modules of a model that `config` adapts. `is_linear(name)` tells which modules are linear; by default all are.
/// As in PEFT, individual names that match nothing are not an error; they are returned as warnings. `operation` is the
/// call that errors name. @throws ConfigError listing target_modules when nothing at all is adapted; otherwise like
/// ModuleMatcher
template <class Char = char, class IsLinear = detail::EveryModuleIsLinear>
[[nodiscard]] TargetedModules resolve_targets(const LoraModelConfig& config, std::span<const std::string> modules,
                                              const IsLinear& is_linear = {},
                                              std::string_view operation = "resolve_targets") {
  const BasicModuleMatcher<Char> matcher(config, operation);
  TargetedModules result;
  std::size_t excluded = 0;
  for (const std::string& module : modules) {
    const bool linear = is_linear(std::string_view(module));
    if (matcher.targets(module, linear)) {
      result.names.push_back(module);
    } else if (matcher.excludes(module, linear)) {
      ++excluded;
    }
  }
  if (result.names.empty()) detail::throw_nothing_targeted(operation, config, modules, excluded);
  constexpr std::string_view exclude = "exclude_modules";
  detail::warn_of_unmatched(std::string_view("target_modules"), config.target_modules, modules, result.warnings);
  detail::warn_of_unmatched(exclude, config.exclude_modules, modules, result.warnings);
  if (config.exclude_modules.kind() == ModuleSelector::Kind::pattern && excluded == 0) {
    result.warnings.push_back(
        detail::joined({exclude, " ", detail::quoted_name(config.exclude_modules.pattern()), " matches no module"}));
  }
  for (const std::string& pattern : matcher.unused_patterns(result.names)) {
    result.warnings.push_back(detail::joined({pattern, " matches no adapted module"}));
  }
  return result;
}

}  // namespace lora
