// SPDX-License-Identifier: MIT
// Row-major Eigen tensors of any rank as inputs and outputs of layers: the last dimension is features.
//
// Eigen's tensors cost more to compile than all of this library, so this header only declares them. To pass one,
// include <unsupported/Eigen/CXX11/Tensor>.
#pragma once

#include <cstddef>
#include <type_traits>

#include "lora/layers/rows.hpp"

namespace Eigen {
template <typename Scalar_, int NumIndices_, int Options_, typename IndexType>
class Tensor;
template <typename PlainObjectType, int Options_, template <class> class MakePointer_>
class TensorMap;
}  // namespace Eigen

namespace lora {

namespace detail {

/// Eigen::Tensor and Eigen::TensorMap, which differ only in who owns the memory.
template <class Input, class ScalarType, int rank, int options, class IndexType>
struct RowsOfTensor {
  static_assert((options & Eigen::RowMajor) != 0, "lora: a tensor's layout must be Eigen::RowMajor");
  static_assert(rank >= 1, "lora: a tensor needs a dimension of features");
  using Scalar = std::remove_const_t<ScalarType>;
  using Output = Eigen::Tensor<Scalar, rank, Eigen::RowMajor, Eigen::DenseIndex>;

  template <class Body>
  static void with_rows(const Input& input, const Body& body) {
    body(view<const Scalar>(input.data(), input));
  }

  [[nodiscard]] static Output make_output(const Input& input, Index features) {
    typename Output::Dimensions extents;
    for (int i = 0; i + 1 < rank; ++i)
      extents[static_cast<std::size_t>(i)] = input.dimensions()[static_cast<std::size_t>(i)];
    extents[rank - 1] = features;
    return Output(extents);
  }

  [[nodiscard]] static MatrixView<Scalar> rows(Input& output) { return view<Scalar>(output.data(), output); }

 private:
  template <class T, class Tensor>
  [[nodiscard]] static MatrixView<T> view(T* data, const Tensor& tensor) {
    Index rows = 1;
    for (int i = 0; i + 1 < rank; ++i) rows *= tensor.dimensions()[static_cast<std::size_t>(i)];
    const Index features = tensor.dimensions()[rank - 1];
    return {data, rows, features, features, 1};
  }
};

}  // namespace detail

/// Read in place, as (product of the leading dimensions) rows.
template <class Scalar, int rank, int options, class IndexType>
struct RowsOf<Eigen::Tensor<Scalar, rank, options, IndexType>>
    : detail::RowsOfTensor<Eigen::Tensor<Scalar, rank, options, IndexType>, Scalar, rank, options, IndexType> {};

template <class Scalar, int rank, int options, class IndexType, int map_options, template <class> class Pointer>
struct RowsOf<Eigen::TensorMap<Eigen::Tensor<Scalar, rank, options, IndexType>, map_options, Pointer>>
    : detail::RowsOfTensor<Eigen::TensorMap<Eigen::Tensor<Scalar, rank, options, IndexType>, map_options, Pointer>,
                           Scalar, rank, options, IndexType> {};

template <class Scalar, int rank, int options, class IndexType, int map_options, template <class> class Pointer>
struct RowsOf<Eigen::TensorMap<const Eigen::Tensor<Scalar, rank, options, IndexType>, map_options, Pointer>>
    : detail::RowsOfTensor<
          Eigen::TensorMap<const Eigen::Tensor<Scalar, rank, options, IndexType>, map_options, Pointer>, Scalar, rank,
          options, IndexType> {};

}  // namespace lora
