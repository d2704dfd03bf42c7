// SPDX-License-Identifier: MIT
// How a tensor of a GGUF file is stored.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/format/formats.hpp"
#include "lora/io/dtype.hpp"

namespace lora {

/// The types of ggml that are read, with its numbers. Source: ggml-org/ggml, `enum ggml_type`.
enum class GgufType : std::uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ4_NL = 20,
  IQ4_XS = 23,
  BF16 = 30,
  MXFP4 = 39,
};

/// Every type, by ascending number.
inline constexpr std::array<GgufType, 16> gguf_types{
    GgufType::F32,    GgufType::F16,    GgufType::Q4_0, GgufType::Q4_1, GgufType::Q5_0, GgufType::Q5_1,
    GgufType::Q8_0,   GgufType::Q2_K,   GgufType::Q3_K, GgufType::Q4_K, GgufType::Q5_K, GgufType::Q6_K,
    GgufType::IQ4_NL, GgufType::IQ4_XS, GgufType::BF16, GgufType::MXFP4};

/// Returns body(Format{}) with the number format of the type, one of those in lora/format/. All calls return one type.
/// @throws ConfigError for F32, which is float itself and no format of frozen weights
template <class Body>
constexpr decltype(auto) visit_format(GgufType type, Body&& body) {
  switch (type) {
    case GgufType::F16:
      return body(formats::F16{});
    case GgufType::BF16:
      return body(formats::BF16{});
    case GgufType::Q8_0:
      return body(formats::Q8_0{});
    case GgufType::Q4_0:
      return body(formats::Q4_0{});
    case GgufType::Q4_1:
      return body(formats::Q4_1{});
    case GgufType::Q5_0:
      return body(formats::Q5_0{});
    case GgufType::Q5_1:
      return body(formats::Q5_1{});
    case GgufType::Q2_K:
      return body(formats::Q2_K{});
    case GgufType::Q3_K:
      return body(formats::Q3_K{});
    case GgufType::Q4_K:
      return body(formats::Q4_K{});
    case GgufType::Q5_K:
      return body(formats::Q5_K{});
    case GgufType::Q6_K:
      return body(formats::Q6_K{});
    case GgufType::IQ4_NL:
      return body(formats::IQ4_NL{});
    case GgufType::IQ4_XS:
      return body(formats::IQ4_XS{});
    case GgufType::MXFP4:
      return body(formats::MXFP4{});
    case GgufType::F32:
      break;
  }
  throw ConfigError("visit_format", "type", "a type with a number format", "F32");
}

/// What ggml specifies for one type.
struct GgufTypeInfo {
  std::string_view name;      ///< "Q4_0", ...
  std::uint64_t block_size;   ///< consecutive elements of a row that are stored together
  std::uint64_t block_bytes;  ///< bytes of a block
  bool encodable;             ///< whether there is a rule for writing: lora::formats::EncodableFormat, or float itself
};

/// The row of a type.
[[nodiscard]] constexpr GgufTypeInfo info_of(GgufType type) {
  if (type == GgufType::F32) return {"F32", 1, 4, true};
  return visit_format(type, []<class Format>(Format) {
    return GgufTypeInfo{Format::name, static_cast<std::uint64_t>(Format::block_size),
                        static_cast<std::uint64_t>(Format::block_bytes), formats::EncodableFormat<Format>};
  });
}

/// ggml's name, such as "Q4_K".
[[nodiscard]] constexpr std::string_view name_of(GgufType type) { return info_of(type).name; }

/// The type of that number in a file; nothing if it is not read.
[[nodiscard]] constexpr std::optional<GgufType> gguf_type_of_number(std::uint32_t number) noexcept {
  for (const GgufType type : gguf_types) {
    if (static_cast<std::uint32_t>(type) == number) return type;
  }
  return std::nullopt;
}

/// The type of that name; nothing if there is none.
[[nodiscard]] constexpr std::optional<GgufType> parse_gguf_type(std::string_view name) {
  for (const GgufType type : gguf_types) {
    if (name_of(type) == name) return type;
  }
  return std::nullopt;
}

/// The type whose blocks are those of a number format; nothing for NF4 and FP4, which GGUF does not have.
template <formats::NumberFormat Format>
[[nodiscard]] constexpr std::optional<GgufType> gguf_type_of_format() {
  return parse_gguf_type(Format::name);
}

/// F32, F16 or BF16; nothing for a type of blocks.
[[nodiscard]] constexpr std::optional<Dtype> dtype_of_type(GgufType type) noexcept {
  if (type == GgufType::F32) return Dtype::F32;
  if (type == GgufType::F16) return Dtype::F16;
  if (type == GgufType::BF16) return Dtype::BF16;
  return std::nullopt;
}

/// The type that holds values of F32, F16 or BF16; nothing for other element types.
[[nodiscard]] constexpr std::optional<GgufType> gguf_type_of_dtype(Dtype dtype) noexcept {
  for (const GgufType type : gguf_types) {
    if (dtype_of_type(type) == dtype) return type;
  }
  return std::nullopt;
}

/// "F32, F16, Q4_0, ...": the names of all types, or of those that can be written.
[[nodiscard]] inline std::string gguf_type_names(bool encodable_only = false) {
  std::string names;
  for (const GgufType type : gguf_types) {
    if (encodable_only && !info_of(type).encodable) continue;
    names.append(names.empty() ? "" : ", ").append(name_of(type));
  }
  return names;
}

}  // namespace lora
