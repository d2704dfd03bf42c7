// SPDX-License-Identifier: MIT
// The keys of PEFT's rank_pattern and alpha_pattern, prepared for many names.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/model/name_pattern.hpp"

namespace lora::detail {

/// Keys of plain text, matched to the ends of names (PatternPlace::name_end). They are sorted by their text read
/// backwards and form a tree: a name takes as many steps as it has characters, and more only where a key has a dot and
/// the name another character.
template <class Char>
class BasicTextKeys {
 public:
  /// Of equal texts the first counts. Pre: is_plain_text(text); numbers ascend
  void add(std::string_view text, std::size_t number) { keys_.push_back({{text.rbegin(), text.rend()}, number}); }
  /// To be called once, after all add().
  void sort() {
    const auto before = [](const Key& a, const Key& b) { return a.backwards < b.backwards; };
    const auto equal = [](const Key& a, const Key& b) { return a.backwards == b.backwards; };
    std::stable_sort(keys_.begin(), keys_.end(), before);
    keys_.erase(std::unique(keys_.begin(), keys_.end(), equal), keys_.end());
  }

  /// The smallest number of a key that matches. @throws ConfigError like MatchBudget::spend; std::bad_alloc
  [[nodiscard]] std::optional<std::size_t> first_match(std::string_view name, const MatchBudget& budget) const {
    const PartEdges edges(name, PatternPlace::name_end);
    std::optional<std::size_t> first;
    std::uint64_t steps = 0;
    std::vector<Place> pending{{0, keys_.size(), 0, name.size()}};
    while (!pending.empty()) {
      Place at = pending.back();
      pending.pop_back();
      while (at.begin < at.end) {
        if (++steps % steps_at_once == 0) budget.spend(steps_at_once * cost_of_a_step);
        if (const Key& key = keys_[at.begin]; key.backwards.size() == at.depth) {
          if (edges.begins(at.position)) first = std::min(first.value_or(key.number), key.number);
          ++at.begin;
        }
        if (at.position == 0) break;
        const char c = name[at.position - 1];
        if (c != '.' && c != '\n') pending.push_back(narrowed(at, '.', begin_of_character(name, at.position)));
        at = narrowed(at, c, at.position - 1);
      }
    }
    budget.spend(steps % steps_at_once * cost_of_a_step);
    return first;
  }

 private:
  static constexpr std::uint64_t cost_of_a_step = 16;  // two binary searches
  static constexpr std::uint64_t steps_at_once = std::uint64_t{1} << 12;

  struct Key {
    std::string backwards;
    std::size_t number;
  };
  // Keys [begin, end) agree with the name in their last `depth` bytes, and the name was read from its end to
  // `position`.
  struct Place {
    std::size_t begin;
    std::size_t end;
    std::size_t depth;
    std::size_t position;
  };

  // Those keys that have `c` next. Pre: all are longer than depth.
  [[nodiscard]] Place narrowed(const Place& at, char c, std::size_t position) const {
    const auto order = [depth = at.depth](const Key& key) { return static_cast<unsigned char>(key.backwards[depth]); };
    const auto wanted = static_cast<unsigned char>(c);
    if (at.begin == at.end) return at;
    if (order(keys_[at.begin]) == wanted && order(keys_[at.end - 1]) == wanted) {
      return {at.begin, at.end, at.depth + 1, position};
    }
    const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(at.begin);
    const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(at.end);
    const auto from = std::partition_point(first, last, [&](const Key& key) { return order(key) < wanted; });
    const auto to = std::partition_point(from, last, [&](const Key& key) { return order(key) == wanted; });
    return {static_cast<std::size_t>(from - keys_.begin()), static_cast<std::size_t>(to - keys_.begin()), at.depth + 1,
            position};
  }

  std::vector<Key> keys_;
};

/// Keys that are regular expressions for the ends of names.
template <class Char>
class BasicPatternKeys {
 public:
  /// `option` is named in errors. @throws ConfigError like BasicNamePattern
  BasicPatternKeys(std::string_view operation, std::string_view option, std::vector<std::string> keys,
                   const MatchBudget& budget = {})
      : keys_(std::move(keys)) {
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      if (is_plain_text(keys_[i])) {
        texts_.add(keys_[i], i);
      } else {
        expressions_.push_back({i, Pattern(operation, option, keys_[i], PatternPlace::name_end, budget)});
      }
    }
    texts_.sort();
  }

  [[nodiscard]] const std::vector<std::string>& keys() const noexcept { return keys_; }

  /// The position of the first key that matches. If none does, PEFT looks a module up by its own name. This finds a key
  /// that, as an expression, does not match itself. @throws ConfigError like BasicNamePattern::matches
  [[nodiscard]] std::optional<std::size_t> find(std::string_view module, const MatchBudget& budget = {}) const {
    const std::optional<std::size_t> text = texts_.first_match(module, budget);
    for (const auto& [number, pattern] : expressions_) {
      if (text && *text < number) break;
      if (pattern.matches(module, budget)) return number;
    }
    if (text) return text;
    for (const auto& [number, pattern] : expressions_) {
      if (pattern.text() == module) return number;
    }
    return std::nullopt;
  }

 private:
  using Pattern = BasicNamePattern<Char>;
  struct Expression {
    std::size_t number;
    Pattern pattern;
  };

  std::vector<std::string> keys_;
  BasicTextKeys<Char> texts_;
  std::vector<Expression> expressions_;
};

}  // namespace lora::detail
