// SPDX-License-Identifier: MIT
#include "lora/io/file_descriptor.hpp"

#include <fcntl.h>

#include <cerrno>
#include <gtest/gtest.h>
#include <string>
#include <utility>

namespace lora::file_descriptor_test {
namespace {

bool is_open(int descriptor) { return ::fcntl(descriptor, F_GETFD) != -1; }

TEST(FileDescriptor, ClosesOnceAtTheEndOfItsLastOwner) {
  const int number = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(number, 0);
  {
    FileDescriptor first(number);
    EXPECT_TRUE(first.open());
    FileDescriptor second(std::move(first));
    EXPECT_FALSE(first.open());  // NOLINT(bugprone-use-after-move): what a move leaves is part of the contract.
    FileDescriptor third;
    EXPECT_FALSE(third.open());
    third = std::move(second);
    EXPECT_EQ(third.get(), number);
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(FileDescriptor, ReleaseGivesTheFileAway) {
  const int number = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  {
    FileDescriptor owner(number);
    EXPECT_EQ(owner.release(), number);
  }
  EXPECT_TRUE(is_open(number));
  ::close(number);
}

TEST(ThrowIoError, NamesOperationFileAndCause) {
  try {
    throw_io_error("Load", "some/file", "a readable file", ENOENT);
  } catch (const IoError& error) {
    EXPECT_EQ(std::string(error.what()),
              "Load: \"some/file\": expected a readable file, got No such file or directory");
    return;
  }
  FAIL() << "no IoError";
}

}  // namespace
}  // namespace lora::file_descriptor_test
