// Which modules of a model are meant: lists of names, regular expressions and layer indices, as PEFT matches them.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// Chooses modules by their dotted names. A value; `{"q_proj", "v_proj"}` is a list of names.
///
/// A listed name means the module of that name and every module whose name ends in "." and it. A pattern is one regular
/// expression that must match the whole name. `all_linear` means every linear layer; which layers are linear, and that
/// the output head is none of them, is the caller's knowledge.
class ModuleSelector {
 public:
  enum class Kind : std::uint8_t { none, names, pattern, all_linear };

  ModuleSelector() = default;
  ModuleSelector(std::initializer_list<std::string> names) : ModuleSelector(listed(names)) {}

  [[nodiscard]] static ModuleSelector listed(std::vector<std::string> names) {
    return {Kind::names, std::move(names), {}};
  }
  /// ECMAScript's regular expressions stand in for Python's: both write `.`, `*`, `+?`, `{m,n}`, `[...]`, `\d`, `|`,
  /// `(?:...)` and lookahead alike. Lookbehind, named groups, inline flags, `\A` and `\Z` do not exist here, `{` that
  /// begins no count is an error, `\d` and `\w` know ASCII alone, and there are no back-references.
  [[nodiscard]] static ModuleSelector matching(std::string pattern) { return {Kind::pattern, {}, std::move(pattern)}; }
  [[nodiscard]] static ModuleSelector all_linear() { return {Kind::all_linear, {}, {}}; }

  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  [[nodiscard]] const std::vector<std::string>& names() const noexcept { return names_; }
  [[nodiscard]] const std::string& pattern() const noexcept { return pattern_; }

  /// Whether it chooses nothing, whatever the model: none, an empty list or an empty pattern.
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

/// In double quotes for a message: control characters as \xNN, and cut after 160 bytes.
[[nodiscard]] inline std::string quoted_name(std::string_view name) {
  constexpr std::size_t limit = 160;
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text = "\"";
  for (const char c : name.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      text.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 0xF]);
    } else {
      text.push_back(c);
    }
  }
  return text.append(name.size() > limit ? "...\"" : "\"");
}

/// `"a", "b", "c"`, the first `limit` of them.
template <class Names>
[[nodiscard]] std::string quoted_names(const Names& names, std::size_t limit = 20) {
  std::string text;
  std::size_t count = 0;
  for (const auto& name : names) {
    if (count++ < limit) text.append(text.empty() ? "" : ", ").append(quoted_name(name));
  }
  if (count > limit) text.append(", ... (").append(std::to_string(count)).append(")");
  return text;
}

/// Which part of a name a pattern must match: all of it; its end, from the start or behind a dot (PEFT's rank_pattern
/// and alpha_pattern); or any run of whole segments (PEFT's modules_to_save).
enum class PatternPlace : std::uint8_t { whole_name, name_end, name_part };

/// A compiled regular expression over module names. Text without special characters other than "." is compared
/// directly. Time is polynomial in the lengths of pattern and name with libstdc++, whose matcher that never goes back
/// is asked for; both lengths are bounded, because files may be hostile.
class NamePattern {
 public:
  static constexpr std::size_t max_pattern = 4096;
  static constexpr std::size_t max_expansion = 20000;  // states, when counted repetitions are written out
  static constexpr std::size_t max_name = 1024;

  /// `option` is what an error names, as "rank_pattern". @throws ConfigError for what is no regular expression here.
  NamePattern(std::string_view operation, std::string_view option, std::string pattern, PatternPlace place)
      : pattern_(std::move(pattern)), option_(option), place_(place) {
    if (pattern_.find_first_of("^$*+?{}[]\\|()") == std::string::npos) return;
    if (pattern_.size() > max_pattern || expansion(pattern_) > max_expansion) {
      throw ConfigError(operation, option_,
                        "a regular expression of at most " + std::to_string(max_pattern) + " bytes and " +
                            std::to_string(max_expansion) + " with repetitions written out",
                        quoted_name(pattern_) + " of " + std::to_string(pattern_.size()) + " bytes");
    }
    std::string full = "(?:" + pattern_ + ")";
    if (place_ != PatternPlace::whole_name) full.insert(0, "(?:.*\\.)?");
    if (place_ == PatternPlace::name_part) full.append("(?:\\..*)?");
    try {
      regex_.emplace(full, syntax);
    } catch (const std::regex_error& error) {
      throw ConfigError(operation, option_, "a regular expression (ECMAScript)",
                        quoted_name(pattern_) + ": " + error.what());
    }
  }

