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
  std::string text;  ///< that it replaces, without white space
};

std::string without_space(std::string text) {
  text.erase(std::remove_if(text.begin(), text.end(), [](char c) { return c == ' ' || c == '\n'; }), text.end());
  return text;
}

std::vector<Bug> bugs_of(const std::string& list) {
  std::vector<Bug> bugs;
  std::istringstream lines(list);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("[")) bugs.push_back({line, "", ""});
    if (bugs.empty()) continue;
    if (line.starts_with("file: ")) bugs.back().file = line.substr(6);
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

}  // namespace
}  // namespace lora::testing::planted_bugs_test
