// SPDX-License-Identifier: MIT
// What the structure-aware targets share: an input taken apart into choices, and a folder for files.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace lora::fuzzing {

/// The bytes of an input, taken from the front. After the end all of them are 0. Never take two in one call's
/// arguments: compilers differ in which comes first, and an input found with one would be another with the other.
class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

  [[nodiscard]] bool empty() const noexcept { return left_.empty(); }
  std::uint8_t byte() noexcept {
    if (left_.empty()) return 0;
    const std::uint8_t first = left_.front();
    left_ = left_.subspan(1);
    return first;
  }
  bool flag() noexcept { return (byte() & 1U) != 0; }
  /// One in sixteen is true, and none after the end: what breaks a structure must be rare for the rest to be reached.
  bool rarely() noexcept { return byte() % 16 == 15; }
  /// 0 ... count - 1
  std::size_t below(std::size_t count) noexcept { return byte() % count; }
  template <class Choices>
  auto one_of(const Choices& choices) noexcept {
    return choices[below(std::size(choices))];
  }
  /// A length, and as many bytes.
  std::string text() { return take(byte()); }
  /// Up to a byte, which is dropped.
  std::string text_until(std::uint8_t end) {
    std::size_t size = 0;
    while (size < left_.size() && left_[size] != end) ++size;
    std::string result = take(size);
    byte();
    return result;
  }
  std::string rest() { return take(left_.size()); }
  void fill(std::span<std::byte> bytes) noexcept {
    for (std::byte& value : bytes) value = std::byte{byte()};
  }

 private:
  std::string take(std::size_t size) {
    const auto taken = left_.first(std::min(size, left_.size()));
    left_ = left_.subspan(taken.size());
    return {taken.begin(), taken.end()};
  }

  std::span<const std::uint8_t> left_;
};

/// A folder of this process, gone at its end. TMPDIR says where.
class FuzzFolder {
 public:
  FuzzFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lora_fuzz_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  FuzzFolder(const FuzzFolder&) = delete;
  FuzzFolder& operator=(const FuzzFolder&) = delete;
  ~FuzzFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  /// Writes a file and returns its path.
  std::filesystem::path write(std::string_view name, std::string_view text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace lora::fuzzing
