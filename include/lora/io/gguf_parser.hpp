// SPDX-License-Identifier: MIT
// GGUF files: metadata and tensors, checked against every rule of the format.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/little_endian.hpp"
#include "lora/io/gguf_type.hpp"
#include "lora/io/gguf_value.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// A tensor in a parsed file.
struct GgufTensor {
  std::string name;                      ///< "blk.0.attn_q.weight", ...
  GgufType type = GgufType::F32;         ///< of the elements
  std::array<std::uint64_t, 4> extents;  ///< the first one is contiguous, like ggml's `ne`; missing ones are 1
  std::span<const std::byte> bytes;      ///< points into the file's bytes

  /// extents[0] * extents[1] * ..., which does not overflow.
  [[nodiscard]] std::uint64_t size() const noexcept { return extents[0] * extents[1] * extents[2] * extents[3]; }
  /// Rows of extents[0] elements; they stand one after the other in `bytes`.
  [[nodiscard]] std::uint64_t rows() const noexcept { return extents[1] * extents[2] * extents[3]; }
};

/// A parsed file. Valid as long as the bytes it was parsed from.
struct GgufContents {
  std::uint32_t version = 3;        ///< of the format
  GgufMetadata metadata;            ///< every value, by key
  std::vector<GgufTensor> tensors;  ///< in the file's order
};

namespace detail {

/// A position in a file that never passes its end.
class GgufCursor {
 public:
  GgufCursor(std::span<const std::byte> bytes, std::string_view label) : bytes_(bytes), label_(label) {}

  [[nodiscard]] std::size_t position() const noexcept { return position_; }
  [[nodiscard]] std::size_t remaining() const noexcept { return bytes_.size() - position_; }

  [[noreturn]] void refuse(std::string_view what, std::string_view expected, std::string_view got) const {
    std::string argument(label_);
    argument.append(", byte ").append(std::to_string(position_)).append(", ").append(what);
    throw FormatError("parse_gguf", argument, expected, got);
  }

  /// Throws unless `count` items of at least `item_bytes` each fit into the rest of the file.
  void require(std::string_view what, std::uint64_t count, std::size_t item_bytes) const {
    if (count <= remaining() / item_bytes) return;
    refuse(
        what, "at most the " + std::to_string(remaining()) + " bytes left",
        std::to_string(count) + (item_bytes == 1 ? " bytes" : " of " + std::to_string(item_bytes) + " bytes or more"));
  }

  template <class T>
  [[nodiscard]] T number(std::string_view what) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    require(what, 1, sizeof(T));
    const T value = load_little_endian<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return value;
  }

  [[nodiscard]] bool boolean(std::string_view what) {
    const auto value = number<std::uint8_t>(what);
    if (value > 1) refuse(what, "a bool, 0 or 1", std::to_string(value));
    return value == 1;
  }

  /// The bytes of a string.
  [[nodiscard]] std::string_view raw_text(std::string_view what) {
    const auto length = number<std::uint64_t>(what);
    require(what, length, 1);
    const std::string_view value(reinterpret_cast<const char*>(bytes_.data() + position_),
                                 static_cast<std::size_t>(length));
    position_ += value.size();
    return value;
  }

  [[nodiscard]] std::string_view text(std::string_view what) {
    const std::string_view value = raw_text(what);
    if (utf8_prefix(value) == value.size()) return value;
    position_ -= value.size();
    refuse(what, "UTF-8", in_quotes(value));
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view label_;
  std::size_t position_ = 0;
};

class GgufParser {
 public:
  GgufParser(std::span<const std::byte> bytes, std::string_view label) : bytes_(bytes), cursor_(bytes, label) {}

  [[nodiscard]] GgufContents parse() && {
    read_version();
    const auto tensors = cursor_.number<std::uint64_t>("number of tensors");
    const auto values = cursor_.number<std::uint64_t>("number of metadata values");
    // A value takes at least a key, a type and a byte; a tensor a name, a number of extents, a type and an offset.
    cursor_.require("metadata values", values, 8 + 1 + 4 + 1);
    for (std::uint64_t i = 0; i < values; ++i) read_metadata();
    find_alignment();
    cursor_.require("tensors", tensors, 8 + 4 + 4 + 8);
    for (std::uint64_t i = 0; i < tensors; ++i) read_tensor();
    locate_data();
    return std::move(contents_);
  }

 private:
  void read_version() {
    const auto magic = cursor_.number<std::uint32_t>("magic");
    if (magic != gguf_magic) cursor_.refuse("magic", "\"GGUF\"", "other bytes");
    contents_.version = cursor_.number<std::uint32_t>("version");
    if (contents_.version == 2 || contents_.version == 3) return;
    const bool swapped = (contents_.version & 0xFFFFU) == 0 && contents_.version != 0;
    cursor_.refuse("version", "2 or 3, little-endian",
                   swapped ? "a big-endian file" : std::to_string(contents_.version));
  }

