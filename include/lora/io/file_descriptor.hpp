// SPDX-License-Identifier: MIT
// An open POSIX file, closed at the end of its scope, and the error that reports why a system call failed.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// Owns a file descriptor; -1 when it owns none. Movable.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int descriptor) noexcept : descriptor_(descriptor) {}
  FileDescriptor(FileDescriptor&& other) noexcept : descriptor_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  [[nodiscard]] bool open() const noexcept { return descriptor_ >= 0; }
  [[nodiscard]] int get() const noexcept { return descriptor_; }
  [[nodiscard]] int release() noexcept { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_ = -1;
};

/// A path in messages, at full length.
[[nodiscard]] inline std::string path_text(const std::filesystem::path& path) {
  return in_quotes(path.native(), path.native().size());
}

/// @throws IoError that names the file and gives the system's message for `error_number` (an errno value).
[[noreturn]] inline void throw_io_error(std::string_view operation, const std::filesystem::path& path,
                                        std::string_view expected, int error_number) {
  throw IoError(operation, path_text(path), expected, std::generic_category().message(error_number));
}

}  // namespace lora