  [[nodiscard]] const std::string& text() const noexcept { return pattern_; }

  /// @throws ConfigError when the pattern has special characters and the name is longer than max_name.
  [[nodiscard]] bool matches(std::string_view name) const {
    if (regex_) return regex_matches(name);
    const std::size_t length = pattern_.size();
    if (length > name.size()) return false;
    switch (place_) {
      case PatternPlace::whole_name:
        return equal(name);
      case PatternPlace::name_end:
        return begins_segment(name, name.size() - length) && equal(name.substr(name.size() - length));
      case PatternPlace::name_part:
        break;
    }
    for (std::size_t begin = 0; begin + length <= name.size(); ++begin) {
      const bool ends_segment = begin + length == name.size() || name[begin + length] == '.';
      if (ends_segment && begins_segment(name, begin) && equal(name.substr(begin, length))) return true;
    }
    return false;
  }

 private:
#ifdef __GLIBCXX__
  static constexpr auto syntax =
      std::regex_constants::ECMAScript | std::regex_constants::nosubs | std::regex_constants::__polynomial;
#else
  static constexpr auto syntax = std::regex_constants::ECMAScript | std::regex_constants::nosubs;
#endif

  [[nodiscard]] static bool begins_segment(std::string_view name, std::size_t begin) {
    return begin == 0 || name[begin - 1] == '.';
  }

  // "." stands for any character but a line feed, as in the expression that the text is.
  [[nodiscard]] bool equal(std::string_view text) const {
    return std::equal(pattern_.begin(), pattern_.end(), text.begin(), text.end(),
                      [](char wanted, char c) { return wanted == '.' ? c != '\n' : wanted == c; });
  }

  [[nodiscard]] bool regex_matches(std::string_view name) const {
    if (name.size() > max_name) {
      throw ConfigError("match a module name", option_,
                        "names of at most " + std::to_string(max_name) + " bytes with a regular expression",
                        std::to_string(name.size()) + " bytes: " + quoted_name(name));
    }
    try {
      return std::regex_match(name.begin(), name.end(), *regex_);
    } catch (const std::regex_error& error) {
      throw ConfigError("match a module name", option_, "a regular expression that can be decided",
                        quoted_name(pattern_) + " on " + quoted_name(name) + ": " + error.what());
    }
  }

  // An upper bound of the length with {m,n} written out, as if all of them were nested. Saturates.
  [[nodiscard]] static std::size_t expansion(std::string_view pattern) {
    std::size_t length = pattern.size();
    std::size_t number = 0;
    std::size_t largest = 0;
    bool counting = false;
    for (const char c : pattern) {
      if (c == '{') {
        counting = true;
        number = largest = 0;
      } else if (counting && c >= '0' && c <= '9') {
        number = std::min(number * 10 + static_cast<std::size_t>(c - '0'), max_expansion + 1);
        largest = std::max(largest, number);
      } else if (counting && c == ',') {
        number = 0;
      } else if (counting) {
        length = std::min(length * std::max<std::size_t>(largest, 1), max_expansion + 1);
        counting = false;
      }
    }
    return length;
  }

  std::string pattern_;
  std::string option_;
  PatternPlace place_;
  std::optional<std::regex> regex_;
};

/// A segment of a name that is a number with a dot on both sides: a layer's place in a list of layers.
struct NumberedSegment {
  std::size_t begin = 0;       ///< of its first digit
  std::size_t position = 0;    ///< segments before it
  std::optional<Index> value;  ///< nothing when it is beyond Index
};

[[nodiscard]] inline std::vector<NumberedSegment> numbered_segments(std::string_view name) {
  std::vector<NumberedSegment> found;
  std::size_t begin = 0;
  for (std::size_t position = 0;; ++position) {
    const std::size_t dot = name.find('.', begin);
    if (dot == std::string_view::npos) return found;
    const std::string_view segment = name.substr(begin, dot - begin);
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (position > 0 && !segment.empty() && std::all_of(segment.begin(), segment.end(), is_digit)) {
      Index value = 0;
      const auto parsed = std::from_chars(segment.data(), segment.data() + segment.size(), value);
      found.push_back({begin, position, parsed.ec == std::errc() ? std::optional(value) : std::nullopt});
    }
    begin = dot + 1;
  }
}

