// SPDX-License-Identifier: MIT
// The header of a safetensors file: parsed, and checked against every rule of the format.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "lora/core/little_endian.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/safetensors_error.hpp"
#include "lora/io/safetensors_json.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// Bytes of the length field at the start of a file.
inline constexpr std::size_t safetensors_length_bytes = 8;
/// Longest header the format allows, in bytes.
inline constexpr std::uint64_t safetensors_header_cap = 100'000'000;

/// A verified header: tensors cover the data without gaps or overlaps, and bytes match shapes.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;                     ///< in the order of their data
  std::vector<std::size_t> by_name;                          ///< positions in `tensors`, by ascending name
  std::map<std::string, std::string, std::less<>> metadata;  ///< the strings under `__metadata__`
  std::size_t data_begin = 0;                                ///< position in the file of the first byte of data
};

/// Bytes of a tensor: product(shape) * bits / 8. `argument` names the tensor in errors.
/// Multiplies in the order of the shape, as the reference implementation does, so that [n, m, 0] can overflow.
/// @throws SafetensorsError validation_overflow, misaligned_slice. Does not allocate otherwise.
[[nodiscard]] inline std::uint64_t tensor_bytes(Dtype dtype, std::span<const std::uint64_t> shape,
                                                std::string_view argument) {
  std::uint64_t bits = 1;
  const auto multiply = [&](std::uint64_t factor) {
    if (__builtin_mul_overflow(bits, factor, &bits)) {
      throw SafetensorsError(SafetensorsErrorKind::validation_overflow, argument, "at most 2^64 - 1 bits",
                             "a shape with more");
    }
  };
  for (const std::uint64_t extent : shape) multiply(extent);
  multiply(bits_of(dtype));
  if (bits % 8 != 0) {
    throw SafetensorsError(SafetensorsErrorKind::misaligned_slice, argument,
                           "elements of " + std::string(name_of(dtype)) + " that fill whole bytes",
                           std::to_string(bits) + " bits");
  }
  return bits / 8;
}

namespace detail {

[[nodiscard]] inline std::string tensor_argument(std::string_view label, std::string_view name) {
  return std::string(label).append(": tensor ").append(in_quotes(name));
}

/// The header's JSON text. Checks what comes before JSON.
[[nodiscard]] inline std::string_view header_text(std::span<const std::byte> file, std::string_view label) {
  using enum SafetensorsErrorKind;
  if (file.size() < safetensors_length_bytes) {
    throw SafetensorsError(header_too_small, label, "8 bytes with the length of the header",
                           "a file of " + std::to_string(file.size()) + " bytes");
  }
  const auto length = load_little_endian<std::uint64_t>(file.data());
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (length > safetensors_header_cap) {
    if (text.starts_with("version https://git-lfs.github.com/spec/")) {
      throw SafetensorsError(header_too_large, label, "a safetensors file",
                             "a Git LFS pointer, the text that stands for a file not downloaded yet; fetch it with "
                             "`git lfs pull` in that repository, or download the file itself");
    }
    throw SafetensorsError(header_too_large, label, "a header of at most 100000000 bytes",
                           std::to_string(length) + " bytes");
  }
  if (length > file.size() - safetensors_length_bytes) {
    throw SafetensorsError(invalid_header_length, label, "a header within the file",
                           std::to_string(length) + " bytes of header in a file of " + std::to_string(file.size()));
  }
  const std::string_view header = text.substr(safetensors_length_bytes, static_cast<std::size_t>(length));
  const std::size_t valid = utf8_prefix(header);
  if (valid != header.size()) {
    throw SafetensorsError(invalid_header, label, "a header in UTF-8",
                           "an invalid sequence at byte " + std::to_string(safetensors_length_bytes + valid));
  }
  return header;
}

/// Sorts by data, since the format allows any order, and by name, to find tensors and duplicate keys.
inline void sort_entries(SafetensorsHeader& header, std::string_view label) {
  auto& tensors = header.tensors;
  std::stable_sort(tensors.begin(), tensors.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  const auto name = [&](std::size_t i) -> const std::string& { return tensors[i].name; };
  header.by_name.resize(tensors.size());
  std::iota(header.by_name.begin(), header.by_name.end(), std::size_t{0});
  std::sort(header.by_name.begin(), header.by_name.end(),
            [&](std::size_t a, std::size_t b) { return name(a) < name(b); });
  const auto twin = std::adjacent_find(header.by_name.begin(), header.by_name.end(),
                                       [&](std::size_t a, std::size_t b) { return name(a) == name(b); });
  if (twin != header.by_name.end()) {
    throw SafetensorsError(SafetensorsErrorKind::invalid_header_deserialization, tensor_argument(label, name(*twin)),
                           "distinct names", "the same name twice");
  }
}

inline void check_entries(const SafetensorsHeader& header, std::uint64_t data_bytes, std::string_view label) {
  using enum SafetensorsErrorKind;
  std::uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header.tensors) {
    if (entry.begin != covered || entry.end < entry.begin) {
      throw SafetensorsError(invalid_offset, tensor_argument(label, entry.name),
                             "data_offsets that begin at " + std::to_string(covered) +
                                 ", where the data before it ends, and do not end before they begin",
                             "[" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "]");
    }
    covered = entry.end;
    const std::string argument = tensor_argument(label, entry.name);
    const std::uint64_t expected = tensor_bytes(entry.dtype, entry.shape, argument);
    if (entry.end - entry.begin != expected) {
      throw SafetensorsError(
          tensor_invalid_info, argument,
          std::to_string(expected) + " bytes, as shape and dtype " + std::string(name_of(entry.dtype)) + " say",
          std::to_string(entry.end - entry.begin) + " bytes between data_offsets");
    }
  }
  if (covered != data_bytes) {
    throw SafetensorsError(metadata_incomplete_buffer, label,
                           std::to_string(covered) + " bytes of data, as the header says",
                           std::to_string(data_bytes) + " bytes");
  }
}

}  // namespace detail

/// Parses and checks the header of a whole file. `label` names the file in errors.
/// Memory is bounded by a small multiple of the header's real size, never by a number the file claims; nesting is
/// bounded too. Stricter than the reference implementation, as the format's description asks: duplicate names and
/// metadata keys are refused, and so is a tensor described by a JSON array instead of an object.
/// @throws SafetensorsError with the kind the reference implementation gives.
/// Source: https://github.com/huggingface/safetensors, README "Format" and `SafeTensors::read_metadata`.
[[nodiscard]] inline SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file,
                                                                std::string_view label) {
  const std::string_view text = detail::header_text(file, label);
  detail::SafetensorsJson json = detail::parse_safetensors_json(text, label);
  SafetensorsHeader header;
  header.tensors = std::move(json.tensors);
  header.metadata = std::move(json.metadata);
  header.data_begin = safetensors_length_bytes + text.size();
  detail::sort_entries(header, label);
  detail::check_entries(header, file.size() - header.data_begin, label);
  return header;
}

}  // namespace lora
