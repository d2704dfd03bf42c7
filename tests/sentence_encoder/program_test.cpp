// SPDX-License-Identifier: MIT
// build/bin/sentence_encoder as a person uses it, on a model and a table that are small enough for seconds.
#include "support/program.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <vector>

#include "examples/temporary_folder.hpp"
#include "sentence_encoder/small_model.hpp"

#ifdef LORA_MPIEXEC
#include "support/mpirun.hpp"
#endif

namespace program_test {
namespace {

using examples::sentence_encoder::testing::SmallModel;
using examples::testing::TemporaryFolder;
using lora::testing::ProgramRun;
using Words = std::vector<std::string>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class SentenceEncoderProgram : public ::testing::Test {
 protected:
  static constexpr std::array<const char*, 6> words = {"cards", "dice", "mail", "router", "shell", "disk"};

  SentenceEncoderProgram() {
    nlohmann::json pieces = nlohmann::json::array();
    for (int i = 0; i < 6; ++i) pieces.push_back({"<reserved" + std::to_string(i) + ">", 0});
    for (const char* word : words) pieces.push_back({"\u2581" + std::string(word), -1});
    SmallModel::trainable(static_cast<lora::Index>(pieces.size())).write(folder);
    folder.write("vocab.json", pieces.dump());
    std::string table;
    for (std::size_t row = 0; row < 240; ++row) {
      const char* label = row % 3 == 0 ? "games" : row % 3 == 1 ? "net" : "admin";
      table.append(label).append("\t").append(words[row % 3 * 2 + row / 3 % 2]);
      table.append(" ").append(words[row / 6 % 6]).append("\tgroup").append(std::to_string(row)).append("\n");
    }
    folder.write("table.tsv", table);
  }

  [[nodiscard]] std::string path(const std::string& name) const { return (folder / name).string(); }

  [[nodiscard]] Words train(const std::string& output, const Words& more = {}) const {
    Words all = {"train", "--quick", "--model-dir", folder.path().string(), "--data", path("table.tsv")};
    all.insert(all.end(), {"--output-dir", path(output), "--jobs", "1"});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  static ProgramRun run(const Words& arguments) {
    return lora::testing::run_program(LORA_SENTENCE_ENCODER_PROGRAM, arguments);
  }

  /// The labels that `classify` answers for these texts, and its whole output.
  [[nodiscard]] ProgramRun classify(const Words& more) const {
    Words all = {"classify", "--model-dir", folder.path().string(), "--adapter", path("out/adapter")};
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  }

  [[nodiscard]] nlohmann::json results(const std::string& output) const {
    return nlohmann::json::parse(bytes_of(folder / output / "results.json"));
  }

  TemporaryFolder folder;
};

TEST_F(SentenceEncoderProgram, TrainsAndLeavesAReportResultsAndAnAdapter) {
  const auto trained = run(train("out"));
  ASSERT_EQ(trained.exit_code, 0) << trained.output;
  for (const char* part : {"majority class", "frozen encoder, linear head", "LoRA, r = 8", "full fine-tuning"}) {
    EXPECT_TRUE(contains(trained.output, part)) << part << "\n" << trained.output;
  }
  EXPECT_FALSE(contains(trained.output, "FAILED")) << trained.output;
  const auto json = results("out");
  EXPECT_EQ(json["checks"].size(), 4U);
  for (const auto& check : json["checks"]) EXPECT_TRUE(check["passed"]) << check.dump();
  EXPECT_TRUE(contains(bytes_of(folder / "out/report.html"), "Wrong with confidence"));
  for (const char* file : {"adapter_config.json", "adapter_model.safetensors", "labels.json"}) {
    EXPECT_TRUE(std::filesystem::exists(folder / "out/adapter" / file)) << file;
  }
}

TEST_F(SentenceEncoderProgram, ComparesTheFormatsOfFrozenWeights) {
  const auto trained = run(train("out", {"--weights", "bf16"}));
  ASSERT_EQ(trained.exit_code, 0) << trained.output;
  EXPECT_TRUE(contains(trained.output, "LoRA, r = 8, bf16")) << trained.output;
  const auto json = results("out");
  ASSERT_EQ(json["methods"].size(), 3U);
  const auto bytes = [&](std::size_t m) { return json["methods"][m]["cost"]["frozen_weight_bytes"].get<double>(); };
  EXPECT_GT(bytes(1), 0);
  EXPECT_LE(bytes(1), bytes(0));
  EXPECT_EQ(json["checks"].size(), 5U);
  for (const auto& check : json["checks"]) EXPECT_TRUE(check["passed"]) << check.dump();
}

TEST_F(SentenceEncoderProgram, RefusesAFormatWhoseBlocksDoNotFitTheModel) {
  const auto refused = run(train("out", {"--weights", "nf4"}));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_TRUE(contains(refused.output, "a multiple of 64, the block size of NF4")) << refused.output;
}

TEST_F(SentenceEncoderProgram, ClassifiesTheSameMergedAndUnmerged) {
  ASSERT_EQ(run(train("out")).exit_code, 0);
  const auto unmerged = classify({"cards dice", "router mail", ""});
  const auto merged = classify({"--merged", "cards dice", "router mail", ""});
  ASSERT_EQ(unmerged.exit_code, 0) << unmerged.output;
  ASSERT_EQ(merged.exit_code, 0) << merged.output;
  EXPECT_TRUE(contains(unmerged.output, "3 texts, ")) << unmerged.output;
  EXPECT_TRUE(contains(unmerged.output, "ms each (median), unmerged")) << unmerged.output;
  EXPECT_TRUE(contains(merged.output, "ms each (median), merged")) << merged.output;
  std::istringstream left(unmerged.output);
  std::istringstream right(merged.output);
  std::string before;
  std::string after;
  for (const char* text : {"cards dice", "router mail", ""}) {
    ASSERT_TRUE(std::getline(left, before) && std::getline(right, after));
    EXPECT_TRUE(before.ends_with(std::string("\t") + text)) << before;
    EXPECT_EQ(before.substr(0, before.find('\t')), after.substr(0, after.find('\t')));
  }
}

TEST_F(SentenceEncoderProgram, ClassifyRefusesLabelsThatDoNotFitTheHead) {
  ASSERT_EQ(run(train("out")).exit_code, 0);
  std::ofstream(folder / "out/adapter/labels.json") << R"(["games", "net"])";
  const auto refused = classify({"cards"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_TRUE(contains(refused.output, "3 labels")) << refused.output;
}

TEST_F(SentenceEncoderProgram, SaysWhereTheModelComesFromWhenItIsMissing) {
  const auto refused = run({"train", "--quick", "--model-dir", path("nowhere"), "--data", path("table.tsv")});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_TRUE(contains(refused.output, "fetch_model.sh")) << refused.output;
}

/// Starts the program and kills it, with no chance to clean up, once `file` exists. Returns the signal it died of.
int kill_when_there(const Words& arguments, const std::filesystem::path& file) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    std::freopen("/dev/null", "w", stdout);
    std::string program = LORA_SENTENCE_ENCODER_PROGRAM;
    std::vector<char*> all = {program.data()};
    for (const auto& argument : arguments) all.push_back(const_cast<char*>(argument.c_str()));
    all.push_back(nullptr);
    ::execv(program.c_str(), all.data());
    ::_exit(127);
  }
  int status = 0;
  while (!std::filesystem::exists(file) && ::waitpid(child, &status, WNOHANG) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST_F(SentenceEncoderProgram, KilledAndResumedLeavesTheBytesOfAnUninterruptedRun) {
  const Words more = {"--epochs", "20"};
  ASSERT_EQ(run(train("whole", more)).exit_code, 0);
  // Full fine-tuning trains first: LoRA's run has not begun then.
  const auto checkpoint = folder / "out/runs/full_rate0.0001_seed1/checkpoint.safetensors";
  ASSERT_EQ(kill_when_there(train("out", more), checkpoint), SIGKILL);
  ASSERT_FALSE(std::filesystem::exists(folder / "out/results.json"));
  const auto resumed = run(train("out", {"--epochs", "20", "--resume"}));
  ASSERT_EQ(resumed.exit_code, 0) << resumed.output;
  for (const char* file : {"runs/full_rate0.0001_seed1/best.safetensors",
                           "runs/lora_r8_rate0.001_seed1/best.safetensors", "adapter/adapter_model.safetensors"}) {
    EXPECT_FALSE(bytes_of(folder / "whole" / file).empty()) << file;
    EXPECT_EQ(bytes_of(folder / "whole" / file), bytes_of(folder / "out" / file)) << file;
  }
}

#ifdef LORA_MPIEXEC

ProgramRun run_as_ranks(const std::vector<Words>& commands, int ranks_of_each) {
  Words all;
  for (const auto& command : commands) {
    if (&command != &commands.front()) all.emplace_back(":");
    all.insert(all.end(), {"-n", std::to_string(ranks_of_each), LORA_SENTENCE_ENCODER_PROGRAM});
    all.insert(all.end(), command.begin(), command.end());
  }
  return lora::testing::run_under_mpirun(all);
}

// The first loss is a mean of 32 of the start's, before any update: a text's answer does not depend on its batch, and
// only the order of that sum differs, by at most 32 roundings.
TEST_F(SentenceEncoderProgram, OnTwoRanksDoesWhatOneProcessDoes) {
  ASSERT_EQ(run(train("alone")).exit_code, 0);
  const auto job = run_as_ranks({train("out")}, 2);
  ASSERT_EQ(job.exit_code, 0) << job.output;
  EXPECT_TRUE(contains(job.output, "at 64 ranks")) << job.output;
  EXPECT_TRUE(contains(bytes_of(folder / "out/report.html"), "Between the ranks"));
  const auto alone = results("alone");
  const auto shared = results("out");
  for (std::size_t m = 0; m < 2; ++m) {
    const auto& one = alone["methods"][m]["tried"][0]["losses"];
    const auto& two = shared["methods"][m]["tried"][0]["losses"];
    ASSERT_EQ(one.size(), two.size());
    ASSERT_GE(one.size(), 1U);
    const double loss = one[0][1];
    EXPECT_NEAR(two[0][1].get<double>(), loss, 32 * std::numeric_limits<float>::epsilon() * loss);
  }
  for (const auto& check : shared["checks"]) EXPECT_TRUE(check["passed"]) << check.dump();
  EXPECT_EQ(classify({"cards dice"}).exit_code, 0);
}

TEST_F(SentenceEncoderProgram, RanksOfDifferentOptionsEndTheJobAndSayWhy) {
  const auto job = run_as_ranks({train("out", {"--seed", "1"}), train("out", {"--seed", "2"})}, 1);
  EXPECT_NE(job.exit_code, 0);
  EXPECT_NE(job.exit_code, lora::testing::job_hung);
  EXPECT_TRUE(contains(job.output, "seed 1")) << job.output;
  EXPECT_TRUE(contains(job.output, "seed 2")) << job.output;
}

// The ranks used to average the gradients of different models.
TEST_F(SentenceEncoderProgram, RanksOfDifferentModelsEndTheJobAndSayWhy) {
  std::filesystem::create_directory(folder / "other");
  for (const char* file : {"model.json", "vocab.json"}) {
    std::filesystem::copy(folder / file, folder / "other" / file);
  }
  std::string shard = bytes_of(folder / "shard");
  shard[0] = static_cast<char>(shard[0] ^ 1);
  folder.write("other/shard", shard);
  auto other = train("out");
  std::ranges::replace(other, folder.path().string(), path("other"));
  const auto job = run_as_ranks({train("out"), other}, 1);
  EXPECT_NE(job.exit_code, 0);
  EXPECT_NE(job.exit_code, lora::testing::job_hung);
  EXPECT_TRUE(contains(job.output, "require_agreement: model: expected '")) << job.output;
}

#endif

}  // namespace
}  // namespace program_test
