// SPDX-License-Identifier: MIT
// The element types a safetensors header can name.
#pragma once

#include <array>
#include <bit>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace lora {

/// Element type of a stored tensor, in increasing order of alignment, the order in which the reference implementation
/// of the format sorts tensors (descending). Source: huggingface/safetensors, `Dtype`.
enum class Dtype : std::uint8_t {
  BOOL,
  F4,       ///< OCP MX FP4 (E2M1), two to a byte
  F6_E2M3,  ///< OCP MX FP6, four to three bytes
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,  ///< complex of two F32
  F64,
  I64,
  U64,
};

/// What the format specifies for one element type.
struct DtypeInfo {
  Dtype dtype;            ///< the element type
  std::string_view name;  ///< in a file's header
  unsigned bits;          ///< of an element
};

/// Every element type, at the position of its enumerator.
inline constexpr std::array<DtypeInfo, 22> dtype_table{{
    {Dtype::BOOL, "BOOL", 8},
    {Dtype::F4, "F4", 4},
    {Dtype::F6_E2M3, "F6_E2M3", 6},
    {Dtype::F6_E3M2, "F6_E3M2", 6},
    {Dtype::U8, "U8", 8},
    {Dtype::I8, "I8", 8},
    {Dtype::F8_E5M2, "F8_E5M2", 8},
    {Dtype::F8_E4M3, "F8_E4M3", 8},
    {Dtype::F8_E8M0, "F8_E8M0", 8},
    {Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 8},
    {Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 8},
    {Dtype::I16, "I16", 16},
    {Dtype::U16, "U16", 16},
    {Dtype::F16, "F16", 16},
    {Dtype::BF16, "BF16", 16},
    {Dtype::I32, "I32", 32},
    {Dtype::U32, "U32", 32},
    {Dtype::F32, "F32", 32},
    {Dtype::C64, "C64", 64},
    {Dtype::F64, "F64", 64},
    {Dtype::I64, "I64", 64},
    {Dtype::U64, "U64", 64},
}};

/// Bits of one element.
[[nodiscard]] constexpr unsigned bits_of(Dtype dtype) noexcept {
  return dtype_table[static_cast<std::size_t>(dtype)].bits;
}

/// The name in a header, such as "BF16".
[[nodiscard]] constexpr std::string_view name_of(Dtype dtype) noexcept {
  return dtype_table[static_cast<std::size_t>(dtype)].name;
}

/// The element type of that name; nothing if the format has none.
[[nodiscard]] constexpr std::optional<Dtype> parse_dtype(std::string_view name) noexcept {
  for (const DtypeInfo& info : dtype_table) {
    if (info.name == name) return info.dtype;
  }
  return std::nullopt;
}

/// Whether values of this type convert to float and double: F64, F32, F16 and BF16.
[[nodiscard]] constexpr bool converts_to_real(Dtype dtype) noexcept {
  return dtype == Dtype::F64 || dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
}

/// The element type whose values a C++ type holds unconverted; nothing for types that no dtype matches.
template <class T>
[[nodiscard]] constexpr std::optional<Dtype> find_dtype_of() noexcept {
  if constexpr (std::is_same_v<T, bool>) return Dtype::BOOL;
  if constexpr (std::is_same_v<T, std::complex<float>>) return Dtype::C64;
  if constexpr (std::is_same_v<T, float>) return Dtype::F32;
  if constexpr (std::is_same_v<T, double>) return Dtype::F64;
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
    constexpr std::array<Dtype, 4> signed_types{Dtype::I8, Dtype::I16, Dtype::I32, Dtype::I64};
    constexpr std::array<Dtype, 4> unsigned_types{Dtype::U8, Dtype::U16, Dtype::U32, Dtype::U64};
    constexpr auto position = static_cast<std::size_t>(std::bit_width(sizeof(T)) - 1);
    return (std::is_signed_v<T> ? signed_types : unsigned_types)[position];
  }
  return std::nullopt;
}

/// A C++ type that holds the values of some element type unconverted.
template <class T>
concept StoredScalar = find_dtype_of<T>()
.has_value();

/// The element type that a C++ type holds: F32 for float, I64 for std::int64_t, ...
template <StoredScalar T>
inline constexpr Dtype dtype_of = *find_dtype_of<T>();

}  // namespace lora
