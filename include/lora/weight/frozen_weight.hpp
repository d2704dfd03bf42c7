// SPDX-License-Identifier: MIT
// What a frozen weight is: an operator that multiplies. Reading and merging are separate concepts.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"

namespace lora {

/// The low-rank term computed within a product: U (N x r) times F (r x m). Rank 0 means no term.
template <class Scalar>
struct LowRankTerm {
  MatrixView<const Scalar> down;  ///< U or V, N x r
  /// (s*B)^T (r x out_features) or A (r x in_features). Rows are contiguous; product() also accepts contiguous columns.
  MatrixView<const Scalar> up;

  /// r; 0 without a term.
  [[nodiscard]] Index rank() const noexcept { return up.rows; }
};

/// How a weight that can be merged into stores its elements: as its scalars, or rounded to 16 bits.
enum class WeightStorage : std::uint8_t { scalars, f16, bf16 };

/// A piece of a weight's memory: `lines` runs of `length` contiguous elements, `line_stride` apart.
/// Line l, position p is W(first_line + l, first_position + p) when lines are outputs,
/// W(first_position + p, first_line + l) when lines are inputs; W is out_features x in_features.
template <class Element>
struct WeightTile {
  Element* data = nullptr;        ///< first element of the first line
  Index lines = 0;                ///< number of lines
  Index length = 0;               ///< elements of a line
  Index line_stride = 0;          ///< elements from one line to the next
  Index first_line = 0;           ///< its output, or its input
  Index first_position = 0;       ///< the input, or the output, of a line's first element
  bool lines_are_outputs = true;  ///< a line is a part of a row of W
};

/// No tile holds more elements than this, so that scratch for a tile has a fixed size.
inline constexpr Index max_tile_size = 16384;

/// A frozen weight W (out_features x in_features) with any storage. A new kind is one new file.
///
/// - `product(X, bias, term, Y, workspace)`: Y = X W^T + bias + U F. `bias` has out_features scalars or is null.
/// - `product_transposed(dY, term, dX, workspace)`: dX = dY W + V F.
/// - `bytes()`: memory this object owns.
///
/// Inputs may have any strides; outputs have contiguous rows and alias no input. The const functions are reentrant:
/// they write to the output and the workspace only, and allocate only to grow the workspace. Results do not depend on
/// the number of workers.
template <class W>
concept FrozenWeight = RealScalar<typename W::Scalar> && std::movable<W> &&
    requires(const W& source, MatrixView<const typename W::Scalar> in, const typename W::Scalar* bias,
             LowRankTerm<typename W::Scalar> term, MatrixView<typename W::Scalar> out, Workspace& workspace) {
  { source.out_features() } -> std::same_as<Index>;
  { source.in_features() } -> std::same_as<Index>;
  { source.product(in, bias, term, out, workspace) } -> std::same_as<void>;
  { source.product_transposed(in, term, out, workspace) } -> std::same_as<void>;
  { source.bytes() } -> std::same_as<std::size_t>;
};

/// A frozen weight whose values can be read back.
///
/// `read(first_output, first_input, out)` writes the block [first_output, + out.rows) x [first_input, + out.cols) of W
/// to `out`, which has any strides and shares no memory with the weight. Fast for whole rows, whole columns and tiles.
/// @throws ShapeError when the block leaves the weight. No allocation; reentrant.
template <class W>
concept ReadableWeight = FrozenWeight<W> && requires(const W& source, MatrixView<typename W::Scalar> out, Index i) {
  { source.read(i, i, out) } -> std::same_as<void>;
};

/// W::storage, or WeightStorage::scalars for a kind that does not say.
template <class W>
inline constexpr WeightStorage storage_of = WeightStorage::scalars;
/// What a kind says of itself.
template <class W>
  requires requires {
    { W::storage } -> std::convertible_to<WeightStorage>;
  }
inline constexpr WeightStorage storage_of<W> = W::storage;

/// The type of a weight's elements in memory: its scalar, or the bits of a 16-bit number.
template <class W>
using StoredElement = std::conditional_t<storage_of<W> == WeightStorage::scalars, typename W::Scalar, std::uint16_t>;

/// A readable weight that can be updated in place.
///
/// - `tile_count()` and `tile(t)`: every element of W exactly once, in a fixed order, without padding.
/// - `writable()`: false if the memory is const; then `tile(t)` of a mutable weight throws StateError.
/// - `storage`: a static constant, for kinds that store 16-bit numbers. Their scalar is float.
template <class W>
concept MergeableWeight = ReadableWeight<W> &&
    (storage_of<W> == WeightStorage::scalars ||
     std::same_as<typename W::Scalar, float>)&&requires(W& target, const W& source, Index t) {
  { source.tile_count() } -> std::same_as<Index>;
  { target.tile(t) } -> std::same_as<WeightTile<StoredElement<W>>>;
  { source.tile(t) } -> std::same_as<WeightTile<const StoredElement<W>>>;
  { source.writable() } -> std::same_as<bool>;
};

/// Copies W into `out` (out_features x in_features, any strides). No allocation. @throws ShapeError
template <ReadableWeight W>
void read_back(const W& weight, const MatrixView<typename W::Scalar>& out) {
  check_shape("read_back", "out", out, weight.out_features(), weight.in_features());
  weight.read(0, 0, out);
}

namespace detail {

/// @throws ShapeError unless the block of rows x cols at (first_output, first_input) lies within the weight.
inline void check_block(std::string_view operation, Index out_features, Index in_features, Index first_output,
                        Index first_input, Index rows, Index cols) {
  const bool rows_fit = first_output >= 0 && rows >= 0 && rows <= out_features && first_output <= out_features - rows;
  const bool cols_fit = first_input >= 0 && cols >= 0 && cols <= in_features && first_input <= in_features - cols;
  if (rows_fit && cols_fit) return;
  throw ShapeError(
      operation, "block", "a part of " + shape_text(out_features, in_features),
      shape_text(rows, cols) + " from (" + std::to_string(first_output) + ", " + std::to_string(first_input) + ")");
}

}  // namespace detail
}  // namespace lora
