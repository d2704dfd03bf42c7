// SPDX-License-Identifier: MIT
// A non-owning strided matrix: what kernels and frozen weights read and write.
#pragma once

#include <cstdint>
#include <type_traits>

#include "lora/core/types.hpp"

namespace lora {

/// Element (i, j) is at data[i * row_stride + j * col_stride]. Strides count scalars. `Scalar` may be const.
/// A view owns nothing: what it points to must outlive it. `MatrixView<float>{data, rows, cols}` has contiguous rows.
template <class Scalar>
struct MatrixView {
  Scalar* data = nullptr;   ///< element (0, 0)
  Index rows = 0;           ///< rows of the matrix
  Index cols = 0;           ///< columns of the matrix
  Index row_stride = cols;  ///< elements from (i, j) to (i + 1, j)
  Index col_stride = 1;     ///< elements from (i, j) to (i, j + 1)

  /// Element (i, j). Not checked.
  [[nodiscard]] Scalar& operator()(Index i, Index j) const noexcept { return data[i * row_stride + j * col_stride]; }

  /// Rows [first, first + count). Not checked.
  [[nodiscard]] MatrixView middle_rows(Index first, Index count) const noexcept {
    return {moved(first * row_stride), count, cols, row_stride, col_stride};
  }

  /// Columns [first, first + count). Not checked.
  [[nodiscard]] MatrixView middle_cols(Index first, Index count) const noexcept {
    return {moved(first * col_stride), rows, count, row_stride, col_stride};
  }

  /// The same elements, cols x rows.
  [[nodiscard]] MatrixView transpose() const noexcept { return {data, cols, rows, col_stride, row_stride}; }

  /// Each row is contiguous.
  [[nodiscard]] bool row_major() const noexcept { return col_stride == 1; }

  /// The same elements as an Eigen map with these strides.
  [[nodiscard]] auto map() const noexcept {
    using Plain = Matrix<std::remove_const_t<Scalar>>;
    using Mapped = std::conditional_t<std::is_const_v<Scalar>, const Plain, Plain>;
    using Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    return Eigen::Map<Mapped, Eigen::Unaligned, Strides>(data, rows, cols, Strides(row_stride, col_stride));
  }

  /// The same elements, read-only.
  // NOLINTNEXTLINE(google-explicit-constructor): a mutable view is a const one, as with std::span.
  operator MatrixView<const Scalar>() const noexcept requires(!std::is_const_v<Scalar>) {
    return {data, rows, cols, row_stride, col_stride};
  }

 private:
  // A matrix without elements may have a null pointer, and adding to that is undefined.
  [[nodiscard]] Scalar* moved(Index offset) const noexcept { return data == nullptr ? nullptr : data + offset; }
};

/// View of an Eigen object whose elements are in memory (matrix, map, block, ref), in any storage order.
template <class Derived>
[[nodiscard]] auto view_of(Eigen::DenseBase<Derived>& object) noexcept {
  static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0, "view_of needs an Eigen object that has storage");
  using Scalar = std::conditional_t<(Derived::Flags & Eigen::LvalueBit) != 0, typename Derived::Scalar,
                                    const typename Derived::Scalar>;
  auto& derived = object.derived();
  return MatrixView<Scalar>{derived.data(), derived.rows(), derived.cols(), derived.rowStride(), derived.colStride()};
}

/// The same for a const object: the elements are read-only.
template <class Derived>
[[nodiscard]] auto view_of(const Eigen::DenseBase<Derived>& object) noexcept {
  static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0, "view_of needs an Eigen object that has storage");
  const auto& derived = object.derived();
  return MatrixView<const typename Derived::Scalar>{derived.data(), derived.rows(), derived.cols(), derived.rowStride(),
                                                    derived.colStride()};
}

/// The bytes a view spans: from its lowest element to just past its highest. Strides may be negative.
template <class Scalar>
struct ViewSpan {
  std::uintptr_t begin;  ///< address of the first byte
  std::uintptr_t end;    ///< address after the last byte

