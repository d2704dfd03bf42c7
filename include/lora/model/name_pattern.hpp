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

/// The part of a name that a pattern must match: all of it; its end, beginning at the start or after a dot (PEFT's
/// rank_pattern and alpha_pattern); or any run of whole segments (PEFT's modules_to_save).
enum class PatternPlace : std::uint8_t { whole_name, name_end, name_part };

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
  BasicNamePattern(std::string_view operation, std::string_view option, std::string pattern, PatternPlace place)
      : pattern_(std::move(pattern)), option_(option), place_(place) {
    if (pattern_.find_first_of("^$*+?{}[]\\|()") == std::string::npos) return;
    expression_.emplace(operation, option, pattern_);
  }

  [[nodiscard]] const std::string& text() const noexcept { return pattern_; }

  /// @throws ConfigError when the pattern has special characters and the name is longer than max_name.
  [[nodiscard]] bool matches(std::string_view name) const {
    if (expression_) return expression_matches(name);
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
  [[nodiscard]] static bool begins_segment(std::string_view name, std::size_t begin) {
    return begin == 0 || name[begin - 1] == '.';
  }

  // "." stands for any character but a line feed, as in the expression that the text is.
  [[nodiscard]] bool equal(std::string_view text) const {
    if (text.size() != pattern_.size()) return false;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (pattern_[i] == '.' ? text[i] == '\n' : text[i] != pattern_[i]) return false;
    }
    return true;
  }

  // The text before the part, matched by (.*\.)?, and after it, by (\..*)?, contains no line feed.
  [[nodiscard]] bool expression_matches(std::string_view name) const {
    if (name.size() > max_name) {
      throw ConfigError("match a module name", option_,
                        joined({"names of at most ", std::to_string(max_name), " bytes with a regular expression"}),
                        joined({std::to_string(name.size()), " bytes: ", quoted_name(name)}));
    }
    const std::size_t first_line = name.find('\n');
    const std::size_t last_line = name.rfind('\n');
    const auto begins = [&](std::size_t place) {
      if (place == 0) return true;
      return place_ != PatternPlace::whole_name && name[place - 1] == '.' && first_line >= place - 1;
    };
    const auto ends = [&](std::size_t place) {
      if (place == name.size()) return true;
      return place_ == PatternPlace::name_part && name[place] == '.' &&
             (last_line == std::string_view::npos || last_line < place);
    };
    return expression_->matches(name, begins, ends);
  }

  std::string pattern_;
  std::string option_;
  PatternPlace place_;
  std::optional<RegularExpression<Char>> expression_;
};

using NamePattern = BasicNamePattern<char>;

}  // namespace lora::detail
