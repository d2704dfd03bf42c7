// Holds the tree to its rules, and each rule to what it is there for: a planted violation must be found.
#include "layout/house_rules.hpp"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <set>
#include <string>
#include <vector>

namespace lora::testing {
namespace {

const fs::path root = LORA_SOURCE_DIR;

/// Success, or a failure that lists every violation.
::testing::AssertionResult none(const Violations& violations) {
  if (violations.empty()) return ::testing::AssertionSuccess();
  auto failure = ::testing::AssertionFailure() << violations.size() << " violations";
  for (const auto& violation : violations) failure << "\n  " << violation;
  return failure;
}

/// A folder that is empty at first and gone in the end.
class PlantedTree : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = fs::path(::testing::TempDir()) / (std::string("lora_") + test->name());
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  void TearDown() override { fs::remove_all(path_); }

  void write(const std::string& name, const std::string& text = "") const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << text;
  }

  fs::path path_;
};

Header header(const std::string& path, const std::string& text) { return {path, text}; }

TEST(HouseRules, HeadersExist) { EXPECT_FALSE(headers_of(root).empty()); }
TEST(HouseRules, IncludesLookDown) { EXPECT_TRUE(none(upward_includes(headers_of(root)))); }
TEST(HouseRules, IncludesHaveNoCycle) { EXPECT_TRUE(none(include_cycles(headers_of(root)))); }
TEST(HouseRules, IncludedHeadersExist) { EXPECT_TRUE(none(missing_includes(headers_of(root)))); }
TEST(HouseRules, OtherLibrariesStayInTheirFolders) { EXPECT_TRUE(none(foreign_includes(headers_of(root)))); }
TEST(HouseRules, HeadersAreShort) { EXPECT_TRUE(none(long_headers(headers_of(root)))); }
TEST(HouseRules, HeadersIgnoreCompilerFlags) { EXPECT_TRUE(none(flag_dependence(headers_of(root)))); }
TEST(HouseRules, EveryHeaderHasItsTest) { EXPECT_TRUE(none(headers_without_test(root, headers_of(root)))); }
TEST(HouseRules, OnlyHeadersBelowInclude) { EXPECT_TRUE(none(strangers_among_headers(headers_of(root)))); }
TEST(HouseRules, NothingElseAtTheTop) { EXPECT_TRUE(none(strangers_at_top(names_at_top(root)))); }
TEST(HouseRules, TheTopIsComplete) { EXPECT_TRUE(none(missing_at_top(root))); }

TEST(HouseRulesCatch, AnIncludeOfAHigherFolder) {
  EXPECT_EQ(upward_includes({header("lora/core/a.hpp", "#include <vector>\n#include \"lora/weight/b.hpp\"\n")}).size(),
            1U);
  EXPECT_EQ(upward_includes({header("lora/io/a.hpp", "  #  include <lora/mpi/b.hpp>\n")}).size(), 1U);
  EXPECT_EQ(upward_includes({header("lora/weight/a.hpp", "#include \"lora/core/b.hpp\"\n")}).size(), 0U);
  EXPECT_EQ(upward_includes({header("lora/weight/a.hpp", "#include \"lora/weight/b.hpp\"\n")}).size(), 0U);
}

TEST(HouseRulesCatch, AnIncludeOfAnUmbrella) {
  EXPECT_EQ(upward_includes({header("lora/model/a.hpp", "#include \"lora/lora.hpp\"\n")}).size(), 1U);
  EXPECT_EQ(upward_includes({header("lora/io.hpp", "#include \"lora/lora.hpp\"\n")}).size(), 0U);
}

TEST(HouseRulesCatch, AFolderWithoutAPlace) { EXPECT_EQ(upward_includes({header("lora/utils/a.hpp", "")}).size(), 1U); }

