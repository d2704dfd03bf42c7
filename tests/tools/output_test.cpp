// SPDX-License-Identifier: MIT
// What is at the output of build/bin/lora when it fails or is killed: all of the old, or all of the new.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <sys/file.h>
#include <sys/stat.h>
#include <vector>

#include "support/sanitized.hpp"
#include "tools/faults.hpp"
#include "tools/tool.hpp"

namespace lora::output_test {
namespace {

using testing::contents;
using testing::Fault;
using testing::FaultyRun;
using testing::run_with_fault;
using testing::tool;

using Files = std::map<std::string, std::vector<std::byte>>;

// Temporary folders are in memory meanwhile, if there is room: these tests flush thousands of files.
class FoldersInMemory {
 public:
  FoldersInMemory() {
    std::error_code error;
    const auto space = std::filesystem::space("/dev/shm", error);
    if (const char* before = ::getenv(variable)) before_ = before;
    if (!error && space.available > (std::uintmax_t{16} << 20) && ::access("/dev/shm", W_OK) == 0) {
      ::setenv(variable, "/dev/shm", 1);
    }
  }
  FoldersInMemory(const FoldersInMemory&) = delete;
  FoldersInMemory& operator=(const FoldersInMemory&) = delete;
  ~FoldersInMemory() { before_.empty() ? ::unsetenv(variable) : ::setenv(variable, before_.c_str(), 1); }

