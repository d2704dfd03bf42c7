// SPDX-License-Identifier: MIT
// Writes a file so that others see all of it or nothing.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <sys/stat.h>
#include <utility>

#include "lora/io/file_descriptor.hpp"

namespace lora {

/// Collects a new file's bytes under a temporary name in the target's folder; commit() flushes them to the disk and
/// renames. A temporary file that is to replace another may be read by its owner alone. Until then, and after any
/// error, the target is unchanged. Destruction without commit() removes the temporary file. One thread at a time per
/// object. Any number of objects may target one path; the last commit wins.
class AtomicFile {
 public:
  /// Creates the temporary file. It gets the permissions of an existing target when it takes its place, or has those
  /// that the umask gives a new file.
  /// A symbolic link at `path` is replaced by the file, not followed.
  /// @throws IoError when the folder is not writable, or `path` is a folder, device, socket or pipe.
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    struct stat status {};
    const bool exists = ::stat(path_.c_str(), &status) == 0;
    if (path_.filename().empty() || (exists && !S_ISREG(status.st_mode))) {
      throw IoError(operation, path_text(path_), "the path of a regular file", "a folder, device, socket or pipe");
    }
    if (exists) old_mode_ = status.st_mode & 0777U;
    create_temporary(exists ? 0600 : 0666);
  }

  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() { discard(); }

  /// Appends. @throws IoError, for example when the disk is full.
  void write(std::span<const std::byte> bytes) {
    // Linux writes at most 0x7ffff000 bytes in one call.
    constexpr std::size_t largest_write = std::size_t{1} << 30;
    while (!bytes.empty()) {
      const auto written = ::write(file_.get(), bytes.data(), std::min(bytes.size(), largest_write));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw_io_error(operation, path_, "to write the file", errno);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }

  /// Replaces the target with the file. Must be the last call. @throws IoError; the target is unchanged then.
  void commit() {
    if (old_mode_ && ::fchmod(file_.get(), *old_mode_) != 0) {
      throw_io_error(operation, path_, "to give the new file the old one's permissions", errno);
    }
    if (::fsync(file_.get()) != 0) throw_io_error(operation, path_, "to flush the file to the disk", errno);
    if (::close(file_.release()) != 0) throw_io_error(operation, path_, "to close the file", errno);
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
      throw_io_error(operation, path_, "to rename the temporary file", errno);
    }
    temporary_.clear();
    sync_folder();
  }

 private:
  static constexpr std::string_view operation = "AtomicFile";

  [[nodiscard]] std::filesystem::path folder() const { return path_.has_parent_path() ? path_.parent_path() : "."; }

  void create_temporary(mode_t mode) {
    // O_EXCL makes the name exclusive; a name left by a killed process or taken by another thread costs one turn.
    constexpr int turns = 10000;
    const std::string prefix = ".lora-" + std::to_string(::getpid()) + "-";
    for (int turn = 0; turn < turns; ++turn) {
      temporary_ = folder() / (prefix + std::to_string(turn) + ".tmp");
      file_ = FileDescriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
      if (file_.open()) return;
      if (errno != EEXIST) break;
    }
    const int error_number = errno;
    temporary_.clear();
    throw_io_error(operation, path_, "to create a temporary file in the same folder", error_number);
  }

  // The new file is complete and in place by now. This asks that the rename itself survive a power cut; if the
  // filesystem cannot sync folders, or the folder is writable but not readable, the file is saved nevertheless.
  void sync_folder() const noexcept {
    try {
      const FileDescriptor directory(::open(folder().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (directory.open()) static_cast<void>(::fsync(directory.get()));
    } catch (const std::bad_alloc&) {
      return;
    }
  }

  void discard() noexcept {
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty if there is none to remove
  FileDescriptor file_;
  std::optional<mode_t> old_mode_;  // of the target that is replaced
};

}  // namespace lora
