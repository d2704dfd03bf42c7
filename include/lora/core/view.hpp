// A non-owning strided matrix: what kernels and frozen weights take and fill.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>

#include "lora/core/types.hpp"

namespace lora {

/// Element (i, j) stands at data[i * row_stride + j * col_stride]. Strides count scalars. `Scalar` may be const.
/// A view never owns: what it points to must outlive it.
template <class Scalar>
struct MatrixView {
  Scalar* data = nullptr;
  Index rows = 0;
  Index cols = 0;
  Index row_stride = 0;
  Index col_stride = 1;

  [[nodiscard]] Scalar& operator()(Index i, Index j) const noexcept { return data[i * row_stride + j * col_stride]; }

  [[nodiscard]] MatrixView middle_rows(Index first, Index count) const noexcept {
    return {moved(first * row_stride), count, cols, row_stride, col_stride};
  }

  [[nodiscard]] MatrixView middle_cols(Index first, Index count) const noexcept {
    return {moved(first * col_stride), rows, count, row_stride, col_stride};
  }

  [[nodiscard]] MatrixView transpose() const noexcept { return {data, cols, rows, col_stride, row_stride}; }

  /// Each row is contiguous.
  [[nodiscard]] bool row_major() const noexcept { return col_stride == 1; }

  /// The same elements as an Eigen object of any strides.
  [[nodiscard]] auto map() const noexcept {
    using Plain = Matrix<std::remove_const_t<Scalar>>;
    using Mapped = std::conditional_t<std::is_const_v<Scalar>, const Plain, Plain>;
    using Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    return Eigen::Map<Mapped, Eigen::Unaligned, Strides>(data, rows, cols, Strides(row_stride, col_stride));
  }

  // NOLINTNEXTLINE(google-explicit-constructor): a mutable view is a const one, as with std::span.
  operator MatrixView<const Scalar>() const noexcept requires(!std::is_const_v<Scalar>) {
    return {data, rows, cols, row_stride, col_stride};
  }

 private:
  // A matrix without elements may have no address, which must not move.
  [[nodiscard]] Scalar* moved(Index offset) const noexcept { return data == nullptr ? nullptr : data + offset; }
};

/// View of an Eigen object that has its elements in memory (matrix, map, block, ref), whatever its storage order.
template <class Derived>
[[nodiscard]] auto view_of(Eigen::DenseBase<Derived>& object) noexcept {
  static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0, "view_of needs an Eigen object that has storage");
  using Scalar = std::conditional_t<(Derived::Flags & Eigen::LvalueBit) != 0, typename Derived::Scalar,
                                    const typename Derived::Scalar>;
  auto& derived = object.derived();
  return MatrixView<Scalar>{derived.data(), derived.rows(), derived.cols(), derived.rowStride(), derived.colStride()};
}

template <class Derived>
[[nodiscard]] auto view_of(const Eigen::DenseBase<Derived>& object) noexcept {
  static_assert((Derived::Flags & Eigen::DirectAccessBit) != 0, "view_of needs an Eigen object that has storage");
  const auto& derived = object.derived();
  return MatrixView<const typename Derived::Scalar>{derived.data(), derived.rows(), derived.cols(), derived.rowStride(),
                                                    derived.colStride()};
}

/// Whether two views may share memory. Compares the address ranges they span.
template <class A, class B>
[[nodiscard]] bool overlap(const MatrixView<A>& a, const MatrixView<B>& b) noexcept {
  if (a.rows == 0 || a.cols == 0 || b.rows == 0 || b.cols == 0) return false;
  const auto begin = [](const auto& v) { return reinterpret_cast<std::uintptr_t>(v.data); };
  const auto end = [](const auto& v) { return reinterpret_cast<std::uintptr_t>(&v(v.rows - 1, v.cols - 1) + 1); };
  return begin(a) < end(b) && begin(b) < end(a);
}

}  // namespace lora