 private:
  static constexpr const char* variable = "TMPDIR";
  std::string before_;
};

class OutputOfTool : private FoldersInMemory, public testing::ToolTest {
 protected:
  // Two shards, each with a weight that the adapter changes.
  void write_base(const std::string& name) const {
    std::filesystem::create_directories(path(name));
    write_tensors(name + "/model-1.safetensors", {{"a.weight", values(6, 8, 1)}});
    write_tensors(name + "/model-2.safetensors", {{"b.weight", values(5, 8, 2)}, {"other", values(30, 30, 3)}});
    write(name + "/model.safetensors.index.json",
          R"({"weight_map": {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors",)"
          R"( "other": "model-2.safetensors"}})");
    write(name + "/config.json", R"({"model_type": "llama"})");
    write(name + "/tokenizer.model", "pieces");
    write(name + "/.gitattributes", "*.safetensors");
    write(name + "/pytorch_model.bin", "weights that are not merged");
    std::filesystem::create_directories(path(name + "/notes"));
    write(name + "/notes/mine.txt", "kept");
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path(name)) << text; }
  void write_adapter_of_both() const {
    AdapterWeights<float> weights;
    weights.modules.emplace("a", module(6, 8, 5));
    weights.modules.emplace("b", module(5, 8, 7));
    write_adapter("adapter", {.lora = {.rank = 2, .alpha = 4}, .target_modules = {"a", "b"}}, weights);
  }
  [[nodiscard]] std::vector<std::string> onto_itself() const {
    return {"merge", path("base"), path("adapter"), path("base"), "--force"};
  }
  // Old and new contents of a folder that is merged onto itself.
  void prepare() {
    write_base("base");
    write_adapter_of_both();
    old_ = contents(path("base"));
    std::filesystem::copy(path("base"), path("copy"), std::filesystem::copy_options::recursive);
    expect_done({"merge", path("copy"), path("adapter"), path("copy"), "--force"});
    new_ = contents(path("copy"));
    ASSERT_NE(old_.at("model-1.safetensors"), new_.at("model-1.safetensors"));
    ASSERT_NE(old_.at("model-2.safetensors"), new_.at("model-2.safetensors"));
    std::filesystem::remove_all(path("copy"));
  }
  void restore() const {
    if (std::filesystem::exists(path("base")) && contents(path("base")) == old_) return;
    std::filesystem::remove_all(path("base"));
    for (const auto& [name, bytes] : old_) {
      std::filesystem::create_directories((folder.path() / "base" / name).parent_path());
      std::ofstream(path("base/" + name), std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
  }
  void expect_all_old_or_all_new(const std::string& when) const {
    ASSERT_TRUE(std::filesystem::exists(path("base"))) << when;
    const Files now = contents(path("base"));
    EXPECT_TRUE(now == old_ || now == new_) << when;
  }
  // Kills, or fails, every call in turn; with a sanitizer, whose programs take long to start, every seventh.
  void expect_whole_after_every(Fault fault, bool without_exchange) {
    prepare();
    int at = 0;
    for (;; at += testing::sanitized ? 7 : 1) {
      const std::string when = "call " + std::to_string(at);
      const auto end = run_with_fault(LORA_TOOL_PROGRAM, onto_itself(),
                                      FaultyRun{.fault = fault, .at = at, .without_exchange = without_exchange});
      if (!end.traceable) GTEST_SKIP() << "programs cannot be traced here";
      if (!end.reached) {
        ASSERT_EQ(end.exit_code, 0);
        break;
      }
      // The next call of any command finishes an exchange that was made in steps.
      if (without_exchange) tool({"inspect", path("base")});
      expect_all_old_or_all_new(when);
      if (fault == Fault::no_space) {
        EXPECT_TRUE(end.exit_code == 0 || end.exit_code == 1) << when << ": " << end.exit_code;
        // A sanitizer's own calls fail as well, and then it ends the program.
        if (!testing::sanitized) {
          EXPECT_EQ(contents(path("base")) == new_, end.exit_code == 0) << when;
        }
        // The next run would clean these in calls that fail again.
        for (const auto& name : leftovers()) std::filesystem::remove_all(path(name));
      }
      restore();
      if (HasFatalFailure() || at > 500) return;
    }
    EXPECT_GT(at, 20);
    EXPECT_TRUE(contents(path("base")) == new_);
    EXPECT_TRUE(leftovers().empty()) << leftovers().front();
  }

  Files old_;
  Files new_;
};

TEST_F(OutputOfTool, KilledAtAnyCallAMergeOntoItselfLeavesAllShardsOldOrAllNew) {
  expect_whole_after_every(Fault::kill, false);
}

TEST_F(OutputOfTool, KilledAtAnyCallTheNextRunFinishesAnExchangeInSteps) {
  expect_whole_after_every(Fault::kill, true);
}

TEST_F(OutputOfTool, WhateverCallFailsAMergeOntoItselfLeavesAllShardsOldOrAllNew) {
  if (!testing::can_fail_calls) GTEST_SKIP() << "calls cannot be failed here";
  expect_whole_after_every(Fault::no_space, false);
}

TEST_F(OutputOfTool, WhateverCallFailsAnExchangeInStepsLeavesAllShardsOldOrAllNew) {
  if (!testing::can_fail_calls) GTEST_SKIP() << "calls cannot be failed here";
  expect_whole_after_every(Fault::no_space, true);
}

TEST_F(OutputOfTool, AFullDiskLeavesTheOldShardsAndNothingBeside) {
  prepare();
  const auto before = folder.entries().size();
  for (const rlim_t limit : {100U, 300U, 1500U, 3500U}) {
    const auto end = run_with_fault(LORA_TOOL_PROGRAM, onto_itself(), FaultyRun{.largest_file = limit});
    EXPECT_EQ(end.exit_code, 1) << limit;
    EXPECT_TRUE(contents(path("base")) == old_) << limit;
    EXPECT_EQ(folder.entries().size(), before) << limit;
  }
}

TEST_F(OutputOfTool, AFreshOutputThatFailsLeavesNothing) {
  write_base("base");
  write_adapter_of_both();
  std::filesystem::copy_file(path("base/model-2.safetensors"), path("one.safetensors"));
  const auto before = folder.entries().size();
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"merge", path("base"), path("adapter"), path("out/of/many")},
        std::vector<std::string>{"merge", path("one.safetensors"), path("adapter"), path("out.safetensors"), "--linear",
                                 "x"},
        std::vector<std::string>{"combine", path("adapter"), path("adapter"), "-o", path("sum")},
        std::vector<std::string>{"convert", path("adapter"), path("out.gguf"), "--architecture", "llama",
                                 "--keep-names"}}) {
    const auto end = run_with_fault(LORA_TOOL_PROGRAM, arguments, FaultyRun{.largest_file = 120});
    EXPECT_EQ(end.exit_code, 1) << arguments.back();
    EXPECT_EQ(folder.entries().size(), before) << arguments.back();
  }
}

