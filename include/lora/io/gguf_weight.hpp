// SPDX-License-Identifier: MIT
// Tensors of GGUF files as frozen weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/gguf_type.hpp"
#include "lora/io/gguf_values.hpp"
#include "lora/weight/quantized.hpp"

namespace lora {

namespace detail {

[[nodiscard]] inline std::span<const std::uint8_t> gguf_blocks(const GgufTensor& tensor) {
  return {reinterpret_cast<const std::uint8_t*>(tensor.bytes.data()), tensor.bytes.size()};
}

/// @throws FormatError unless the tensor is a matrix in blocks of `Format`
template <formats::NumberFormat Format>
void check_gguf_weight(std::string_view operation, const GgufTensor& tensor) {
  static_assert(gguf_type_of_format<Format>().has_value(), "lora: a number format that GGUF files have");
  if (tensor.type != gguf_type_of_format<Format>()) {
    throw FormatError(operation, gguf_tensor_argument(tensor), Format::name, name_of(tensor.type));
  }
  // Without elements, the number of rows is not bounded by the file.
  if (tensor.extents[2] == 1 && tensor.extents[3] == 1 && tensor.size() > 0) return;
  throw FormatError(operation, gguf_tensor_argument(tensor), "two dimensions of 1 or more", gguf_shape_text(tensor));
}

}  // namespace detail

/// The matrix in a tensor of a parsed file as a frozen weight: extents[1] outputs and extents[0] inputs, as llama.cpp
/// stores linear layers. The blocks are laid out anew for the kernels; the file is not needed afterwards. An embedding
/// takes TransposedWeight(gguf_weight<Format>(tensor)): its rows are tokens, which are inputs. For a stack of experts,
/// take each by gguf_matrix_of.
/// @throws FormatError when the tensor has another type (choose `Format` by visit_format), more dimensions or no
/// elements; std::bad_alloc
template <formats::NumberFormat Format>
[[nodiscard]] QuantizedWeight<Format> gguf_weight(const GgufTensor& tensor) {
  detail::check_gguf_weight<Format>("gguf_weight", tensor);
  return QuantizedWeight<Format>::from_blocks(detail::gguf_blocks(tensor), static_cast<Index>(tensor.extents[1]),
                                              static_cast<Index>(tensor.extents[0]));
}

/// Like gguf_weight, but the blocks are read where they are: nothing is copied, and products take longer. `owner` keeps
/// the file's bytes alive, for instance a std::shared_ptr<const MappedFile>; it is null if the caller does.
template <formats::NumberFormat Format>
[[nodiscard]] QuantizedWeight<Format> gguf_weight_in_place(const GgufTensor& tensor,
                                                           std::shared_ptr<const void> owner) {
  detail::check_gguf_weight<Format>("gguf_weight_in_place", tensor);
  return QuantizedWeight<Format>::in_place(detail::gguf_blocks(tensor), static_cast<Index>(tensor.extents[1]),
                                           static_cast<Index>(tensor.extents[0]), std::move(owner));
}

}  // namespace lora
