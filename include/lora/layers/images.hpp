// SPDX-License-Identifier: MIT
// How the types a convolution accepts are read as images, one sample per row.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "lora/core/error.hpp"
#include "lora/layers/rows.hpp"

namespace lora {

/// Types that look like Eigen::Tensor or Eigen::TensorMap; layers/tensor.hpp makes layers accept them.
template <class T>
concept TensorLike = !EigenDense<T> && requires(const T& tensor) {
  tensor.data();
  tensor.dimensions()[0];
  T::NumIndices;
  T::Layout;
};

/// The extents of images of `Dim` spatial dimensions.
template <int Dim>
using ImageExtents = std::array<Index, static_cast<std::size_t>(Dim)>;

/// "3 x 2", the extents in order.
template <std::size_t n>
[[nodiscard]] std::string extents_text(const std::array<Index, n>& extents) {
  std::string text = std::to_string(extents[0]);
  for (std::size_t d = 1; d < n; ++d) text = detail::joined({text, " x ", std::to_string(extents[d])});
  return text;
}

namespace detail {

/// The product, capped at the largest Index. Pre: no factor is negative.
template <std::size_t n>
[[nodiscard]] constexpr Index saturated_product(Index factor, const std::array<Index, n>& factors) noexcept {
  constexpr Index most = std::numeric_limits<Index>::max();
  if (factor == 0 || std::find(factors.begin(), factors.end(), 0) != factors.end()) return 0;
  for (const Index f : factors) factor = factor > most / f ? most : factor * f;
  return factor;
}

template <int Dim, class Tensor>
constexpr void check_tensor_type() {
  static_assert(static_cast<int>(Tensor::NumIndices) == Dim + 2,
                "lora: a tensor of images has the dimensions samples, channels and those of the convolution");
  static_assert(static_cast<int>(Tensor::Layout) == static_cast<int>(Eigen::RowMajor),
                "lora: a tensor's layout must be Eigen::RowMajor");
}

}  // namespace detail

/// The spatial extents of a row-major tensor (samples, channels, spatial...).
template <int Dim, TensorLike Tensor>
[[nodiscard]] ImageExtents<Dim> extents_of(const Tensor& tensor) {
  detail::check_tensor_type<Dim, Tensor>();
  ImageExtents<Dim> extents;
  for (std::size_t d = 0; d < extents.size(); ++d) extents[d] = tensor.dimensions()[d + 2];
  return extents;
}

/// The tensor as a matrix: samples rows, (channels * spatial) columns.
template <int Dim, TensorLike Tensor>
[[nodiscard]] auto image_rows(Tensor& tensor) {
  detail::check_tensor_type<Dim, Tensor>();
  using Element = std::remove_pointer_t<decltype(tensor.data())>;
  Index features = 1;
  for (std::size_t d = 1; d < static_cast<std::size_t>(Dim) + 2; ++d) features *= tensor.dimensions()[d];
  return MatrixView<Element>{tensor.data(), tensor.dimensions()[0], features, features, 1};
}

/// @throws ShapeError unless a tensor has these extents; -1 samples accepts any number. A matrix has no extents to
/// check.
template <int Dim, class Input>
void check_images(const Operation& operation, std::string_view argument, const Input& images, Index samples,
                  Index channels, const ImageExtents<Dim>& extents) {
  if constexpr (TensorLike<Input>) {
    detail::check_tensor_type<Dim, Input>();
    std::array<Index, static_cast<std::size_t>(Dim) + 2> expected{};
    std::array<Index, static_cast<std::size_t>(Dim) + 2> got{};
    for (std::size_t d = 0; d < got.size(); ++d) {
      got[d] = images.dimensions()[d];
      expected[d] = d == 0 ? (samples < 0 ? got[0] : samples) : d == 1 ? channels : extents[d - 2];
    }
    if (got != expected) throw ShapeError(operation.text(), argument, extents_text(expected), extents_text(got));
  }
}

/// Calls body with the images as a MatrixView<const Scalar>, one sample per row.
template <class LayerScalar, int Dim, class Input, class Body>
void with_images(const Input& input, const Body& body) {
  if constexpr (TensorLike<Input>) {
    static_assert(std::is_same_v<std::remove_const_t<typename Input::Scalar>, LayerScalar>,
                  "lora: the input's scalar type is not the layer's; cast it explicitly");
    body(MatrixView<const LayerScalar>(image_rows<Dim>(input)));
  } else {
    with_rows<LayerScalar>(input, body);
  }
}

/// Images given as a matrix, one sample per row, with their extents.
template <class Matrix, int Dim>
struct Images {
  const Matrix& rows;         ///< samples x (channels * spatial)
  ImageExtents<Dim> extents;  ///< of one image
};

namespace detail {
template <class T>
inline constexpr bool is_images = false;
template <class Matrix, int Dim>
inline constexpr bool is_images<Images<Matrix, Dim>> = true;
}  // namespace detail

/// An output object for `input`, with room for `samples` images of `channels` and `extents`.
template <int Dim, class Input>
[[nodiscard]] auto make_images(const Input& input, Index samples, Index channels, const ImageExtents<Dim>& extents) {
  if constexpr (TensorLike<Input>) {
    using Output = typename RowsOf<Input>::Output;
    typename Output::Dimensions dimensions;
    dimensions[0] = samples;
    dimensions[1] = channels;
    for (std::size_t d = 0; d < extents.size(); ++d) dimensions[d + 2] = extents[d];
    return Output(dimensions);
  } else {
    return RowsOf<Input>::make_output(input, detail::saturated_product(channels, extents));
  }
}

/// The rows of `output`, which must be samples x (channels * extents). @throws ShapeError
template <class LayerScalar, int Dim, class Output>
[[nodiscard]] MatrixView<LayerScalar> output_images(const Operation& operation, std::string_view argument,
                                                    Output& output, Index samples, Index channels,
                                                    const ImageExtents<Dim>& extents) {
  check_images<Dim>(operation, argument, output, samples, channels, extents);
  if constexpr (TensorLike<Output>) {
    static_assert(std::is_same_v<typename Output::Scalar, LayerScalar>,
                  "lora: the output's scalar type is not the layer's");
    return image_rows<Dim>(output);
  } else {
    return output_rows<LayerScalar>(operation, argument, output, samples, detail::saturated_product(channels, extents));
  }
}

}  // namespace lora