  void read_metadata() {
    const std::string_view key = cursor_.text("metadata key");
    if (key.empty()) cursor_.refuse("metadata key", "a key", "an empty one");
    const std::string what = "value of " + in_quotes(key);
    const auto type = cursor_.number<std::uint32_t>(what);
    GgufValue value = type == gguf_array_type ? array(what) : scalar(type, what);
    if (!contents_.metadata.emplace(std::string(key), std::move(value)).second) {
      cursor_.refuse("metadata key", "every key once", in_quotes(key) + " twice");
    }
  }

  /// Calls read.operator()<T>() with the C++ type of a scalar's number.
  template <class Read>
  [[nodiscard]] GgufValue dispatch(std::uint32_t type, std::string_view what, const Read& read) {
    switch (type) {
      case 0:
        return read.template operator()<std::uint8_t>();
      case 1:
        return read.template operator()<std::int8_t>();
      case 2:
        return read.template operator()<std::uint16_t>();
      case 3:
        return read.template operator()<std::int16_t>();
      case 4:
        return read.template operator()<std::uint32_t>();
      case 5:
        return read.template operator()<std::int32_t>();
      case 6:
        return read.template operator()<float>();
      case 7:
        return read.template operator()<bool>();
      case gguf_string_type:
        return read.template operator()<std::string>();
      case 10:
        return read.template operator()<std::uint64_t>();
      case 11:
        return read.template operator()<std::int64_t>();
      case 12:
        return read.template operator()<double>();
      default:
        cursor_.refuse(what, "a type of metadata, 0 to 12, and no array in an array", std::to_string(type));
    }
  }

  template <class T>
  [[nodiscard]] T element(std::string_view what) {
    if constexpr (std::is_same_v<T, std::string>) {
      return std::string(cursor_.raw_text(what));
    } else if constexpr (std::is_same_v<T, bool>) {
      return cursor_.boolean(what);
    } else {
      return cursor_.number<T>(what);
    }
  }

  [[nodiscard]] GgufValue scalar(std::uint32_t type, std::string_view what) {
    return dispatch(type, what, [&]<class T>() -> GgufValue { return element<T>(what); });
  }

  [[nodiscard]] GgufValue array(std::string_view what) {
    const auto type = cursor_.number<std::uint32_t>(what);
    const auto count = cursor_.number<std::uint64_t>(what);
    return dispatch(type, what, [&]<class T>() -> GgufValue {
      cursor_.require(what, count, std::is_same_v<T, std::string> ? sizeof(std::uint64_t) : sizeof(T));
      std::vector<T> values;
      values.reserve(static_cast<std::size_t>(count));
      for (std::uint64_t i = 0; i < count; ++i) values.push_back(element<T>(what));
      return values;
    });
  }

  void find_alignment() {
    const auto found = contents_.metadata.find("general.alignment");
    if (found == contents_.metadata.end()) return;
    const auto* alignment = std::get_if<std::uint32_t>(&found->second);
    if (alignment == nullptr || !is_gguf_alignment(*alignment)) {
      cursor_.refuse("general.alignment", "a power of two up to 65536, as u32",
                     alignment == nullptr ? "another type" : std::to_string(*alignment));
    }
    alignment_ = *alignment;
  }

  void read_tensor() {
    GgufTensor tensor;
    const std::string_view name = cursor_.text("name of a tensor");
    if (name.size() >= gguf_name_limit || name.find('\0') != std::string_view::npos) {
      cursor_.refuse("name of a tensor", "less than 64 bytes, none of them 0", in_quotes(name));
    }
    if (!names_.insert(name).second) cursor_.refuse("name of a tensor", "every name once", in_quotes(name) + " twice");
    tensor.name = name;
    const std::string what = "tensor " + in_quotes(name);
    tensor.extents = extents(what);
    tensor.type = read_type(what);
    const std::uint64_t bytes = data_bytes_of(tensor, what);
    const auto offset = cursor_.number<std::uint64_t>(what + ", offset");
    if (offset != data_bytes_) {
      cursor_.refuse(what + ", offset", std::to_string(data_bytes_) + ", where the tensor before it ends, aligned",
                     std::to_string(offset));
    }
    begins_.push_back(data_bytes_);
    ends_.push_back(data_bytes_ + static_cast<std::size_t>(bytes));
    data_bytes_ = padded(ends_.back(), what);
    contents_.tensors.push_back(std::move(tensor));
  }

