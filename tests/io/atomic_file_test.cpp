// SPDX-License-Identifier: MIT
#include "lora/io/atomic_file.hpp"

#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>
#include <vector>

#include "io/files.hpp"

namespace lora::atomic_file_test {
namespace {

using testing::bytes_of;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

void replace(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

mode_t permissions(const std::filesystem::path& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return status.st_mode & 07777U;
}

/// No file of this process may grow beyond `bytes`, in its scope: what a full disk looks like.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

/// Root may write everywhere; in this scope we are nobody.
class WithoutPrivileges {
 public:
  WithoutPrivileges() : user_(::geteuid()) {
    constexpr uid_t nobody = 65534;
    if (user_ == 0 && ::seteuid(nobody) != 0) throw std::runtime_error("seteuid");
  }
  WithoutPrivileges(const WithoutPrivileges&) = delete;
  WithoutPrivileges& operator=(const WithoutPrivileges&) = delete;
  ~WithoutPrivileges() { EXPECT_EQ(::seteuid(user_), 0); }

 private:
  uid_t user_;
};

TEST(AtomicFile, CreatesAndReplaces) {
  const TemporaryFolder folder;
  replace(folder / "file", "first");
  EXPECT_EQ(read_file(folder / "file"), bytes_of("first"));
  replace(folder / "file", "");
  EXPECT_EQ(read_file(folder / "file"), bytes_of(""));
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"file"});
}

TEST(AtomicFile, TargetIsUntouchedUntilCommit) {
  const TemporaryFolder folder;
  write_file(folder / "file", "old");
  AtomicFile file(folder / "file");
  file.write(bytes_of("ne"));
  EXPECT_EQ(read_file(folder / "file"), bytes_of("old"));
  file.write(bytes_of("w"));
  file.commit();
  EXPECT_EQ(read_file(folder / "file"), bytes_of("new"));
}

TEST(AtomicFile, AnExceptionLeavesNothingBehind) {
  const TemporaryFolder folder;
  write_file(folder / "file", "old");
  try {
    AtomicFile file(folder / "file");
    file.write(bytes_of("new"));
    ASSERT_EQ(folder.entries().size(), 2U);
    throw std::runtime_error("producer failed");
  } catch (const std::runtime_error&) {
    EXPECT_EQ(folder.entries(), std::vector<std::string>{"file"});
    EXPECT_EQ(read_file(folder / "file"), bytes_of("old"));
  }
}

TEST(AtomicFile, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_file(folder / "file", "old");
  const std::vector<std::byte> large(10000);
  {
    const FileSizeLimit limit(4096);
    EXPECT_THROW(
        {
          AtomicFile file(folder / "file");
          file.write(large);
          file.commit();
        },
        IoError);
  }
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"file"});
  EXPECT_EQ(read_file(folder / "file"), bytes_of("old"));
}

TEST(AtomicFile, AFolderThatMayNotBeWrittenIsAnError) {
  const TemporaryFolder folder;
  write_file(folder / "file", "old");
  std::filesystem::permissions(folder.path(), std::filesystem::perms{0555});
  {
    const WithoutPrivileges nobody;
    try {
      replace(folder / "file", "new");
      ADD_FAILURE() << "no IoError";
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("Permission denied"), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(read_file(folder / "file"), bytes_of("old"));
}

TEST(AtomicFile, AMissingFolderIsAnError) {
  const TemporaryFolder folder;
  EXPECT_THROW(AtomicFile(folder / "missing/file"), IoError);
}

TEST(AtomicFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  EXPECT_THROW(AtomicFile(folder.path()), IoError);
  EXPECT_THROW(AtomicFile(folder.path() / ""), IoError);
  EXPECT_THROW(AtomicFile("/dev/full"), IoError);
  EXPECT_TRUE(folder.entries().empty());
}

TEST(AtomicFile, ARenameThatFailsLeavesNothingBehind) {
  const TemporaryFolder folder;
  AtomicFile file(folder / "name");
  file.write(bytes_of("new"));
  std::filesystem::create_directory(folder / "name");
  EXPECT_THROW(file.commit(), IoError);
  { const AtomicFile moved_on(folder / "other"); }
  EXPECT_THROW(file.write(bytes_of("more")), IoError);
}

TEST(AtomicFile, TemporaryFileIsGoneAfterAFailedCommit) {
  const TemporaryFolder folder;
  {
    AtomicFile file(folder / "name");
    std::filesystem::create_directory(folder / "name");
    EXPECT_THROW(file.commit(), IoError);
  }
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"name"});
}

TEST(AtomicFile, KeepsPermissionsOfTheOldFile) {
  const TemporaryFolder folder;
  write_file(folder / "file", "old");
  std::filesystem::permissions(folder / "file", std::filesystem::perms{0604});
  replace(folder / "file", "new");
  EXPECT_EQ(permissions(folder / "file"), 0604U);
}

TEST(AtomicFile, GivesANewFileWhatTheUmaskAllows) {
  const TemporaryFolder folder;
  const mode_t before = ::umask(027);
  replace(folder / "file", "new");
  ::umask(before);
  EXPECT_EQ(permissions(folder / "file"), 0640U);
}

TEST(AtomicFile, ReplacesASymbolicLinkAndNotWhatItNames) {
  const TemporaryFolder folder;
  write_file(folder / "blob", "blob");
  std::filesystem::create_symlink("blob", folder / "link");
  replace(folder / "link", "new");
  EXPECT_FALSE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(read_file(folder / "link"), bytes_of("new"));
  EXPECT_EQ(read_file(folder / "blob"), bytes_of("blob"));
}

TEST(AtomicFile, TakesTheLongestNameAFilesystemAllows) {
  const TemporaryFolder folder;
  const std::string name(255, 'n');
  replace(folder / name, "new");
  EXPECT_EQ(read_file(folder / name), bytes_of("new"));
}

TEST(AtomicFile, WritersOfOneFileDoNotMix) {
  const TemporaryFolder folder;
  std::vector<std::thread> threads;
  for (char letter = 'a'; letter < 'e'; ++letter) {
    threads.emplace_back([&, letter] {
      for (int i = 0; i < 10; ++i) replace(folder / "file", std::string(5000, letter));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto content = read_file(folder / "file");
  EXPECT_EQ(content, std::vector<std::byte>(5000, content.at(0)));
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"file"});
}

// A reader that opens the temporary file before its permissions are narrowed may read all that is written later.
TEST(AtomicFile, NobodyElseReadsWhatIsToReplaceAPrivateFile) {
  const TemporaryFolder folder;
  write_file(folder / "file", "old");
  std::filesystem::permissions(folder / "file", std::filesystem::perms{0640});
  AtomicFile file(folder / "file");
  for (const auto& name : folder.entries()) {
    if (name == "file") continue;
    EXPECT_EQ(permissions(folder / name), 0600U) << name;
  }
  file.write(bytes_of("new"));
  file.commit();
  EXPECT_EQ(permissions(folder / "file"), 0640U);
}

}  // namespace
}  // namespace lora::atomic_file_test
