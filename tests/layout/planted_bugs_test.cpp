// SPDX-License-Identifier: MIT
// The bugs of tests/planted stay plantable: whoever changes a line that one replaces changes the bug with it.
#include <algorithm>
#include <cstddef>
#include <gtest/gtest.h>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "layout/house_rules.hpp"

namespace lora::testing::planted_bugs_test {
namespace {

const fs::path root = LORA_SOURCE_DIR;

struct Bug {
  std::string name;
  std::string file;
  std::string text;                  ///< that it replaces, without white space
  std::vector<std::string> sources;  ///< of the tests
  std::vector<std::string> catches;  ///< names of tests
};

std::vector<std::string> words_of(const std::string& line, char separator) {
  std::vector<std::string> words;
  std::istringstream rest(line);
  for (std::string word; std::getline(rest, word, separator);) {
    if (!word.empty()) words.push_back(word);
  }
  return words;
}

std::string without_space(std::string text) {
  text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\n'; }), text.end());
  return text;
}

std::vector<Bug> bugs_of(const std::string& list) {
  std::vector<Bug> bugs;
  std::istringstream lines(list);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("[")) bugs.push_back({line, "", "", {}, {}});
    if (bugs.empty()) continue;
    if (line.starts_with("file: ")) bugs.back().file = line.substr(6);
    if (line.starts_with("test: ")) bugs.back().sources = words_of(line.substr(6), ' ');
    if (line.starts_with("catches: ")) bugs.back().catches = words_of(line.substr(9), ':');
    if (line.starts_with("- ")) bugs.back().text += without_space(line.substr(2));
  }
  return bugs;
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

/// The bugs whose text does not stand in their header exactly once.
Violations not_plantable(const std::vector<Bug>& bugs, const std::vector<Header>& headers) {
  std::map<std::string, std::string> texts;
  for (const Header& header : headers) texts[header.path] = without_space(header.text);
  Violations violations;
  for (const Bug& bug : bugs) {
    const bool once = !bug.text.empty() && count(texts["lora/" + bug.file], bug.text) == 1;
    if (!once) violations.push_back(bug.name + " in " + bug.file);
  }
  return violations;
}

/// Whether a source has a test of this name, Suite.Test or Suite.*; true for other filters, which run.py looks at.
bool has_test(const std::string& source, const std::string& name) {
  const auto point = name.find('.');
  const std::string suite = name.substr(0, point);
  const std::string test = point == std::string::npos ? "*" : name.substr(point + 1);
  if (suite.find_first_of("*/") != std::string::npos) return true;
  if (test.find_first_of("*/") != std::string::npos) return count(source, "(" + suite + ",") > 0;
  const std::string both = "(" + suite + "," + test;
  return count(source, both + ")") + count(source, both + ",") > 0;
}

/// Names that no source of their bug has. `source_of(path)` is its text without white space.
template <class SourceOf>
Violations without_test(const std::vector<Bug>& bugs, const SourceOf& source_of) {
  Violations violations;
  for (const Bug& bug : bugs) {
    std::string sources;
    for (const auto& path : bug.sources) sources += source_of(path);
    for (const auto& name : bug.catches) {
      if (!has_test(sources, name)) violations.push_back(bug.name + ": " + name);
    }
  }
  return violations;
}

TEST(PlantedBugs, HaveTheirTextOnceInTheirHeader) {
  std::size_t bugs = 0;
  for (const auto& entry : fs::directory_iterator(root / "tests" / "planted")) {
    if (entry.path().extension() != ".bugs") continue;
    const auto list = bugs_of(read_text(entry.path()));
    bugs += list.size();
    EXPECT_EQ(not_plantable(list, headers_of(root)), Violations{}) << entry.path().filename();
  }
  EXPECT_GT(bugs, 200U);
}

TEST(PlantedBugs, WhoseTextIsGoneOrThereTwiceAreFound) {
  const auto list = bugs_of("[scale]\nfile: core/a.hpp\n- return s *\n-     x;\n+ return x;\n");
  EXPECT_EQ(not_plantable(list, {{"lora/core/a.hpp", "  return s * x;\n"}}), Violations{});
  EXPECT_EQ(not_plantable(list, {{"lora/core/a.hpp", "  return x * s;\n"}}).size(), 1U);
  EXPECT_EQ(not_plantable(list, {{"lora/core/a.hpp", "return s * x; return s * x;"}}).size(), 1U);
}

// A name that selects nothing catches nothing, and the other names of its bug hide that.
TEST(PlantedBugs, NameTestsThatAreThere) {
  const auto source_of = [](const std::string& path) { return without_space(read_text(root / "tests" / path)); };
  for (const auto& entry : fs::directory_iterator(root / "tests" / "planted")) {
    if (entry.path().extension() != ".bugs") continue;
    EXPECT_EQ(without_test(bugs_of(read_text(entry.path())), source_of), Violations{}) << entry.path().filename();
  }
}

TEST(PlantedBugs, NamesOfNoTestAreFound) {
  const auto source_of = [](const std::string&) {
    return std::string("TEST(Merge,Restores){}RC_PROP(Law,Holds,(int))");
  };
  const auto list =
      bugs_of("[b]\ntest: a.cpp b.cpp\ncatches: Merge.Restores:Law.Holds:Law.*:Merge.Rest:Mer.*:Law.Hold\n");
  EXPECT_EQ(without_test(list, source_of), (Violations{"[b]: Merge.Rest", "[b]: Mer.*", "[b]: Law.Hold"}));
}

}  // namespace
}  // namespace lora::testing::planted_bugs_test