  [[nodiscard]] GgufType read_type(const std::string& what) {
    const auto number = cursor_.number<std::uint32_t>(what + ", type");
    const auto type = gguf_type_of_number(number);
    if (!type) cursor_.refuse(what + ", type", "the number of one of " + gguf_type_names(), std::to_string(number));
    return *type;
  }

  /// The bytes of a tensor, which are no more than the file has. Rows are whole blocks.
  [[nodiscard]] std::uint64_t data_bytes_of(const GgufTensor& tensor, const std::string& what) const {
    const GgufTypeInfo info = info_of(tensor.type);
    if (tensor.extents[0] % info.block_size != 0) {
      cursor_.refuse(what + ", extents",
                     "rows of a multiple of " + std::to_string(info.block_size) + " elements, the block size of " +
                         std::string(info.name),
                     std::to_string(tensor.extents[0]));
    }
    const std::size_t room = data_bytes_ <= bytes_.size() ? bytes_.size() - data_bytes_ : 0;
    const std::uint64_t blocks = tensor.size() / info.block_size;
    if (blocks > room / info.block_bytes) {
      cursor_.refuse(what, "at most the " + std::to_string(room) + " bytes that the file has for it",
                     std::to_string(tensor.size()) + " elements of " + std::string(info.name));
    }
    return blocks * info.block_bytes;
  }

  [[nodiscard]] std::array<std::uint64_t, 4> extents(const std::string& what) {
    std::array<std::uint64_t, 4> result{1, 1, 1, 1};
    const auto count = cursor_.number<std::uint32_t>(what + ", number of extents");
    if (count > result.size()) cursor_.refuse(what + ", number of extents", "at most 4", std::to_string(count));
    constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    std::uint64_t size = 1;
    for (std::uint32_t i = 0; i < count; ++i) {
      result[i] = cursor_.number<std::uint64_t>(what + ", extents");
      if (result[i] > limit || (result[i] != 0 && size > limit / result[i])) {
        cursor_.refuse(what + ", extents", "a number of elements below 2^63", "more");
      }
      // A zero must not hide an overflow of the others.
      size *= std::max<std::uint64_t>(result[i], 1);
    }
    return result;
  }

  [[nodiscard]] std::size_t padded(std::size_t size, std::string_view what) const {
    if (size <= std::numeric_limits<std::size_t>::max() - alignment_) return gguf_padded(size, alignment_);
    cursor_.refuse(what, "an end below 2^64", "one beyond it");
  }

  /// The padding after the last tensor may be missing: llama.cpp does not check it, and not every writer writes it.
  void locate_data() {
    if (contents_.tensors.empty()) return;
    const std::size_t begin = padded(cursor_.position(), "data");
    const std::size_t available = begin <= bytes_.size() ? bytes_.size() - begin : 0;
    for (std::size_t i = 0; i < ends_.size(); ++i) {
      if (ends_[i] > available) {
        cursor_.refuse("data of tensor " + in_quotes(contents_.tensors[i].name),
                       std::to_string(ends_[i]) + " bytes from byte " + std::to_string(begin) + " on",
                       std::to_string(available));
      }
      contents_.tensors[i].bytes =
          ends_[i] == begins_[i] ? bytes_.first(0) : bytes_.subspan(begin + begins_[i], ends_[i] - begins_[i]);
    }
  }

  std::span<const std::byte> bytes_;
  GgufCursor cursor_;
  GgufContents contents_;
  std::set<std::string_view> names_;
  std::vector<std::size_t> begins_;
  std::vector<std::size_t> ends_;
  std::size_t alignment_ = gguf_default_alignment;
  std::size_t data_bytes_ = 0;
};

}  // namespace detail

/// Parses a whole GGUF file (version 2 or 3, little-endian) in the caller's memory, which must outlive the tensors'
/// bytes. `label` names it in errors. Nothing is allocated beyond a small multiple of `bytes.size()`, whatever the file
/// claims. Bytes after the tensors are ignored, as in llama.cpp. Strings in the metadata are taken as they are, as
/// there: a token of a vocabulary may be a part of a character. Pure and reentrant.
/// @throws FormatError naming the byte and the item: a different magic or version; counts, lengths, extents or offsets
/// that do not fit the file; text that is not UTF-8; duplicate keys or names; an alignment that is no power of two up
/// to 65536; tensors that overlap or leave gaps; types that GgufType does not have; rows that are not whole blocks;
/// std::bad_alloc. Source: ggml-org/ggml, docs/gguf.md, and the checks of its gguf.cpp.
[[nodiscard]] inline GgufContents parse_gguf(std::span<const std::byte> bytes,
                                             std::string_view label = "bytes in memory") {
  return detail::GgufParser(bytes, label).parse();
}

}  // namespace lora
