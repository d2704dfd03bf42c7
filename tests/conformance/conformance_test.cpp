// SPDX-License-Identifier: MIT
// The conformance program must be able to fail: it is run on corrupted copies of golden cases.
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

Run run_on(const std::string& folder) {
  std::vector<std::string> arguments(1);
  arguments.front() = folder;
  return run(arguments);
}

void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

// Writes a golden case with one text in its header replaced by another of the same length, or with its last byte
// changed.
void write_changed(const std::string& target, const std::string& name, const std::string& from, const std::string& to) {
  std::string original = LORA_GOLDEN_DIR;
  original.append("/").append(name).append(".safetensors");
  std::ifstream source(original, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(source), {});
  if (from.empty()) {
    bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 0x40);
  } else {
    ASSERT_EQ(from.size(), to.size());
    ASSERT_NE(bytes.find(from), std::string::npos);
    bytes.replace(bytes.find(from), from.size(), to);
  }
  std::string path = target;
  path.append("/").append(name).append(".safetensors");
  write_file(path, bytes);
}

TEST(Conformance, EveryGoldenCasePasses) {
  const auto result = run_on(LORA_GOLDEN_DIR);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_NE(result.output.find("130 passed, 0 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, AWrongNumberFails) {
  const TemporaryFolder folder;
  write_changed(folder.path().string(), "linear_9x13_r3_f64", "", "");
  const auto result = run_on(folder.path().string());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("FAIL  linear_9x13_r3_f64"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("0 passed, 1 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, WhatItDoesNotKnowFails) {
  const TemporaryFolder folder;
  write_changed(folder.path().string(), "linear_9x13_r3_f64", R"(\"lora_dropout\")", R"(\"lora_droppin\")");
  write_changed(folder.path().string(), "merged_linear_0", R"(\"kind\": \"merged_linear\")",
                R"(\"kind\": \"merged_lineur\")");
  write_changed(folder.path().string(), "embedding_10x6_r2", R"("y_merged")", R"("y_mergex")");
  const auto result = run_on(folder.path().string());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("unknown option lora_droppin"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("unknown kind merged_lineur"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("0 passed, 3 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, AWrongVerdictAndAnIncompleteAdapterFail) {
  const TemporaryFolder folder;
  const std::string root = folder.path().string();
  std::filesystem::create_directories(root + "/malformed");
  std::filesystem::create_directories(root + "/adapter");
  write_file(root + "/malformed/expect.json", R"({"short": "HeaderTooLarge"})");
  write_file(root + "/malformed/short.safetensors", "abc");
  write_file(root + "/adapter/adapter_config.json", "{}");
  const auto result = run_on(folder.path().string());
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.output.find("the verdict is HeaderTooSmall and should be HeaderTooLarge"), std::string::npos);
  EXPECT_NE(result.output.find("0 passed, 2 failed\n"), std::string::npos) << result.output;
}

TEST(Conformance, NothingToDoIsNoSuccess) {
  const TemporaryFolder folder;
  EXPECT_EQ(run_on(folder.path().string()).exit_code, 1);
  EXPECT_EQ(run_on(folder.path().string() + "/missing").exit_code, 2);
  EXPECT_EQ(run({}).exit_code, 2);
  EXPECT_EQ(run({"--help"}).exit_code, 0);
}

}  // namespace
}  // namespace lora
