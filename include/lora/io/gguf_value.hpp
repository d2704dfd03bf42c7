// SPDX-License-Identifier: MIT
// What the metadata of a GGUF file can hold.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace lora {

/// One value: a scalar of one of twelve types, or an array of one of them. Strings are bytes, not always UTF-8.
using GgufValue =
    std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t, float, bool,
                 std::string, std::uint64_t, std::int64_t, double, std::vector<std::uint8_t>, std::vector<std::int8_t>,
                 std::vector<std::uint16_t>, std::vector<std::int16_t>, std::vector<std::uint32_t>,
                 std::vector<std::int32_t>, std::vector<float>, std::vector<bool>, std::vector<std::string>,
                 std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;

/// Values by key, such as "general.architecture".
using GgufMetadata = std::map<std::string, GgufValue, std::less<>>;

namespace detail {

inline constexpr std::uint32_t gguf_magic = 0x46554747;  ///< "GGUF"
inline constexpr std::uint32_t gguf_string_type = 8;
inline constexpr std::uint32_t gguf_array_type = 9;
inline constexpr std::uint32_t gguf_type_count = 13;
inline constexpr std::size_t gguf_default_alignment = 32;
/// A file is padded to its alignment: a few bytes could ask for gigabytes. This is the largest page of common systems.
inline constexpr std::uint32_t gguf_alignment_limit = 65536;
inline constexpr std::size_t gguf_scalar_types = 12;
/// Names of tensors are shorter than this in ggml (GGML_MAX_NAME).
inline constexpr std::size_t gguf_name_limit = 64;

/// The number that stands in a file for the type of the alternative at `index`, or for the type of its elements. The
/// scalar alternatives are in the order of these numbers, which skip 9 (arrays).
[[nodiscard]] constexpr std::uint32_t gguf_type_of(std::size_t index) noexcept {
  const auto scalar = static_cast<std::uint32_t>(index % gguf_scalar_types);
  return scalar < gguf_array_type ? scalar : scalar + 1;
}

[[nodiscard]] constexpr bool is_gguf_alignment(std::uint32_t alignment) noexcept {
  return std::has_single_bit(alignment) && alignment <= gguf_alignment_limit;
}

[[nodiscard]] constexpr std::size_t gguf_padded(std::size_t size, std::size_t alignment) noexcept {
  return (size + alignment - 1) / alignment * alignment;
}

}  // namespace detail

}  // namespace lora