TEST_F(OutputOfTool, WhatAKilledRunLeftIsCleanedByTheNextOneAndTheWorkOfALivingRunIsNot) {
  write_base("base");
  write_adapter_of_both();
  for (const std::string name : {".lora-new-killed", ".lora-new-living"}) {
    std::filesystem::create_directories(path(name + "/new"));
    write(name + "/lock", "");
    write(name + "/new/model.safetensors", "half");
  }
  std::filesystem::create_directories(path(".lora-new-emptyy"));
  const int living = ::open(path(".lora-new-living/lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(::flock(living, LOCK_EX | LOCK_NB), 0);
  expect_done({"merge", path("base"), path("adapter"), path("out")});
  EXPECT_EQ(leftovers(), (std::vector<std::string>{".lora-new-living"}));
  ::close(living);
  expect_done({"merge", path("base"), path("adapter"), path("out"), "--force"});
  EXPECT_TRUE(leftovers().empty());
}

TEST_F(OutputOfTool, AFolderIsWrittenAsAFolderWithWhatGoesWithAModel) {
  write_base("base");
  write("base/adapter_config.json", "{}");
  write_adapter_of_both();
  expect_done({"merge", path("base"), path("adapter"), path("new/folders/out/")});
  std::vector<std::string> names;
  for (const auto& [name, bytes] : contents(path("new/folders/out"))) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"config.json", "model-1.safetensors", "model-2.safetensors",
                                             "model.safetensors.index.json", "tokenizer.model"}));
  std::filesystem::create_directory(path("single"));
  write_tensors("single/model.safetensors", {{"a.weight", values(6, 8, 1)}, {"b.weight", values(5, 8, 2)}});
  write("single/config.json", "{}");
  expect_done({"merge", path("single"), path("adapter"), path("out")});
  EXPECT_TRUE(std::filesystem::is_regular_file(path("out/model.safetensors")));
  EXPECT_TRUE(std::filesystem::is_regular_file(path("out/config.json")));
}

TEST_F(OutputOfTool, ForceReplacesACheckpointAndKeepsEverythingElse) {
  prepare();
  std::filesystem::permissions(path("base"), std::filesystem::perms(0750));
  std::filesystem::create_directory_symlink(path("base"), path("link"));
  expect_done({"merge", path("base"), path("adapter"), path("link"), "--force"});
  EXPECT_TRUE(std::filesystem::is_symlink(path("link")));
  EXPECT_TRUE(contents(path("base")) == new_);
  EXPECT_EQ(std::filesystem::status(path("base")).permissions(), std::filesystem::perms(0750));

  std::filesystem::create_directory(path("precious"));
  write("precious/thesis.txt", "years");
  expect_refused({"merge", path("base"), path("adapter"), path("precious"), "--force"}, "a folder of other things");
  expect_refused({"merge", path("base"), path("adapter"), path("adapter/adapter_config.json"), "--force"},
                 "a path for a folder");
  expect_refused({"merge", path("base/model-1.safetensors"), path("adapter"), path("precious"), "--force"},
                 "a path for a file");
  EXPECT_TRUE(std::filesystem::exists(path("precious/thesis.txt")));
}

TEST_F(OutputOfTool, StandardOutputThatCannotBeWrittenIsAnError) {
  write_base("base");
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"inspect", path("base")}, std::vector<std::string>{"inspect", path("base"), "--json"},
        std::vector<std::string>{"--help"}}) {
    const auto end = run_with_fault(LORA_TOOL_PROGRAM, arguments, FaultyRun{.standard_output = "/dev/full"});
    EXPECT_EQ(end.exit_code, 1) << arguments.back();
  }
}

TEST_F(OutputOfTool, AFifoOrADeviceIsRefusedWithoutWaiting) {
  std::filesystem::create_directory(path("fifo"));
  ASSERT_EQ(::mkfifo(path("fifo/model.safetensors.index.json").c_str(), 0600), 0);
  expect_refused({"inspect", path("fifo")}, "a regular file");
  std::filesystem::create_directory(path("device"));
  std::filesystem::create_symlink("/dev/zero", path("device/model.safetensors.index.json"));
  expect_refused({"inspect", path("device")}, "a regular file");
  std::filesystem::create_directory(path("config"));
  ASSERT_EQ(::mkfifo(path("config/adapter_config.json").c_str(), 0600), 0);
  expect_refused({"inspect", path("config")}, "a regular file");
}

TEST_F(OutputOfTool, AnIndexNestedDeeplyOrWithAWrongValueIsRefused) {
  std::filesystem::create_directory(path("base"));
  write("base/model.safetensors.index.json",
        R"({"weight_map": {"a": )" + std::string(100000, '[') + std::string(100000, ']') + "}}");
  expect_refused({"inspect", path("base")}, "the name of a file beside the index");
  write("base/model.safetensors.index.json", R"({"weight_map": {"a": [1]}})");
  expect_refused({"inspect", path("base")}, "the name of a file beside the index");
}

}  // namespace
}  // namespace lora::output_test
