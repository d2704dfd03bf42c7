// SPDX-License-Identifier: MIT
// The bytes of a GGUF file.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/little_endian.hpp"
#include "lora/io/gguf_type.hpp"
#include "lora/io/gguf_value.hpp"
#include "lora/io/text.hpp"

namespace lora::detail {

/// Assembles a file: metadata first, then the tensors' descriptions and, separately, their data.
class GgufEncoder {
 public:
  explicit GgufEncoder(std::size_t alignment) : alignment_(alignment) {}

  void add_metadata(std::string_view key, const GgufValue& value) {
    put_text(metadata_, key);
    const std::uint32_t type = gguf_type_of(value.index());
    put(metadata_, value.index() < gguf_scalar_types ? type : gguf_array_type);
    std::visit([&](const auto& held) { put_value(type, held); }, value);
    ++values_;
  }

  /// Describes a tensor of `bytes` bytes. The caller writes its data after head(), in the order of the descriptions,
  /// each padded to the alignment; or calls add_tensor instead.
  void describe_tensor(std::string_view name, std::span<const std::uint64_t> extents, GgufType type,
                       std::uint64_t bytes) {
    put_text(tensors_, name);
    put(tensors_, static_cast<std::uint32_t>(extents.size()));
    for (const std::uint64_t extent : extents) put(tensors_, extent);
    put(tensors_, static_cast<std::uint32_t>(type));
    put(tensors_, data_bytes_);
    data_bytes_ += gguf_padded(static_cast<std::size_t>(bytes), alignment_);
    ++count_;
  }

  /// Appends a tensor with `bytes` zero bytes of data; returns where to write the data, valid until the next call.
  [[nodiscard]] std::byte* add_tensor(std::string_view name, std::span<const std::uint64_t> extents, GgufType type,
                                      std::size_t bytes) {
    const std::size_t begin = data_.size();
    describe_tensor(name, extents, type, bytes);
    data_.resize(static_cast<std::size_t>(data_bytes_));
    return data_.data() + begin;
  }

  /// All that precedes the data, padded.
  [[nodiscard]] std::vector<std::byte> head() const {
    std::vector<std::byte> file;
    put(file, gguf_magic);
    put(file, std::uint32_t{3});
    put(file, count_);
    put(file, values_);
    file.insert(file.end(), metadata_.begin(), metadata_.end());
    file.insert(file.end(), tensors_.begin(), tensors_.end());
    file.resize(gguf_padded(file.size(), alignment_));
    return file;
  }

  [[nodiscard]] std::vector<std::byte> finish() && {
    std::vector<std::byte> file = head();
    file.insert(file.end(), data_.begin(), data_.end());
    return file;
  }

 private:
  template <class T>
  static void put(std::vector<std::byte>& target, T number) {
    std::array<std::byte, sizeof(T)> bytes;
    store_little_endian(number, bytes.data());
    target.insert(target.end(), bytes.begin(), bytes.end());
  }

  static void put_text(std::vector<std::byte>& target, std::string_view text) {
    put(target, std::uint64_t{text.size()});
    const auto bytes = std::as_bytes(std::span(text));
    target.insert(target.end(), bytes.begin(), bytes.end());
  }

  template <class T>
  void put_value(std::uint32_t type, const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      put_text(metadata_, value);
    } else if constexpr (std::is_same_v<T, bool>) {
      put(metadata_, std::uint8_t{value});
    } else if constexpr (std::is_arithmetic_v<T>) {
      put(metadata_, value);
    } else {
      put(metadata_, type);
      put(metadata_, std::uint64_t{value.size()});
      for (const auto& element : value) put_value<typename T::value_type>(type, element);
    }
  }

  std::size_t alignment_;
  std::uint64_t values_ = 0;
  std::uint64_t count_ = 0;
  std::uint64_t data_bytes_ = 0;
  std::vector<std::byte> metadata_;
  std::vector<std::byte> tensors_;
  std::vector<std::byte> data_;
};

}  // namespace lora::detail