  /// Pre: the view has elements.
  explicit ViewSpan(const MatrixView<Scalar>& v) noexcept
      : begin(reinterpret_cast<std::uintptr_t>(v.data)), end(begin + sizeof(Scalar)) {
    extend((v.rows - 1) * v.row_stride);
    extend((v.cols - 1) * v.col_stride);
  }

 private:
  void extend(Index scalars) noexcept {
    const auto bytes = static_cast<std::uintptr_t>(scalars) * sizeof(Scalar);  // wraps around below zero, as intended
    (scalars < 0 ? begin : end) += bytes;
  }
};

/// Whether two views may share memory. Exact for column blocks of one array, such as the left and the right half of a
/// buffer: lines of equal stride that use disjoint parts of it. Otherwise, views whose address ranges overlap are
/// assumed to share.
template <class A, class B>
[[nodiscard]] bool overlap(const MatrixView<A>& a, const MatrixView<B>& b) noexcept {
  if (a.rows == 0 || a.cols == 0 || b.rows == 0 || b.cols == 0) return false;
  const ViewSpan<A> x(a);
  const ViewSpan<B> y(b);
  if (x.end <= y.begin || y.end <= x.begin) return false;
  if constexpr (sizeof(A) == sizeof(B)) {
    // Line l of both starts at l * stride: they are disjoint if each uses its own part of the stride.
    const bool by_rows = a.col_stride == 1 && b.col_stride == 1 && a.row_stride == b.row_stride;
    const bool by_cols = a.row_stride == 1 && b.row_stride == 1 && a.col_stride == b.col_stride;
    if (!by_rows && !by_cols) return true;
    const Index stride = by_rows ? a.row_stride : a.col_stride;
    const Index a_length = by_rows ? a.cols : a.rows;
    const Index b_length = by_rows ? b.cols : b.rows;
    const std::uintptr_t bytes = y.begin - x.begin;
    const auto scalars = static_cast<Index>(bytes) / static_cast<Index>(sizeof(A));
    if (stride <= 0 || bytes % sizeof(A) != 0) return true;
    const Index b_offset = (scalars % stride + stride) % stride;  // b's first column relative to a's
    return b_offset < a_length || b_offset + b_length > stride;
  }
  return true;
}

/// Copies `from` to `to`: same shape, any strides, no shared memory. Runs along the contiguous dimension; if the two
/// have different ones, copies small rectangles. No allocation.
template <class Scalar>
void copy_elements(const MatrixView<const std::type_identity_t<Scalar>>& from, const MatrixView<Scalar>& to) noexcept {
  const bool by_cols = from.row_stride == 1 && (to.row_stride == 1 || (from.col_stride != 1 && to.col_stride != 1));
  const MatrixView<const Scalar> source = by_cols ? from.transpose() : from;
  const MatrixView<Scalar> target = by_cols ? to.transpose() : to;
  const bool contiguous = source.col_stride == 1 && target.col_stride == 1;
  // Whole lines of 64 bytes of the target, few enough that rows of 4096 bytes do not drive each other out of the cache.
  const Index height = target.col_stride == 1 ? 8 : 16;
  const Index width = contiguous ? source.cols : 24 - height;
  for (Index top = 0; top < source.rows; top += height) {
    const Index bottom = top + height < source.rows ? top + height : source.rows;
    for (Index left = 0; left < source.cols; left += width) {
      const Index count = left + width < source.cols ? width : source.cols - left;
      for (Index i = top; i < bottom; ++i) {
        const Scalar* const in = source.data + i * source.row_stride + left * source.col_stride;
        Scalar* const out = target.data + i * target.row_stride + left * target.col_stride;
        if (contiguous) {
          for (Index j = 0; j < count; ++j) out[j] = in[j];
        } else {
          for (Index j = 0; j < count; ++j) out[j * target.col_stride] = in[j * source.col_stride];
        }
      }
    }
  }
}

}  // namespace lora
