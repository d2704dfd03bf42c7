// SPDX-License-Identifier: MIT
#include "lora/io/mapped_file.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <sys/stat.h>
#include <utility>

#include "io/files.hpp"
#include "support/sanitized.hpp"

namespace lora::mapped_file_test {
namespace {

using testing::bytes_of;
using testing::TemporaryFolder;
using testing::write_file;

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::string refusal(const std::filesystem::path& path) {
  try {
    const MappedFile file(path);
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

TEST(MappedFile, ShowsTheBytes) {
  const TemporaryFolder folder;
  write_file(folder / "file", std::string("a\0b", 3));
  EXPECT_TRUE(equal(MappedFile(folder / "file").bytes(), bytes_of(std::string("a\0b", 3))));
}

TEST(MappedFile, EmptyFileIsEmpty) {
  const TemporaryFolder folder;
  write_file(folder / "file", "");
  EXPECT_TRUE(MappedFile(folder / "file").bytes().empty());
}

TEST(MappedFile, OutlivesTheFilesName) {
  const TemporaryFolder folder;
  write_file(folder / "file", "content");
  const MappedFile file(folder / "file");
  std::filesystem::remove(folder / "file");
  EXPECT_TRUE(equal(file.bytes(), bytes_of("content")));
}

// What is promised of a file that another process shortens: what is still there can be read.
TEST(MappedFileDeathTest, OfAFileThatShrinksOnlyThePagesThatAreGoneEndTheProcess) {
  if (testing::sanitized) GTEST_SKIP() << "a sanitizer handles SIGBUS itself";
  const TemporaryFolder folder;
  const auto page = static_cast<std::size_t>(::getpagesize());
  write_file(folder / "file", std::string(3 * page, 'a'));
  const MappedFile file(folder / "file");
  std::filesystem::resize_file(folder / "file", page);
  EXPECT_EQ(file.bytes()[page - 1], std::byte{'a'});
  const volatile std::byte* const gone = file.bytes().data() + 2 * page;
  EXPECT_EXIT(static_cast<void>(*gone), ::testing::KilledBySignal(SIGBUS), "");
}

TEST(MappedFile, MovingKeepsTheAddress) {
  const TemporaryFolder folder;
  write_file(folder / "file", "content");
  MappedFile first(folder / "file");
  const auto* address = first.bytes().data();
  MappedFile second(std::move(first));
  EXPECT_TRUE(first.bytes().empty());  // NOLINT(bugprone-use-after-move)
  MappedFile third;
  third = std::move(second);
  EXPECT_EQ(third.bytes().data(), address);
  EXPECT_TRUE(equal(third.bytes(), bytes_of("content")));
}

TEST(MappedFile, SaysWhyAFileCannotBeOpened) {
  const TemporaryFolder folder;
  EXPECT_NE(refusal(folder / "missing").find("No such file"), std::string::npos);
  EXPECT_NE(refusal(folder / "missing").find("missing"), std::string::npos);
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  EXPECT_NE(refusal(folder.path()).find("expected a regular file"), std::string::npos);
  EXPECT_NE(refusal("/dev/zero").find("expected a regular file"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_NE(refusal(folder / "pipe").find("expected a regular file"), std::string::npos);
}

}  // namespace
}  // namespace lora::mapped_file_test
