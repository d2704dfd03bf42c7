// SPDX-License-Identifier: MIT
// Selects modules of a model by lists of names, regular expressions and layer indices, as PEFT does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/types.hpp"
#include "lora/model/name_pattern.hpp"

namespace lora {

/// Chooses modules by their dotted names. A value; `{"q_proj", "v_proj"}` is a list of names.
///
/// A listed name selects the module of that name and every module whose name ends in "." followed by it. A pattern is
/// one regular expression that must match the whole name. `all_linear` selects every linear layer; the caller decides
/// which layers are linear, and must leave out the output head.
class ModuleSelector {
 public:
  /// How modules are chosen.
  enum class Kind : std::uint8_t { none, names, pattern, all_linear };

  ModuleSelector() = default;
  /// A list of names.
  ModuleSelector(std::initializer_list<std::string> names) : ModuleSelector(listed(names)) {}

  /// A list of names.
  [[nodiscard]] static ModuleSelector listed(std::vector<std::string> names) {
    return {Kind::names, std::move(names), {}};
  }
  /// A regular expression in Python's syntax, as supported by detail::RegularExpression: back-references, lookbehind,
  /// flags, atomic groups and possessive quantifiers are refused when the pattern is compiled.
  [[nodiscard]] static ModuleSelector matching(std::string pattern) { return {Kind::pattern, {}, std::move(pattern)}; }
  /// Every linear layer except the output head; PEFT's "all-linear".
  [[nodiscard]] static ModuleSelector all_linear() { return {Kind::all_linear, {}, {}}; }

  /// How it chooses.
  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  /// The listed names; empty for other kinds.
  [[nodiscard]] const std::vector<std::string>& names() const noexcept { return names_; }
  /// The pattern; empty for other kinds.
  [[nodiscard]] const std::string& pattern() const noexcept { return pattern_; }

  /// Whether it selects nothing in any model: none, an empty list or an empty pattern.
  [[nodiscard]] bool empty() const noexcept { return kind_ != Kind::all_linear && names_.empty() && pattern_.empty(); }

  bool operator==(const ModuleSelector&) const = default;

 private:
  ModuleSelector(Kind kind, std::vector<std::string> names, std::string pattern)
      : kind_(kind), names_(std::move(names)), pattern_(std::move(pattern)) {}

  Kind kind_ = Kind::none;
  std::vector<std::string> names_;
  std::string pattern_;
};

namespace detail {

[[nodiscard]] inline bool names_bias(std::string_view name) noexcept {
  return name == "bias" || name.ends_with(".bias");
}

/// The module a parameter's full name belongs to: "head" of "head.weight".
[[nodiscard]] inline std::string_view module_of(std::string_view parameter) noexcept {
  return parameter.substr(0, parameter.rfind('.'));
}

/// Whether `name`, one of modules_to_save, saves this module: the module or one that contains it has such an ending.
[[nodiscard]] inline bool saves_module(std::string_view name, std::string_view module) noexcept {
  for (std::size_t end = module.find('.'); !module.empty(); end = module.find('.', end + 1)) {
    if (module.substr(0, end).ends_with(name)) return true;
    if (end == std::string_view::npos) break;
  }
  return false;
}

/// PEFT's layers_to_transform and layers_pattern: whether a module is in an adapted layer.
template <class Char>
class BasicLayerFilter {
 public:
  BasicLayerFilter(std::string_view operation, std::vector<Index> layers, const std::vector<std::string>& patterns,
                   const MatchBudget& budget = {})
      : layers_(std::move(layers)) {
    for (const std::string& pattern : patterns) {
      patterns_.emplace_back(operation, "layers_pattern", pattern, PatternPlace::whole_name, budget);
    }
  }

  /// Without layers everything passes. The layer of "model.layers.3.q_proj" is 3: the first number with at least two
  /// segments before it and one after it. With patterns, it is the number after the segment(s) that the first fitting
  /// pattern matches, which again must not be the first segment. Names without such a number do not pass.
  [[nodiscard]] bool passes(std::string_view name, const MatchBudget& budget = {}) const {
    if (layers_.empty()) return true;
    const std::optional<NumberedSegment> layer = find_layer(name, budget);
    if (!layer || layer->value < 0) return false;
    budget.spend(layers_.size());
    for (const Index adapted : layers_) {
      if (adapted == layer->value) return true;
    }
    return false;
  }

 private:
  // A segment of a name that is a number with a dot on both sides: a layer's position in a list of layers.
  struct NumberedSegment {
    std::size_t begin;     // position of its first digit
    std::size_t position;  // number of segments before it
    Index value;           // negative if it does not fit
  };

