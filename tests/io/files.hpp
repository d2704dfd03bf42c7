// SPDX-License-Identifier: MIT
// What the tests of io/ share: a folder of their own, whole files as bytes, and files built by hand.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/little_endian.hpp"

namespace lora::testing {

/// A fresh folder, removed with all it holds at the end of the scope.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lora_io_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all, ignored);
    std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

  /// Names of all entries, hidden ones too.
  [[nodiscard]] std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename());
    return names;
  }

 private:
  std::filesystem::path path_;
};

[[nodiscard]] inline std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

[[nodiscard]] inline std::vector<std::byte> read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path.string());
  return bytes_of(std::string(std::istreambuf_iterator<char>(stream), {}));
}

inline void write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A safetensors file with this header text and that many bytes of data, 0, 1, 2, ...
[[nodiscard]] inline std::vector<std::byte> safetensors_bytes(std::string_view header, std::size_t data_bytes = 0) {
  const std::uint64_t length = header.size();
  std::vector<std::byte> file(sizeof(length) + header.size() + data_bytes);
  store_little_endian(length, file.data());
  std::copy(header.begin(), header.end(), reinterpret_cast<char*>(file.data()) + sizeof(length));
  for (std::size_t i = 0; i < data_bytes; ++i) file[sizeof(length) + header.size() + i] = static_cast<std::byte>(i);
  return file;
}

}  // namespace lora::testing
