// SPDX-License-Identifier: MIT
// The rules of the guide: its troubleshooting page knows the messages that the headers throw, and every sample is run.
#pragma once

#include <algorithm>
#include <cstddef>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layout/house_rules.hpp"

namespace lora::testing {

/// What one place in a header says it expected: the string literals of that argument.
struct Expectation {
  std::string place;  ///< "lora/core/view.hpp:12"
  std::vector<std::string> literals;
};

/// The literal that begins at text[at], a quote, without escapes; `at` moves behind it.
inline std::string take_literal(std::string_view text, std::size_t& at) {
  std::string literal;
  for (++at; at < text.size() && text[at] != '"'; ++at) {
    if (text[at] == '\\') ++at;
    literal += text[at];
  }
  ++at;
  return literal;
}

/// The literals of each argument of the call whose bracket opens at text[at]. Literals side by side are one.
inline std::vector<std::vector<std::string>> literals_of_call(std::string_view text, std::size_t at) {
  std::vector<std::vector<std::string>> arguments(1);
  bool adjacent = false;
  for (int depth = 0; at < text.size();) {
    const char c = text[at];
    if (c == '"') {
      const std::string literal = take_literal(text, at);
      if (adjacent) {
        arguments.back().back() += literal;
      } else {
        arguments.back().push_back(literal);
      }
      adjacent = true;
      continue;
    }
    if (c != ' ' && c != '\n') adjacent = false;
    if (c == '(' || c == '[' || c == '{') ++depth;
    if ((c == ')' || c == ']' || c == '}') && --depth == 0) break;
    if (c == ',' && depth == 1) arguments.emplace_back();
    ++at;
  }
  return arguments;
}

/// Every place that spells out what it expected, the last argument but one: it throws one of the library's errors, or
/// calls a function `refuse` that does.
inline std::vector<Expectation> expectations_of(const Header& header) {
  static const std::regex thrown("throw \\w*Error\\(|throw_io_error\\(|\\brefuse(_value)?\\(");
  std::vector<Expectation> found;
  for (std::sregex_iterator match(header.text.begin(), header.text.end(), thrown), end; match != end; ++match) {
    const auto begin = static_cast<std::size_t>(match->position());
    const auto arguments = literals_of_call(header.text, header.text.find('(', begin));
    if (arguments.size() < 2 || arguments[arguments.size() - 2].empty()) continue;
    const auto line = std::count(header.text.begin(), header.text.begin() + match->position(), '\n') + 1;
    found.push_back({header.path + ":" + std::to_string(line), arguments[arguments.size() - 2]});
  }
  return found;
}

/// The messages of a page: the code in the first cells of tables whose first heading is "expected".
inline std::vector<std::string> documented_messages(const std::string& page) {
  std::vector<std::string> messages;
  std::istringstream lines(page);
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("|")) {
      inside = false;
    } else if (line.starts_with("| expected |")) {
      inside = true;
    } else if (inside) {
      const std::string cell = line.substr(0, line.find(" | ", 2));
      for (std::size_t open = cell.find('`'); open != std::string::npos;) {
        const std::size_t close = cell.find('`', open + 1);
        messages.push_back(cell.substr(open + 1, close - open - 1));
        open = cell.find('`', close + 1);
      }
    }
  }
  return messages;
}

