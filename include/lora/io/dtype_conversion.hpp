// SPDX-License-Identifier: MIT
// Stored bytes to float or double and back. Bytes need no alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lora/core/half.hpp"
#include "lora/core/little_endian.hpp"
#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"

namespace lora {

namespace detail {

template <class Stored, class Scalar, class Convert>
void decode_each(const std::byte* bytes, std::span<Scalar> values, Convert convert) noexcept {
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<Scalar>(convert(load_little_endian<Stored>(bytes + i * sizeof(Stored))));
  }
}

template <class Stored, class Scalar, class Convert>
void encode_each(std::span<const Scalar> values, std::byte* bytes, Convert convert) noexcept {
  for (std::size_t i = 0; i < values.size(); ++i) {
    store_little_endian<Stored>(convert(values[i]), bytes + i * sizeof(Stored));
  }
}

}  // namespace detail

/// Converts values.size() elements of `dtype` at `bytes`: widening is exact, F64 to float rounds to nearest even.
/// Pre: converts_to_real(dtype); `bytes` holds that many elements. Does not throw or allocate.
template <RealScalar Scalar>
void decode(Dtype dtype, const std::byte* bytes, std::span<Scalar> values) noexcept {
  const auto as_is = [](auto stored) { return stored; };
  switch (dtype) {
    case Dtype::F64:
      return detail::decode_each<double>(bytes, values, as_is);
    case Dtype::F32:
      return detail::decode_each<float>(bytes, values, as_is);
    case Dtype::F16:
      return detail::decode_each<std::uint16_t>(bytes, values, float_from_f16);
    case Dtype::BF16:
      return detail::decode_each<std::uint16_t>(bytes, values, float_from_bf16);
    default:
      return;
  }
}

/// Writes the values as elements of `dtype` to `bytes`; narrowing rounds once, to nearest even.
/// Pre: converts_to_real(dtype); `bytes` has room for values.size() elements. Does not throw or allocate.
template <RealScalar Scalar>
void encode(Dtype dtype, std::span<const Scalar> values, std::byte* bytes) noexcept {
  switch (dtype) {
    case Dtype::F64:
      return detail::encode_each<double>(values, bytes, [](Scalar value) { return static_cast<double>(value); });
    case Dtype::F32:
      return detail::encode_each<float>(values, bytes, [](Scalar value) { return static_cast<float>(value); });
    case Dtype::F16:
      return detail::encode_each<std::uint16_t>(values, bytes, [](Scalar value) { return f16_from(value); });
    case Dtype::BF16:
      return detail::encode_each<std::uint16_t>(values, bytes, [](Scalar value) { return bf16_from(value); });
    default:
      return;
  }
}

}  // namespace lora
