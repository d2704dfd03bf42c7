// SPDX-License-Identifier: MIT
// Expressions over module names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/model/quoted_name.hpp"
#include "lora/model/regular_expression.hpp"

namespace lora::detail {

/// What a pattern has a machine for; "." alone is compared directly.
inline constexpr std::string_view special_characters = "^$*+?{}[]\\|()";

/// Whether a pattern is text without special characters other than ".".
[[nodiscard]] constexpr bool is_plain_text(std::string_view pattern) noexcept {
  return pattern.find_first_of(special_characters) == std::string_view::npos;
}

/// What patterns may take over all names that one matcher is asked about. A configuration and the names can both be
/// hostile, and the product of their sizes is what matching costs. Thread safety: any number of threads may spend.
class MatchBudget {
 public:
  /// What it takes to look for a byte in a name, or to compare it with another one.
  [[nodiscard]] static constexpr std::uint64_t steps_to_search(std::string_view name) noexcept {
    return 1 + name.size() / bytes_in_a_step;
  }
  /// Called for each name, so that a matcher whose patterns are cheap can be asked for ever.
  void grant(std::string_view name) const noexcept { add(-(std::int64_t{steps_of_a_byte} * std::ssize(name))); }

  /// @throws ConfigError when the patterns have taken too much
  void spend(std::uint64_t steps) const {
    if (add(static_cast<std::int64_t>(steps)) <= most_steps) return;
    throw ConfigError("match module names", "the patterns of a configuration",
                      "at most 2^27 steps, and 64 for each byte of the names", "more");
  }

 private:
  static constexpr std::int64_t most_steps = std::int64_t{1} << 27;  // less than half a second
  static constexpr std::int64_t steps_of_a_byte = 64;
  static constexpr std::uint64_t bytes_in_a_step = 32;

  std::int64_t add(std::int64_t steps) const noexcept { return __atomic_add_fetch(&spent_, steps, __ATOMIC_RELAXED); }

  mutable std::int64_t spent_ = 0;
};

/// The part of a name that a pattern must match: all of it; its end, beginning at the start or after a dot (PEFT's
/// rank_pattern and alpha_pattern); or any run of whole segments (PEFT's modules_to_save).
enum class PatternPlace : std::uint8_t { whole_name, name_end, name_part };

/// Where a part of a name may begin and end. The text before it, matched by (.*\.)?, and after it, by (\..*)?, contains
/// no line feed.
class PartEdges {
 public:
  PartEdges(std::string_view name, PatternPlace place) noexcept
      : name_(name), place_(place), first_line_(name.find('\n')), last_line_(name.rfind('\n')) {}

  [[nodiscard]] bool begins(std::size_t at) const noexcept {
    if (at == 0) return true;
    return place_ != PatternPlace::whole_name && name_[at - 1] == '.' && first_line_ >= at - 1;
  }
  [[nodiscard]] bool ends(std::size_t at) const noexcept {
    if (at == name_.size()) return true;
    return place_ == PatternPlace::name_part && name_[at] == '.' &&
           (last_line_ == std::string_view::npos || last_line_ < at);
  }

 private:
  std::string_view name_;
  PatternPlace place_;
  std::size_t first_line_;
  std::size_t last_line_;
};

/// The first byte of the character that ends before `end`. Pre: end > 0
[[nodiscard]] constexpr std::size_t begin_of_character(std::string_view text, std::size_t end) noexcept {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U) --begin;
  return begin;
}

/// A compiled regular expression over module names. Text without special characters other than "." is compared
/// directly. Matching takes time at most proportional to the length of the name times the states of the pattern; both
/// are bounded, because files may be hostile.
template <class Char>
class BasicNamePattern {
 public:
  static constexpr std::size_t max_pattern = RegularExpression<Char>::max_pattern;
  static constexpr std::size_t max_name = 1024;

  /// `option` is named in errors, for example "rank_pattern". @throws ConfigError for an unsupported or malformed
  /// expression.
  BasicNamePattern(std::string_view operation, std::string_view option, std::string pattern, PatternPlace place,
                   const MatchBudget& budget = {})
      : pattern_(std::move(pattern)), option_(option), place_(place) {
    if (is_plain_text(pattern_)) return;
    expression_.emplace(operation, option, pattern_);
    budget.spend(steps_of_a_state * expression_->states());
  }

  [[nodiscard]] const std::string& text() const noexcept { return pattern_; }

  /// @throws ConfigError when the pattern has special characters and the name is longer than max_name, and like
  /// MatchBudget::spend
  [[nodiscard]] bool matches(std::string_view name, const MatchBudget& budget = {}) const {
    const PartEdges edges(name, place_);
    if (expression_) return expression_matches(name, edges, budget);
    budget.spend(place_ == PatternPlace::name_part ? name.size() + 1 : MatchBudget::steps_to_search(name));
    if (text_matches(name, edges, budget)) return true;
    if (place_ != PatternPlace::name_part) return false;
    for (std::size_t end = 0; end < name.size(); ++end) {
      if (edges.ends(end) && text_matches(name.substr(0, end), edges, budget)) return true;
    }
    return false;
  }

 private:
  static constexpr std::uint64_t steps_of_a_state = 64;  // to build and to keep it

  // At the end of `name`. "." stands for any character but a line feed, as in the expression that the text is.
  [[nodiscard]] bool text_matches(std::string_view name, const PartEdges& edges, const MatchBudget& budget) const {
    std::size_t begin = name.size();
    std::size_t left = pattern_.size();
    for (; left > 0 && begin > 0; --left) {
      const char wanted = pattern_[left - 1];
      const char c = name[begin - 1];
      if (wanted == '.' ? c == '\n' : c != wanted) break;
      begin = wanted == '.' ? begin_of_character(name, begin) : begin - 1;
    }
    budget.spend(name.size() - begin);
    return left == 0 && edges.begins(begin);
  }

  [[nodiscard]] bool expression_matches(std::string_view name, const PartEdges& edges,
                                        const MatchBudget& budget) const {
    if (name.size() > max_name) {
      throw ConfigError("match a module name", option_,
                        joined({"names of at most ", std::to_string(max_name), " bytes with a regular expression"}),
                        joined({std::to_string(name.size()), " bytes: ", quoted_name(name)}));
    }
    if (expression_->needs_ascii()) {
      for (const char c : name) {
        if (static_cast<unsigned char>(c) < 0x80) continue;
        throw ConfigError("match a module name", option_, "names in ASCII with \\b, \\d, \\s or \\w",
                          quoted_name(name));
      }
    }
    std::uint64_t steps = 0;
    const bool found = expression_->matches(
        name, [&](std::size_t at) { return edges.begins(at); }, [&](std::size_t at) { return edges.ends(at); }, steps);
    budget.spend(steps);
    return found;
  }

  std::string pattern_;
  std::string option_;
  PatternPlace place_;
  std::optional<RegularExpression<Char>> expression_;
};

using NamePattern = BasicNamePattern<char>;

}  // namespace lora::detail
