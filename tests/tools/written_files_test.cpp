// SPDX-License-Identifier: MIT
// Where build/bin/lora writes, who may read it, and what is left when it is killed.
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <string>
#include <sys/wait.h>
#include <vector>

#include "support/sanitized.hpp"
#include "tools/faults.hpp"
#include "tools/tool.hpp"

namespace lora::written_files_test {
namespace {

using testing::Fault;
using testing::FaultyRun;
using testing::run_with_fault;
using testing::tool;
using Perms = std::filesystem::perms;

class WrittenFiles : public testing::ToolTest {
 protected:
  void write(const std::string& name, const std::string& text) const { testing::write_file(path(name), text); }
  void write_model_and_adapter() const {
    std::filesystem::create_directories(path("base"));
    write_tensors("base/model.safetensors", {{"a.weight", values(6, 8, 1)}});
    write("base/config.json", "{}");
    AdapterWeights<float> weights;
    weights.modules.emplace("a", module(6, 8, 5));
    write_adapter("adapter", {.lora = {.rank = 2, .alpha = 4}, .target_modules = {"a"}}, weights);
  }
  [[nodiscard]] Perms mode(const std::string& name) const {
    return std::filesystem::symlink_status(path(name)).permissions();
  }
  void set_mode(const std::string& name, unsigned mode) const { std::filesystem::permissions(path(name), Perms(mode)); }
};

TEST_F(WrittenFiles, WhatAKilledRunLeftOfAFileIsCleanedByTheNextOne) {
  write_tensors("base.safetensors", {{"a.weight", values(6, 8, 1)}}, Dtype::F16);
  const std::vector<std::string> dequantize{"dequantize", path("base.safetensors"), path("out.safetensors"), "--force"};
  int at = 0;
  for (;; at += testing::sanitized ? 5 : 1) {
    const auto end = run_with_fault(LORA_TOOL_PROGRAM, dequantize, FaultyRun{.fault = Fault::kill, .at = at});
    if (!end.traceable) GTEST_SKIP() << "programs cannot be traced here";
    if (!end.reached) break;
    expect_done({"dequantize", path("base.safetensors"), path("other.safetensors"), "--force"});
    ASSERT_TRUE(leftovers().empty()) << "call " << at << ": " << leftovers().front();
    ASSERT_LT(at, 200);
  }
  EXPECT_GT(at, 5);
}

TEST_F(WrittenFiles, AReplacedFileMayBeReadByThoseWhoCouldReadTheOldOne) {
  write_model_and_adapter();
  set_mode("base", 0755);
  set_mode("base/model.safetensors", 0600);
  set_mode("base/config.json", 0640);
  expect_done({"merge", path("base"), path("adapter"), path("base"), "--force"});
  EXPECT_EQ(mode("base/model.safetensors"), Perms(0600));
  EXPECT_EQ(mode("base/config.json"), Perms(0640));
  expect_done({"convert", path("adapter"), path("copy")});
  set_mode("copy/adapter_model.safetensors", 0600);
  set_mode("copy/adapter_config.json", 0604);
  expect_done({"convert", path("adapter"), path("copy"), "--force"});
  EXPECT_EQ(mode("copy/adapter_model.safetensors"), Perms(0600));
  EXPECT_EQ(mode("copy/adapter_config.json"), Perms(0604));
}

// here/link -> real/sub: the system reads here/link/.. as real, and not as here.
TEST_F(WrittenFiles, ForceRemovesTheShardsOfTheOldModelAndNoOtherFile) {
  write_model_and_adapter();
  const std::vector<std::string> shards{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
  const std::vector<std::string> others{"model-before.safetensors", "model-of-mine.safetensors", "model-1.txt"};
  for (const auto& name : shards) write("base/" + name, "old");
  for (const auto& name : others) write("base/" + name, "mine");
  expect_done({"merge", path("base"), path("adapter"), path("base"), "--force"});
  for (const auto& name : shards) EXPECT_FALSE(std::filesystem::exists(path("base/" + name))) << name;
  for (const auto& name : others) EXPECT_TRUE(std::filesystem::exists(path("base/" + name))) << name;
}

TEST_F(WrittenFiles, APathThroughALinkIsWhereTheSystemWritesIt) {
  write_model_and_adapter();
  std::filesystem::create_directories(path("here"));
  std::filesystem::create_directories(path("real/sub"));
  std::filesystem::create_symlink("../real/sub", path("here/link"));
  expect_done({"convert", path("adapter"), path("here/link/../out")});
  EXPECT_TRUE(std::filesystem::exists(path("real/out/adapter_config.json")));
  EXPECT_FALSE(std::filesystem::exists(path("here/out")));
  expect_done({"convert", path("adapter"), path("here/link/./new/../deep/out/")});
  EXPECT_TRUE(std::filesystem::exists(path("real/sub/deep/out/adapter_config.json")));
  std::filesystem::create_directories(path("here/out"));
  EXPECT_EQ(tool({"merge", path("base"), path("adapter"), path("here/link/.."), "--force"}).exit_code, 1);
  EXPECT_FALSE(std::filesystem::exists(path("here/model.safetensors")));
}

// The run died between its two renames, beside the folder that the link leads to.
TEST_F(WrittenFiles, WhatIsReadThroughALinkIsCompletedFirst) {
  write_model_and_adapter();
  std::filesystem::create_directories(path("here"));
  std::filesystem::create_directories(path("real/sub"));
  std::filesystem::create_symlink("../real/sub", path("here/link"));
  std::filesystem::create_directories(path("real/.lora-new-killed/old"));
  write("real/.lora-new-killed/lock", "");
  std::filesystem::rename(path("base"), path("real/.lora-new-killed/new"));
  std::filesystem::create_directories(path("real/.lora-new-killed/old/model"));
  expect_done({"inspect", path("here/link/../model")});
  EXPECT_TRUE(std::filesystem::exists(path("real/model/model.safetensors")));
}

TEST_F(WrittenFiles, AFolderThatIsNotThereYetMayEndInADot) {
  write_model_and_adapter();
  for (const std::string out : {"new/.", "other/folder/..", "third/./"}) {
    expect_done({"merge", path("base"), path("adapter"), path(out)});
    EXPECT_TRUE(std::filesystem::exists(path(out.substr(0, out.find('/')) + "/model.safetensors"))) << out;
  }
  expect_refused({"merge", path("base/model.safetensors"), path("adapter"), path("file/.")}, "the path of a file");
  expect_refused({"merge", path("base"), path("adapter"), "/."}, "the path of a file or folder");
}

TEST_F(WrittenFiles, AReportThatCannotBePrintedIsToldApartFromAnOutputThatIsNotThere) {
  write_model_and_adapter();
  const auto run_without_printing = [](const std::vector<std::string>& arguments) {
    return run_with_fault(LORA_TOOL_PROGRAM, arguments, FaultyRun{.standard_output = "/dev/full"}).exit_code;
  };
  EXPECT_EQ(run_without_printing({"merge", path("base"), path("adapter"), path("out")}), 3);
  EXPECT_TRUE(std::filesystem::exists(path("out/model.safetensors")));
  EXPECT_EQ(run_without_printing({"combine", path("adapter"), "-o", path("sum")}), 3);
  EXPECT_TRUE(std::filesystem::exists(path("sum/adapter_config.json")));
  EXPECT_EQ(run_without_printing({"merge", path("base"), path("adapter"), path("out")}), 1) << "the output exists";
  EXPECT_EQ(run_without_printing({"merge", "--help"}), 1);
  EXPECT_EQ(run_without_printing({"inspect", path("base")}), 1);
  EXPECT_NE(tool({"--help"}).output.find("3 done, but"), std::string::npos);
}

TEST_F(WrittenFiles, AnAdapterBesideTheMergedModelIsRefusedSinceTransformersWouldAddItAgain) {
  write_model_and_adapter();
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    std::filesystem::copy_file(path("adapter/") + name, path("base/") + name);
  }
  const auto before = testing::contents(path("base"));
  expect_refused({"merge", path("base"), path("base"), path("base"), "--force"}, "a folder without an adapter");
  EXPECT_TRUE(testing::contents(path("base")) == before);
  EXPECT_TRUE(leftovers().empty());
  expect_done({"merge", path("base"), path("base"), path("out")});
  EXPECT_FALSE(std::filesystem::exists(path("out/adapter_config.json")));
  EXPECT_FALSE(std::filesystem::exists(path("out/adapter_model.safetensors")));
  expect_done({"unmerge", path("base"), path("adapter"), path("base"), "--force"});
  // Without its weights transformers fails, or loads the base model that the configuration names.
  std::filesystem::remove(path("base/adapter_model.safetensors"));
  expect_refused({"merge", path("base"), path("adapter"), path("base"), "--force"}, "a folder without an adapter");
}

class WithoutPrivileges : public WrittenFiles {
 protected:
  static constexpr uid_t nobody = 65534;

