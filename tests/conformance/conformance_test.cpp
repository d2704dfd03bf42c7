// The conformance program must be able to fail: copies of golden cases with something wrong in them.
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "support/program.hpp"

namespace lora {
namespace {

using testing::TemporaryFolder;

using Run = testing::ProgramRun;

Run run(const std::vector<std::string>& arguments) { return testing::run_program(LORA_CONFORMANCE_PROGRAM, arguments); }

Run run_on(const std::filesystem::path& folder) { return run({folder.string()}); }

// A golden case with one text in its header replaced by another of the same length, or with its last byte changed.
void write_changed(const std::filesystem::path& target, const std::string& name, const std::string& from,
                   const std::string& to) {
  std::ifstream source(std::string(LORA_GOLDEN_DIR) + "/" + name + ".safetensors", std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(source), {});
  if (from.empty()) {
    bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 0x40);
  } else {
    ASSERT_EQ(from.size(), to.size());
    ASSERT_NE(bytes.find(from), std::string::npos);
    bytes.replace(bytes.find(from), from.size(), to);
  }
  std::ofstream(target / (name + ".safetensors"), std::ios::binary) << bytes;
}

TEST(Conformance, EveryGoldenCasePasses) {
  const auto result = run({LORA_GOLDEN_DIR});
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_NE(result.output.find("109 passed, 0 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, AWrongNumberFails) {
  const TemporaryFolder folder;
  write_changed(folder.path(), "linear_9x13_r3_f64", "", "");
  const auto result = run_on(folder.path());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("FAIL  linear_9x13_r3_f64"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("0 passed, 1 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, WhatItDoesNotKnowFails) {
  const TemporaryFolder folder;
  write_changed(folder.path(), "linear_9x13_r3_f64", R"(\"lora_dropout\")", R"(\"lora_droppin\")");
  write_changed(folder.path(), "merged_linear_0", R"(\"kind\": \"merged_linear\")", R"(\"kind\": \"merged_lineur\")");
  write_changed(folder.path(), "embedding_10x6_r2", R"("y_merged")", R"("y_mergex")");
  const auto result = run_on(folder.path());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("unknown option lora_droppin"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("unknown kind merged_lineur"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("0 passed, 3 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, AWrongVerdictAndAnIncompleteAdapterFail) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() / "malformed");
  std::ofstream(folder.path() / "malformed/expect.json") << R"({"short": "HeaderTooLarge"})";
  std::ofstream(folder.path() / "malformed/short.safetensors") << "abc";
  std::filesystem::create_directory(folder.path() / "adapter");
  std::ofstream(folder.path() / "adapter/adapter_config.json") << "{}";
  const auto result = run_on(folder.path());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("the verdict is HeaderTooSmall and should be HeaderTooLarge"), std::string::npos);
  EXPECT_NE(result.output.find("0 passed, 2 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, NothingToDoIsNoSuccess) {
  const TemporaryFolder folder;
  EXPECT_EQ(run_on(folder.path()).exit_code, 1);
  EXPECT_EQ(run_on(folder.path() / "missing").exit_code, 2);
  EXPECT_EQ(run({}).exit_code, 2);
  EXPECT_EQ(run({"--help"}).exit_code, 0);
}

}  // namespace
}  // namespace lora
