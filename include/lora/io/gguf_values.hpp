// SPDX-License-Identifier: MIT
// The values of tensors in GGUF files, whatever their type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/gguf_type.hpp"
#include "lora/io/text.hpp"

namespace lora {

namespace detail {

[[nodiscard]] inline std::string gguf_tensor_argument(const GgufTensor& tensor) {
  return "tensor " + in_quotes(tensor.name);
}

[[nodiscard]] inline std::string gguf_shape_text(const GgufTensor& tensor) {
  std::string text;
  for (const std::uint64_t extent : tensor.extents)
    text.append(text.empty() ? "" : " x ").append(std::to_string(extent));
  return text;
}

}  // namespace detail

/// Matrix `index` of a tensor of three dimensions, such as one expert of a stack: a tensor of two dimensions in the
/// same bytes. No copy. @throws ShapeError when there is no such matrix
[[nodiscard]] inline GgufTensor gguf_matrix_of(const GgufTensor& stack, std::uint64_t index) {
  const std::uint64_t matrices = stack.extents[2] * stack.extents[3];
  if (index >= matrices) {
    throw ShapeError("gguf_matrix_of", detail::gguf_tensor_argument(stack),
                     "a matrix of its " + std::to_string(matrices), std::to_string(index));
  }
  const auto bytes = stack.bytes.size() / static_cast<std::size_t>(matrices);
  return {stack.name + "[" + std::to_string(index) + "]",
          stack.type,
          {stack.extents[0], stack.extents[1], 1, 1},
          stack.bytes.subspan(static_cast<std::size_t>(index) * bytes, bytes)};
}

/// Decodes `count` whole rows from row `first` on, of a tensor of any type and any number of dimensions, exactly.
/// `values` has count * extents[0] elements. No allocation; reentrant.
/// @throws ShapeError when the rows are not within the tensor's, or `values` has another size
inline void read_gguf_rows(const GgufTensor& tensor, std::uint64_t first, std::uint64_t count,
                           std::span<float> values) {
  const std::uint64_t rows = tensor.rows();
  const std::uint64_t cols = tensor.extents[0];
  if (first > rows || count > rows - first) {
    throw ShapeError("read_gguf_rows", detail::gguf_tensor_argument(tensor), "rows of its " + std::to_string(rows),
                     std::to_string(count) + " from row " + std::to_string(first) + " on");
  }
  if (values.size() != count * cols) {
    throw ShapeError("read_gguf_rows", "values", std::to_string(count * cols) + " elements",
                     std::to_string(values.size()));
  }
  if (values.empty()) return;
  const GgufTypeInfo info = info_of(tensor.type);
  const auto row_bytes = static_cast<std::size_t>(cols / info.block_size * info.block_bytes);
  const std::byte* const bytes = tensor.bytes.data() + static_cast<std::size_t>(first) * row_bytes;
  if (tensor.type == GgufType::F32) return decode<float>(Dtype::F32, bytes, values);
  // Rows are whole blocks, so that those of several rows are those of one long row.
  visit_format(tensor.type, [&]<class Format>(Format) {
    formats::decode_row<Format>(reinterpret_cast<const std::uint8_t*>(bytes), static_cast<Index>(values.size()),
                                values.data());
  });
}

/// All values of a tensor of any type, as the rows of a matrix: those of its dimensions beyond the second one after the
/// other. @throws ShapeError for more elements than a matrix can have; std::bad_alloc
[[nodiscard]] inline Matrix<float> read_gguf_tensor(const GgufTensor& tensor) {
  constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
  if (tensor.rows() > most || tensor.extents[0] > most) {
    throw ShapeError("read_gguf_tensor", detail::gguf_tensor_argument(tensor), "extents below 2^63",
                     detail::gguf_shape_text(tensor));
  }
  Matrix<float> values(static_cast<Index>(tensor.rows()), static_cast<Index>(tensor.extents[0]));
  read_gguf_rows(tensor, 0, tensor.rows(), {values.data(), static_cast<std::size_t>(values.size())});
  return values;
}

}  // namespace lora
