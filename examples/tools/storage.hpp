// SPDX-License-Identifier: MIT
// How the rows of a tensor are stored: as values of a dtype, or in the blocks of a type of GGUF.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint.hpp"
#include "lora/core/error.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/gguf_type.hpp"

namespace lora::tools {

class Storage {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): a dtype is a way to store.
  Storage(Dtype dtype) : dtype_(dtype) {}
  explicit Storage(GgufType type) {
    const auto dtype = dtype_of_type(type);
    if (dtype) dtype_ = *dtype;
    if (!dtype) blocks_ = type;
  }
  [[nodiscard]] static Storage of(const StoredTensor& tensor) {
    return tensor.blocks ? Storage(*tensor.blocks) : Storage(tensor.dtype);
  }

  [[nodiscard]] Dtype dtype() const noexcept { return blocks_ ? Dtype::U8 : dtype_; }
  [[nodiscard]] std::optional<GgufType> blocks() const noexcept { return blocks_; }
  [[nodiscard]] std::string_view name() const { return blocks_ ? name_of(*blocks_) : name_of(dtype_); }
  /// Whether its values are real numbers.
  [[nodiscard]] bool readable() const noexcept { return blocks_.has_value() || converts_to_real(dtype_); }
  [[nodiscard]] bool writable() const { return blocks_ ? info_of(*blocks_).encodable : converts_to_real(dtype_); }
  /// Rows are a multiple of this.
  [[nodiscard]] Index block_size() const { return blocks_ ? static_cast<Index>(info_of(*blocks_).block_size) : 1; }
  /// Pre: whole blocks.
  [[nodiscard]] std::size_t bytes_of(std::size_t elements) const {
    if (!blocks_) return elements * bits_of(dtype_) / 8;
    const GgufTypeInfo info = info_of(*blocks_);
    return elements / static_cast<std::size_t>(info.block_size) * static_cast<std::size_t>(info.block_bytes);
  }

  /// Pre: readable(); whole blocks.
  template <RealScalar Scalar>
  void decode(const std::byte* bytes, std::span<Scalar> values) const {
    if (!blocks_) return lora::decode(dtype_, bytes, values);
    std::vector<float> floats(values.size());
    visit_format(*blocks_, [&]<class Format>(Format) {
      formats::decode_row<Format>(reinterpret_cast<const std::uint8_t*>(bytes), static_cast<Index>(floats.size()),
                                  floats.data());
    });
    std::copy(floats.begin(), floats.end(), values.begin());
  }

  /// Pre: writable(); whole blocks.
  template <RealScalar Scalar>
  void encode(std::span<const Scalar> values, std::byte* bytes) const {
    if (!blocks_) return lora::encode(dtype_, values, bytes);
    std::vector<float> floats(values.size());
    std::transform(values.begin(), values.end(), floats.begin(),
                   [](Scalar value) { return static_cast<float>(value); });
    visit_format(*blocks_, [&]<class Format>(Format) {
      if constexpr (formats::EncodableFormat<Format>) {
        formats::encode_row<Format>(floats.data(), static_cast<Index>(floats.size()),
                                    reinterpret_cast<std::uint8_t*>(bytes));
      }
    });
  }

 private:
  Dtype dtype_ = Dtype::F32;
  std::optional<GgufType> blocks_;
};

/// The distance of stored values from those computed in float.
struct RoundingError {
  double largest = 0;
  double squares = 0;        ///< of the errors
  double delta_squares = 0;  ///< of what was added; of the values themselves where nothing was
  double kept = 0;           ///< product of what was added with the change of the stored values

  RoundingError& operator+=(const RoundingError& other) {
    largest = std::max(largest, other.largest);
    squares += other.squares;
    delta_squares += other.delta_squares;
    kept += other.kept;
    return *this;
  }
  /// Root of the squares, as a share of what was added.
  [[nodiscard]] double relative() const { return delta_squares > 0 ? std::sqrt(squares / delta_squares) : 0.0; }
  /// <W' - W, D> / <D, D> for stored values that were W and are W', where D was added; 1 if D is 0.
  [[nodiscard]] double survived() const { return delta_squares > 0 ? kept / delta_squares : 1.0; }
};

/// Encodes values whose first row is row `first` of the tensor `name`, and returns them as they are stored.
/// @throws StateError naming the tensor and the row when one is not finite as stored
template <RealScalar Scalar>
Matrix<Scalar> encode_finite(const std::string& name, const Storage& storage, const Matrix<Scalar>& values,
                             std::vector<std::byte>& bytes, Index first = 0) {
  const auto count = static_cast<std::size_t>(values.size());
  bytes.resize(storage.bytes_of(count));
  storage.encode(std::span<const Scalar>(values.data(), count), bytes.data());
  Matrix<Scalar> back(values.rows(), values.cols());
  storage.decode(bytes.data(), std::span<Scalar>(back.data(), count));
  for (Index row = 0; row < back.rows(); ++row) {
    if (back.row(row).allFinite()) continue;
    throw StateError("write tensor", in_quotes(name) + ", row " + std::to_string(first + row),
                     "values that are finite in " + std::string(storage.name()),
                     values.row(row).allFinite() ? "one beyond its range" : "an infinity or NaN");
  }
  return back;
}

/// All values of a tensor, one of fewer than two dimensions as one row. @throws SafetensorsError for no real numbers
template <RealScalar Scalar>
[[nodiscard]] Matrix<Scalar> values_of(const StoredTensor& tensor) {
  const Index rows = tensor.shape.size() < 2 ? 1 : tensor.shape.front();
  Matrix<Scalar> values(rows, rows == 0 ? 0 : tensor.elements() / rows);
  const std::span<Scalar> target(values.data(), static_cast<std::size_t>(values.size()));
  tensor.blocks ? Storage(*tensor.blocks).decode(tensor.bytes.data(), target) : tensor.copy_to(target);
  return values;
}

/// Calls body(first row, values) for all rows of a tensor, block of rows by block; not for one without elements, which
/// may have any number of rows. Pre: its storage is readable.
template <RealScalar Scalar, class Body>
void for_each_row_block(const StoredTensor& tensor, const Body& body) {
  if (tensor.elements() == 0) return;
  constexpr Index block_elements = Index{1} << 18;
  const Storage storage = Storage::of(tensor);
  // Blocks run along rows.
  const bool one_row = tensor.shape.empty() || (tensor.blocks && tensor.shape.size() == 1);
  const Index rows = one_row ? 1 : tensor.shape.front();
  const Index cols = tensor.elements() / rows;
  const Index step = std::max<Index>(1, block_elements / cols);
  const std::size_t row_bytes = storage.bytes_of(static_cast<std::size_t>(cols));
  Matrix<Scalar> block;
  for (Index first = 0; first < rows; first += step) {
    block.resize(std::min(step, rows - first), cols);
    storage.decode(tensor.bytes.data() + static_cast<std::size_t>(first) * row_bytes,
                   std::span<Scalar>(block.data(), static_cast<std::size_t>(block.size())));
    body(first, block);
  }
}

}  // namespace lora::tools
