// SPDX-License-Identifier: MIT
// Holds the tree to its rules, and each rule to what it is there for: a planted violation must be found.
#include "layout/house_rules.hpp"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
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
TEST(HouseRules, HeadersIgnoreCompilerFlags) { EXPECT_TRUE(none(flag_dependence(headers_of(root)))); }
TEST(HouseRules, NumbersAreFiniteByTheirBits) { EXPECT_TRUE(none(questions_of_fast_math(headers_of(root)))); }
TEST(HouseRules, NoClockThatJumps) { EXPECT_TRUE(none(clocks_that_jump(headers_of(root)))); }
TEST(HouseRules, CompiledLibraryHasWhatHeadersDeclare) {
  EXPECT_TRUE(none(uncompiled_templates(root, headers_of(root))));
}
TEST(HouseRules, NoPathOfAMachine) { EXPECT_TRUE(none(paths_of_a_machine(root))); }
TEST(HouseRules, SourcesBeginWithTheirLicence) { EXPECT_TRUE(none(sources_without_licence(root))); }
TEST(HouseRules, OnlyHeadersBelowInclude) { EXPECT_TRUE(none(strangers_among_headers(headers_of(root)))); }

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

TEST(HouseRulesCatch, AQuestionThatFastMathAnswersWrongly) {
  for (const char* line : {"if (std::isfinite(x))", "!isnan(x)", "std::isinf(x) ? 1 : 0"}) {
    EXPECT_EQ(questions_of_fast_math({header("lora/io/a.hpp", line)}).size(), 1U) << line;
  }
  for (const char* line : {"if (is_finite(x))", "// std::isfinite is always true", "is_nan(x)"}) {
    EXPECT_EQ(questions_of_fast_math({header("lora/io/a.hpp", line)}).size(), 0U) << line;
  }
}

TEST(HouseRulesCatch, AClockThatJumps) {
  for (const char* line : {"std::chrono::system_clock::now()", "using Clock = std::chrono::high_resolution_clock;",
                           "std::time(&now)", "srand(time(nullptr))", "gettimeofday(&now, nullptr)"}) {
    EXPECT_EQ(clocks_that_jump({header("lora/mpi/a.hpp", line)}).size(), 1U) << line;
  }
  for (const char* line : {"std::chrono::steady_clock::now()", "double time(int step);", "run_time(0)"}) {
    EXPECT_EQ(clocks_that_jump({header("lora/mpi/a.hpp", line)}).size(), 0U) << line;
  }
}

TEST_F(PlantedTree, StrangerAmongHeadersIsFound) {
  write("include/lora/core/a.hpp");
  write("include/lora/core/a.inc");
  write("include/lora/core/notes.txt");
  write("include/other/a.hpp");
  EXPECT_EQ(strangers_among_headers(headers_of(path_)).size(), 2U);
}

TEST_F(PlantedTree, SourceWithoutLicenceIsFound) {
  write("include/lora/core/a.hpp", "// SPDX-License-Identifier: MIT\n");
  write("src/core.cpp", "// See src/README.md.\n");
  EXPECT_EQ(sources_without_licence(path_), Violations{"src/core.cpp"});
}

TEST_F(PlantedTree, TemplateThatIsCompiledNowhereIsFound) {
  write("include/lora/core/a.hpp",
        "#if defined(LORA_COMPILED)\nextern template class A<float>;\nextern template void f<float>(int,\n"
        "                                      int);\n#endif\ntemplate <class T>\nclass B;\n");
  write("src/core.cpp", "template class A<float>;\ntemplate void f<float>(int, int);\n");
  EXPECT_TRUE(none(uncompiled_templates(path_, headers_of(path_))));
  write("src/core.cpp", "template class A<float>;\ntemplate class A<double>;\n");
  const Violations expected = {"lora/core/a.hpp: nothing in src/ instantiates void f<float>(int, int)",
                               "src/: no header declares class A<double> with extern template"};
  EXPECT_EQ(uncompiled_templates(path_, headers_of(path_)), expected);
}

TEST_F(PlantedTree, PathOfAMachineIsFound) {
  write("tests/run.sh", "data=/home/somebody/data\n");
  write("cmake/a.cmake", "# work/home/ is no such path, nor is https://host/home/page\n");
  EXPECT_EQ(paths_of_a_machine(path_).size(), 1U);
}

}  // namespace
}  // namespace lora::testing