  /// The exit code of the tool, run by a user who is not root.
  static int run(const std::vector<std::string>& arguments) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
      if (::geteuid() == 0 && (::setgid(nobody) != 0 || ::setuid(nobody) != 0)) ::_exit(126);
      const std::string program = LORA_TOOL_PROGRAM;
      std::vector<char*> words = {const_cast<char*>(program.c_str())};
      for (const auto& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
      words.push_back(nullptr);
      ::execv(program.c_str(), words.data());
      ::_exit(127);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  void give_away() const {
    if (::geteuid() != 0) return;
    EXPECT_EQ(::lchown(path().c_str(), nobody, nobody), 0);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path())) {
      EXPECT_EQ(::lchown(entry.path().c_str(), nobody, nobody), 0);
    }
  }
};

TEST_F(WithoutPrivileges, AFolderThatMayNotBeWrittenIsKeptBesideTheModel) {
  write_model_and_adapter();
  std::filesystem::create_directories(path("base/notes/old"));
  write("base/notes/mine.txt", "kept");
  write("base/notes/old/mine.txt", "kept too");
  set_mode("base/notes/old", 0500);
  set_mode("base/notes", 0555);
  give_away();
  const int code = run({"merge", path("base"), path("adapter"), path("base"), "--force"});
  if (code == 127) GTEST_SKIP() << "only root may run the tool here";
  EXPECT_EQ(code, 0);
  EXPECT_EQ(mode("base/notes"), Perms(0555));
  EXPECT_EQ(mode("base/notes/old"), Perms(0500));
  EXPECT_TRUE(std::filesystem::exists(path("base/notes/old/mine.txt")));
  EXPECT_TRUE(leftovers().empty()) << leftovers().front();
  set_mode("base/notes", 0755);
  set_mode("base/notes/old", 0755);
}

// Nobody may link to a file of root's that is not writable, so that it is copied.
TEST_F(WithoutPrivileges, AFileThatCannotBeLinkedIsCopiedWithItsPermissions) {
  std::ifstream protection("/proc/sys/fs/protected_hardlinks");
  if (::geteuid() != 0 || protection.get() != '1') GTEST_SKIP() << "all files can be linked here";
  write_model_and_adapter();
  write("base/notes.txt", "of root");
  give_away();
  EXPECT_EQ(::lchown(path("base/notes.txt").c_str(), 0, 0), 0);
  set_mode("base/notes.txt", 0604);
  const int code = run({"merge", path("base"), path("adapter"), path("base"), "--force"});
  if (code == 127) GTEST_SKIP() << "only root may run the tool here";
  EXPECT_EQ(code, 0);
  EXPECT_EQ(mode("base/notes.txt"), Perms(0604));
}

}  // namespace
}  // namespace lora::written_files_test
