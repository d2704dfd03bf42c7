// SPDX-License-Identifier: MIT
// A file's bytes, mapped read-only into memory instead of being read.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string_view>
#include <sys/mman.h>
#include <sys/stat.h>
#include <utility>

#include "lora/io/file_descriptor.hpp"

namespace lora {

/// The bytes of a regular file, mapped read-only; an empty file maps nothing. Movable; moving does not change the
/// bytes' address.
/// A file that is replaced by rename (as AtomicFile does) or removed stays readable through the map. A file that
/// another process shortens in place does not: touching pages past its new end raises SIGBUS.
/// Thread safety: any number of threads may read.
class MappedFile {
 public:
  MappedFile() = default;

  /// @throws IoError when the file cannot be opened or mapped, or is not a regular file.
  explicit MappedFile(const std::filesystem::path& path) {
    // Without O_NONBLOCK, opening a named pipe would wait for its writer for ever.
    const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.open()) throw_io_error(operation, path, "a readable file", errno);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) throw_io_error(operation, path, "a readable file", errno);
    if (!S_ISREG(status.st_mode)) {
      throw IoError(operation, path_text(path), "a regular file", "a folder, device, socket or pipe");
    }
    if (static_cast<std::uintmax_t>(status.st_size) > std::numeric_limits<std::size_t>::max()) {
      throw_io_error(operation, path, "a file that fits the address space", EFBIG);
    }
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return;
    void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address == MAP_FAILED) throw_io_error(operation, path, "to map the file", errno);
    bytes_ = {static_cast<const std::byte*>(address), size};
  }

  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  /// Valid while this object, or one it is moved to, lives.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// The same bytes as text.
  [[nodiscard]] std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  }

  /// Returns the memory of the pages wholly within `part` of bytes() to the system. They stay readable, and are read
  /// from the file again when touched. For a single pass over a file larger than memory.
  void release(std::span<const std::byte> part) const noexcept {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<std::uintptr_t>(part.data()) + page - 1) / page * page;
    const auto end = reinterpret_cast<std::uintptr_t>(part.data() + part.size()) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

 private:
  static constexpr std::string_view operation = "MappedFile";

  std::span<const std::byte> bytes_;
};

}  // namespace lora