/// PEFT's layers_to_transform and layers_pattern: is a module in a layer that is adapted?
class LayerFilter {
 public:
  LayerFilter(std::string_view operation, std::vector<Index> layers, const std::vector<std::string>& patterns)
      : layers_(std::move(layers)) {
    for (const std::string& pattern : patterns) {
      patterns_.emplace_back(operation, "layers_pattern", pattern, PatternPlace::whole_name);
    }
  }

  /// Without layers everything passes. The layer of "model.layers.3.q_proj" is 3: the first number behind at least two
  /// segments and before another; with patterns, the number behind the segment(s) the first pattern that fits matches,
  /// which again is not the first. Names without such a number do not pass.
  [[nodiscard]] bool passes(std::string_view name) const {
    if (layers_.empty()) return true;
    const std::optional<NumberedSegment> layer = find_layer(name);
    return layer && layer->value && std::find(layers_.begin(), layers_.end(), *layer->value) != layers_.end();
  }

 private:
  [[nodiscard]] std::optional<NumberedSegment> find_layer(std::string_view name) const {
    const std::vector<NumberedSegment> numbers = numbered_segments(name);
    if (patterns_.empty()) {
      const auto nested = [](const NumberedSegment& number) { return number.position >= 2; };
      const auto first = std::find_if(numbers.begin(), numbers.end(), nested);
      return first == numbers.end() ? std::nullopt : std::optional(*first);
    }
    for (const NamePattern& pattern : patterns_) {
      if (const auto layer = find_behind(pattern, name, numbers)) return layer;
    }
    return std::nullopt;
  }

  // The pattern begins as early as it can; a number as late as it can ends it, as Python's greedy operators would.
  [[nodiscard]] static std::optional<NumberedSegment> find_behind(const NamePattern& pattern, std::string_view name,
                                                                  const std::vector<NumberedSegment>& numbers) {
    for (std::size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
      const std::size_t begin = dot + 1;
      for (auto number = numbers.rbegin(); number != numbers.rend() && number->begin > begin; ++number) {
        if (pattern.matches(name.substr(begin, number->begin - 1 - begin))) return *number;
      }
    }
    return std::nullopt;
  }

  std::vector<Index> layers_;
  std::vector<NamePattern> patterns_;
};

/// Whether a listed name means this module.
[[nodiscard]] inline bool means_module(std::string_view listed, std::string_view module) {
  if (!module.ends_with(listed)) return false;
  return module.size() == listed.size() || module[module.size() - listed.size() - 1] == '.';
}

/// A ModuleSelector made ready for many names.
class SelectorMatcher {
 public:
  SelectorMatcher(std::string_view operation, std::string_view option, const ModuleSelector& selector)
      : kind_(selector.empty() ? ModuleSelector::Kind::none : selector.kind()),
        names_(selector.names().begin(), selector.names().end()) {
    if (kind_ == ModuleSelector::Kind::pattern) {
      pattern_.emplace(operation, option, selector.pattern(), PatternPlace::whole_name);
    }
  }

  /// Time for a list grows with the segments of the name, not with the list.
  [[nodiscard]] bool matches(std::string_view name, bool is_linear) const {
    switch (kind_) {
      case ModuleSelector::Kind::none:
        return false;
      case ModuleSelector::Kind::names:
        return lists(name);
      case ModuleSelector::Kind::pattern:
        return pattern_->matches(name);
      case ModuleSelector::Kind::all_linear:
        return is_linear;
    }
    return false;
  }

  /// Whether the name stands in the list as it is.
  [[nodiscard]] bool has(std::string_view name) const { return names_.contains(name); }

 private:
  [[nodiscard]] bool lists(std::string_view name) const {
    while (true) {
      if (names_.contains(name)) return true;
      const std::size_t dot = name.find('.');
      if (dot == std::string_view::npos) return false;
      name.remove_prefix(dot + 1);
    }
  }

  ModuleSelector::Kind kind_;
  std::set<std::string, std::less<>> names_;
  std::optional<NamePattern> pattern_;
};

}  // namespace detail

}  // namespace lora
