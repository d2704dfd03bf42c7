// SPDX-License-Identifier: MIT
// Holds the guide to its rules, and each rule to what it is there for: a planted violation must be found.
#include "layout/guide_rules.hpp"

#include <gtest/gtest.h>
#include <set>
#include <string>
#include <vector>

namespace lora::testing::guide_rules_test {
namespace {

const fs::path root = LORA_SOURCE_DIR;
const fs::path guide = root / "docs" / "guide";

/// The violations, one in a line.
std::string text_of(const Violations& violations) {
  std::string text;
  for (const auto& violation : violations) text += violation + "\n";
  return text;
}

TEST(Guide, TroubleshootingKnowsEveryMessage) {
  EXPECT_EQ(text_of(undocumented_messages(headers_of(root), read_text(guide / "troubleshooting.md"))), "");
}

TEST(Guide, TroubleshootingHasNoMessageOfThePast) {
  const std::string page = read_text(guide / "troubleshooting.md");
  EXPECT_GT(documented_messages(page).size(), 100U);
  EXPECT_EQ(text_of(stale_messages(headers_of(root), page)), "");
}

TEST(Guide, EverySampleIsRun) {
  int pages = 0;
  for (const auto& entry : fs::directory_iterator(guide)) {
    if (entry.path().extension() != ".md") continue;
    ++pages;
    EXPECT_EQ(text_of(samples_not_run(entry.path().filename().string(), read_text(entry.path()))), "");
  }
  EXPECT_GT(pages, 10);
}

TEST(Guide, EveryPromiseHasATest) {
  std::set<std::string> tests;
  for (const auto& entry : fs::recursive_directory_iterator(root / "tests")) {
    if (entry.path().extension() == ".cpp") tests.merge(tests_of(read_text(entry.path())));
  }
  const std::string page = read_text(guide / "promises.md");
  EXPECT_GT(promised_tests(page).size(), 20U);
  EXPECT_EQ(text_of(missing_tests(tests, page)), "");
}

const Header header{
    "lora/core/a.hpp",
    "\nthrow ShapeError(op, \"x\", \"a multiple of \" + text(block) + \", the \"\n  \"size\", text(n));"};

std::string page_of(const std::string& rows) { return "| expected | cure |\n|---|---|\n" + rows; }

TEST(GuideCatches, AMessageThatThePageDoesNotHave) {
  const Violations found = undocumented_messages({header}, page_of("| `something else` | |\n"));
  EXPECT_EQ(found, Violations{"lora/core/a.hpp:2: \"a multiple of \" \", the size\""});
  EXPECT_EQ(undocumented_messages({header}, page_of("| `a multiple of …, the size` | |\n")), Violations{});
  EXPECT_EQ(undocumented_messages({header}, "| other |\n|---|\n| `a multiple of …` | |\n").size(), 1U);
}

TEST(GuideCatches, AMessageThatAFunctionThrows) {
  const Header refusing{"lora/io/a.hpp",
                        "cursor_.refuse(key, \"a power of two\", text(n));\nrefuse_other(1, \"2\", 3);"};
  EXPECT_EQ(undocumented_messages({refusing}, page_of("| `something else` | |\n")),
            Violations{"lora/io/a.hpp:1: \"a power of two\""});
  EXPECT_EQ(undocumented_messages({refusing}, page_of("| `a power of two` | |\n")), Violations{});
}

TEST(GuideCatches, AMessageThatNoHeaderThrows) {
  EXPECT_EQ(stale_messages({header}, page_of("| `a multiple of …` | |\n")), Violations{});
  EXPECT_EQ(stale_messages({header}, page_of("| `a multiple of …, the length` | |\n")).size(), 1U);
  EXPECT_EQ(stale_messages({header}, page_of("| `…` | |\n")).size(), 1U);
}

TEST(GuideCatches, APromiseWithoutATest) {
  const auto tests = tests_of("TYPED_TEST(Kept, ByAll) {}\nTEST(Kept,\n  ByOne) {}");
  EXPECT_EQ(tests, (std::set<std::string>{"Kept.ByAll", "Kept.ByOne"}));
  const std::string head = "| what | test |\n|---|---|\n";
  EXPECT_EQ(missing_tests(tests, head + "| a | `Kept.ByAll`, `Kept.ByOne` |\n"), Violations{});
  EXPECT_EQ(missing_tests(tests, head + "| a | `Kept.ByNone` |\n"), Violations{"Kept.ByNone"});
  EXPECT_EQ(missing_tests(tests, head + "| a | |\n").size(), 1U);
}

TEST(GuideCatches, ASampleThatIsNotRun) {
  EXPECT_EQ(samples_not_run("page", "text\n```cpp\n"), Violations{"page:2"});
  EXPECT_EQ(samples_not_run("page", "<!-- readme: setup=a -->\n```cpp\n"), Violations{"page:2"});
  EXPECT_EQ(samples_not_run("page", "<!-- readme: setup=a run -->\n```cpp\n"), Violations{});
}

}  // namespace
}  // namespace lora::testing::guide_rules_test