inline std::string_view trimmed(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

/// The parts of a message that are fixed: what stands between its ellipses.
inline std::vector<std::string> fixed_parts(std::string_view message) {
  constexpr std::string_view ellipsis = "\u2026";
  std::vector<std::string> parts;
  while (true) {
    const std::size_t at = message.find(ellipsis);
    const std::string_view part = trimmed(message.substr(0, at));
    if (!part.empty()) parts.emplace_back(part);
    if (at == std::string_view::npos) return parts;
    message.remove_prefix(at + ellipsis.size());
  }
}

/// Whether a place can say this: each fixed part is one of its literals, or a part of one that is long enough to tell.
inline bool says(const Expectation& place, const std::string& message) {
  constexpr std::size_t telling = 12;
  const auto parts = fixed_parts(message);
  return !parts.empty() && std::all_of(parts.begin(), parts.end(), [&](const std::string& part) {
    return std::any_of(place.literals.begin(), place.literals.end(), [&](const std::string& literal) {
      return trimmed(literal) == part || (part.size() >= telling && literal.find(part) != std::string::npos);
    });
  });
}

inline std::vector<Expectation> expectations_of(const std::vector<Header>& headers) {
  std::vector<Expectation> all;
  for (const Header& header : headers) {
    for (Expectation& one : expectations_of(header)) all.push_back(std::move(one));
  }
  return all;
}

/// Messages of the page that no header throws any more.
inline Violations stale_messages(const std::vector<Header>& headers, const std::string& page) {
  const auto places = expectations_of(headers);
  Violations violations;
  for (const std::string& message : documented_messages(page)) {
    const auto is_said = [&](const Expectation& place) { return says(place, message); };
    if (std::none_of(places.begin(), places.end(), is_said)) violations.push_back("no header says: " + message);
  }
  return violations;
}

/// Places in the headers whose message is not on the page.
inline Violations undocumented_messages(const std::vector<Header>& headers, const std::string& page) {
  const auto messages = documented_messages(page);
  Violations violations;
  for (const Expectation& place : expectations_of(headers)) {
    const auto is_said = [&](const std::string& message) { return says(place, message); };
    if (std::any_of(messages.begin(), messages.end(), is_said)) continue;
    std::string text = place.place + ":";
    for (const std::string& literal : place.literals) text += " \"" + literal + "\"";
    violations.push_back(text);
  }
  return violations;
}

/// Samples of C++ on a page that the tests compile but do not run; see tests/readme/README.md.
inline Violations samples_not_run(const std::string& name, const std::string& page) {
  Violations violations;
  std::istringstream lines(page);
  std::string before;
  int number = 1;
  for (std::string line; std::getline(lines, line); ++number, before = line) {
    if (line != "```cpp") continue;
    const bool runs = before.starts_with("<!-- readme:") && before.find(" run ") != std::string::npos;
    if (!runs) violations.push_back(name + ":" + std::to_string(number));
  }
  return violations;
}

/// The tests that a page names in the last cells of tables whose last heading is "test": "Suite.Name".
inline std::vector<std::string> promised_tests(const std::string& page) {
  std::vector<std::string> tests;
  std::istringstream lines(page);
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("|")) {
      inside = false;
    } else if (line.ends_with("| test |")) {
      inside = true;
    } else if (inside && !line.starts_with("|---")) {
      const std::string cell = line.substr(line.rfind(" | "));
      for (std::size_t open = cell.find('`'); open != std::string::npos;) {
        const std::size_t close = cell.find('`', open + 1);
        tests.push_back(cell.substr(open + 1, close - open - 1));
        open = cell.find('`', close + 1);
      }
      if (cell.find('`') == std::string::npos) tests.push_back("none for: " + line);
    }
  }
  return tests;
}

/// The tests of a page that no source has.
inline Violations missing_tests(const std::set<std::string>& tests, const std::string& page) {
  Violations violations;
  for (const std::string& test : promised_tests(page)) {
    if (!tests.contains(test)) violations.push_back(test);
  }
  return violations;
}

/// "Suite.Name" of every test in a source.
inline std::set<std::string> tests_of(const std::string& source) {
  static const std::regex definition(R"(TEST(?:_F|_P)?\((\w+),\s*(\w+)\))");
  std::set<std::string> tests;
  for (std::sregex_iterator match(source.begin(), source.end(), definition), end; match != end; ++match) {
    tests.insert((*match)[1].str() + "." + (*match)[2].str());
  }
  return tests;
}

}  // namespace lora::testing