  [[nodiscard]] static std::vector<NumberedSegment> numbered_segments(std::string_view name) {
    std::vector<NumberedSegment> found;
    std::size_t begin = 0;
    for (std::size_t position = 0;; ++position) {
      const std::size_t dot = name.find('.', begin);
      if (dot == std::string_view::npos) return found;
      bool digits = position > 0 && dot > begin;
      Index value = 0;
      for (std::size_t i = begin; digits && i < dot; ++i) {
        const Index digit = name[i] - '0';
        digits = digit >= 0 && digit <= 9;
        const bool fits = value >= 0 && value <= (std::numeric_limits<Index>::max() - digit) / 10;
        value = fits ? value * 10 + digit : -1;
      }
      if (digits) found.push_back({begin, position, value});
      begin = dot + 1;
    }
  }

  [[nodiscard]] std::optional<NumberedSegment> find_layer(std::string_view name, const MatchBudget& budget) const {
    const std::vector<NumberedSegment> numbers = numbered_segments(name);
    if (patterns_.empty()) {
      for (const NumberedSegment& number : numbers) {
        if (number.position >= 2) return number;
      }
      return std::nullopt;
    }
    for (const auto& pattern : patterns_) {
      if (const auto layer = find_behind(pattern, name, numbers, budget)) return layer;
    }
    return std::nullopt;
  }

  // The pattern begins as early and ends before as late a number as possible, as with Python's greedy operators.
  [[nodiscard]] static std::optional<NumberedSegment> find_behind(const BasicNamePattern<Char>& pattern,
                                                                  std::string_view name,
                                                                  const std::vector<NumberedSegment>& numbers,
                                                                  const MatchBudget& budget) {
    for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
      const std::size_t begin = dot + 1;
      for (std::size_t i = numbers.size(); i-- > 0 && numbers[i].begin > begin;) {
        if (pattern.matches(name.substr(begin, numbers[i].begin - 1 - begin), budget)) return numbers[i];
      }
    }
    return std::nullopt;
  }

  std::vector<Index> layers_;
  std::vector<BasicNamePattern<Char>> patterns_;
};

using LayerFilter = BasicLayerFilter<char>;

/// Whether visit(end) holds for the name or one of its ends after a dot: what a listed name can mean.
template <class Visit>
bool any_end(std::string_view name, const Visit& visit) {
  while (true) {
    if (visit(name)) return true;
    const std::size_t dot = name.find('.');
    if (dot == std::string_view::npos) return false;
    name.remove_prefix(dot + 1);
  }
}

/// Names, sorted. Their type depends on Char, so that sorting is compiled only where a list is made.
template <class Char>
class BasicNameList {
 public:
  explicit BasicNameList(std::vector<std::basic_string<Char>> names) : names_(std::move(names)) {
    std::sort(names_.begin(), names_.end());
  }

  [[nodiscard]] std::size_t size() const noexcept { return names_.size(); }
  /// A position of exactly this name, always the same one.
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const noexcept {
    const auto found = std::lower_bound(names_.begin(), names_.end(), name);
    if (found == names_.end() || *found != name) return std::nullopt;
    return static_cast<std::size_t>(found - names_.begin());
  }

 private:
  std::vector<std::basic_string<Char>> names_;
};

/// A ModuleSelector prepared for many names.
template <class Char>
class BasicSelectorMatcher {
 public:
  BasicSelectorMatcher(std::string_view operation, std::string_view option, const ModuleSelector& selector)
      : kind_(selector.empty() ? ModuleSelector::Kind::none : selector.kind()), names_(selector.names()) {
    if (kind_ == ModuleSelector::Kind::pattern) {
      pattern_.emplace(operation, option, selector.pattern(), PatternPlace::whole_name);
    }
  }

  [[nodiscard]] bool matches(std::string_view name, bool is_linear, const MatchBudget& budget = {}) const {
    switch (kind_) {
      case ModuleSelector::Kind::none:
        return false;
      case ModuleSelector::Kind::names:
        return any_end(name, [&](std::string_view end) { return has(end, budget); });
      case ModuleSelector::Kind::pattern:
        return pattern_->matches(name, budget);
      case ModuleSelector::Kind::all_linear:
        return is_linear;
    }
    return false;
  }

  /// Whether exactly this name is in the list.
  [[nodiscard]] bool has(std::string_view name, const MatchBudget& budget) const {
    budget.spend(MatchBudget::steps_to_search(name));
    return names_.find(name).has_value();
  }

 private:
  ModuleSelector::Kind kind_;
  BasicNameList<Char> names_;
  std::optional<BasicNamePattern<Char>> pattern_;
};

using SelectorMatcher = BasicSelectorMatcher<char>;

}  // namespace detail

}  // namespace lora
