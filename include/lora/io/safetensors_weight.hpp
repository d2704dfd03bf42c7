// SPDX-License-Identifier: MIT
// Tensors of F16 and BF16 as frozen weights, without a copy in 32 bits.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/safetensors_error.hpp"
#include "lora/io/safetensors_reader.hpp"
#include "lora/io/text.hpp"
#include "lora/weight/quantized.hpp"

namespace lora {

/// A number format that is an element type too: formats::F16 or formats::BF16.
template <class Format>
concept HalfFormat = std::same_as<Format, formats::F16> || std::same_as<Format, formats::BF16>;

namespace detail {

template <HalfFormat Format>
inline constexpr Dtype dtype_of_format = std::same_as<Format, formats::F16> ? Dtype::F16 : Dtype::BF16;

/// @throws SafetensorsError unless the tensor is a matrix of that element type
template <HalfFormat Format>
void check_half_weight(const TensorView& tensor) {
  if (tensor.dtype != dtype_of_format<Format>) {
    throw SafetensorsError(SafetensorsErrorKind::unexpected_dtype, tensor_argument(tensor.file, tensor.name),
                           name_of(dtype_of_format<Format>), name_of(tensor.dtype));
  }
  // Without elements, the number of rows is not bounded by the file.
  if (tensor.shape.size() == 2 && tensor.size() > 0) return;
  throw SafetensorsError(SafetensorsErrorKind::unexpected_shape, tensor_argument(tensor.file, tensor.name),
                         "two dimensions of 1 or more", shape_text(tensor.shape));
}

[[nodiscard]] inline std::span<const std::uint8_t> raw_bytes(const TensorView& tensor) {
  return {reinterpret_cast<const std::uint8_t*>(tensor.bytes.data()), tensor.bytes.size()};
}

}  // namespace detail

/// A tensor (out_features, in_features) as a frozen weight. Its values are laid out anew for the kernels, in 2 bytes
/// each; the file is not needed afterwards.
/// @throws SafetensorsError unexpected_dtype, unexpected_shape for a rank other than 2 or no elements; std::bad_alloc
template <HalfFormat Format>
[[nodiscard]] QuantizedWeight<Format> safetensors_weight(const TensorView& tensor) {
  detail::check_half_weight<Format>(tensor);
  return QuantizedWeight<Format>::from_blocks(detail::raw_bytes(tensor), tensor.shape[0], tensor.shape[1]);
}

/// Like safetensors_weight of a tensor of `file`, but its values are read where they are: nothing is copied, and
/// products take longer. The weight keeps the mapping alive; memory of the caller (SafetensorsFile::from_bytes) must
/// outlive it. @throws SafetensorsError also tensor_not_found; std::bad_alloc
template <HalfFormat Format>
[[nodiscard]] QuantizedWeight<Format> safetensors_weight_in_place(const SafetensorsFile& file, std::string_view name) {
  const TensorView tensor = file.tensor(name);
  detail::check_half_weight<Format>(tensor);
  return QuantizedWeight<Format>::in_place(detail::raw_bytes(tensor), tensor.shape[0], tensor.shape[1],
                                           std::make_shared<const SafetensorsFile>(file));
}

}  // namespace lora