TEST(HouseRulesCatch, ACycleInOneFolder) {
  const std::vector<Header> ring = {header("lora/core/a.hpp", "#include \"lora/core/b.hpp\"\n"),
                                    header("lora/core/b.hpp", "#include \"lora/core/c.hpp\"\n"),
                                    header("lora/core/c.hpp", "#include \"lora/core/a.hpp\"\n"),
                                    header("lora/core/d.hpp", "#include \"lora/core/a.hpp\"\n")};
  EXPECT_EQ(include_cycles(ring).size(), 3U);
}

TEST(HouseRulesCatch, AnIncludeOfNothing) {
  EXPECT_EQ(missing_includes({header("lora/core/a.hpp", "#include \"lora/core/b.hpp\"\n")}).size(), 1U);
}

TEST(HouseRulesCatch, AForeignLibrary) {
  EXPECT_EQ(foreign_includes({header("lora/core/a.hpp", "#include <nlohmann/json.hpp>\n")}).size(), 1U);
  EXPECT_EQ(foreign_includes({header("lora/io/a.hpp", "#include <mpi.h>\n")}).size(), 1U);
  EXPECT_EQ(foreign_includes({header("lora/io/a.hpp", "#include <nlohmann/json.hpp>\n")}).size(), 0U);
}

TEST(HouseRulesCatch, ALongHeader) {
  EXPECT_EQ(long_headers({header("lora/core/a.hpp", std::string(max_header_lines + 1, '\n'))}).size(), 1U);
  EXPECT_EQ(long_headers({header("lora/core/a.hpp", std::string(max_header_lines, '\n'))}).size(), 0U);
}

TEST(HouseRulesCatch, AConditionalOnFlags) {
  for (const char* line : {"#ifdef NDEBUG\n", "#ifndef NDEBUG\n", "#if defined(EIGEN_USE_BLAS)\n", "# if __AVX2__\n",
                           "#if 1\n#elif defined(__FMA__)\n", "#ifdef EIGEN_VECTORIZE_AVX512\n"}) {
    EXPECT_EQ(flag_dependence({header("lora/kernels/a.hpp", line)}).size(), 1U) << line;
  }
  for (const char* line :
       {"#if defined(__x86_64__)\n", "#ifdef __SSE2__\n", "// not #ifdef NDEBUG\n", "#ifdef __clang__\n"}) {
    EXPECT_EQ(flag_dependence({header("lora/kernels/a.hpp", line)}).size(), 0U) << line;
  }
}

TEST_F(PlantedTree, HeaderWithoutTestIsFound) {
  write("include/lora/core/a.hpp");
  write("include/lora/core/b.hpp");
  write("include/lora/lora.hpp");
  write("tests/core/a_test.cpp");
  const Violations expected = {"lora/core/b.hpp: no tests/core/b_test.cpp"};
  EXPECT_EQ(headers_without_test(path_, headers_of(path_)), expected);
}

TEST_F(PlantedTree, StrangerAmongHeadersIsFound) {
  write("include/lora/core/a.hpp");
  write("include/lora/core/a.inc");
  write("include/lora/core/notes.txt");
  write("include/other/a.hpp");
  EXPECT_EQ(strangers_among_headers(headers_of(path_)).size(), 2U);
}

TEST_F(PlantedTree, MissingEntryAtTheTopIsFound) {
  for (const char* name : {"include", "tests", "bench", "examples", "cmake", "CMakeLists.txt", "CMakePresets.json",
                           "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", ".clang-format"}) {
    write(name);
  }
  const Violations expected = {".clang-tidy: missing"};
  EXPECT_EQ(missing_at_top(path_), expected);
}

TEST_F(PlantedTree, WithoutGitTheTopIsWhatStandsThere) {
  write("README.md");
  write("build/x");
  const std::set<std::string> expected = {"README.md", "build"};
  EXPECT_EQ(names_at_top(path_), expected);
}

TEST(HouseRulesCatch, AStrangerAtTheTop) {
  const Violations expected = {"notes.md: no place at the top of the tree"};
  EXPECT_EQ(strangers_at_top({"README.md", ".clang-format", "build", "notes.md"}), expected);
}

}  // namespace
}  // namespace lora::testing
