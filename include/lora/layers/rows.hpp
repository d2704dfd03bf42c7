// SPDX-License-Identifier: MIT
// How the types a layer accepts are read as a matrix of rows, one sample per row.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>

#include "lora/core/error.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/layers/operation.hpp"

namespace lora {

/// Specialise for a type of input or output:
/// - `Scalar`;
/// - `Output`: the output type for such an input;
/// - `with_rows(input, body)`: calls body with the input as MatrixView<const Scalar>, features along columns;
/// - `make_output(input, features)`: an Output with as many samples and `features` features;
/// - `rows(output)`: MatrixView<Scalar> of an output.
template <class Input>
struct RowsOf {
  static_assert(
      sizeof(Input) == 0,
      "lora: this type is no input of a layer; pass an Eigen matrix or vector, a MatrixView of your own memory, "
      "or a row-major Eigen::Tensor");
};

namespace detail {
template <class Derived>
void accepts_dense(const Eigen::DenseBase<Derived>& object);
}

/// An Eigen object of numbers: a matrix, vector, map, block or expression.
template <class Input>
concept EigenDense = !std::is_const_v<Input> && requires(const Input& input) {
  detail::accepts_dense(input);
};

/// Eigen matrices, vectors, maps, blocks and expressions. A vector known at compile time is one sample; any other
/// object is a matrix of rows. Objects with storage are read in place, in any storage order; an expression is evaluated
/// once.
template <EigenDense Input>
struct RowsOf<Input> {
  using Scalar = typename Input::Scalar;
  /// A column vector, which is one sample
  static constexpr bool is_column = Input::ColsAtCompileTime == 1 && Input::RowsAtCompileTime != 1;
  static constexpr bool is_row = Input::RowsAtCompileTime == 1;  ///< a row vector, which is one sample
  static constexpr bool has_storage = (Input::Flags & Eigen::DirectAccessBit) != 0;  ///< its elements are in memory

  /// What a layer returns for this input.
  using Output = std::conditional_t<is_column, Eigen::Matrix<Scalar, Eigen::Dynamic, 1>,
                                    std::conditional_t<is_row, RowVector<Scalar>, Matrix<Scalar>>>;

  /// Calls body(view), where the view has one sample per row.
  template <class Body>
  static void with_rows(const Input& input, const Body& body) {
    if constexpr (has_storage) {
      body(MatrixView<const Scalar>(oriented(view_of(input))));
    } else {
      const typename Input::PlainObject evaluated = input;
      body(MatrixView<const Scalar>(oriented(view_of(evaluated))));
    }
  }

  /// Room for an output of `features` elements per sample.
  [[nodiscard]] static Output make_output(const Input& input, Index features) {
    if constexpr (is_column || is_row) {
      return Output(features);
    } else {
      return Output(input.rows(), features);
    }
  }

  /// The output's memory, one sample per row.
  [[nodiscard]] static MatrixView<Scalar> rows(Input& output) {
    static_assert(has_storage, "lora: an output needs storage of its own");
    static_assert(is_column || is_row || bool(Input::IsRowMajor), "lora: an output matrix is row-major");
    return oriented(view_of(output));
  }

 private:
  template <class T>
  [[nodiscard]] static auto oriented(const MatrixView<T>& view) noexcept {
    return is_column ? view.transpose() : view;
  }
};

/// A view of the caller's own memory: read and written in place. Like a pointer, a view that is itself const may point
/// to memory that is written.
template <class Element>
struct RowsOf<MatrixView<Element>> {
  using Scalar = std::remove_const_t<Element>;
  using Output = Matrix<Scalar>;  ///< what a layer makes where it returns its output

  /// Calls body(view), one sample per row.
  template <class Body>
  static void with_rows(const MatrixView<Element>& input, const Body& body) {
    body(MatrixView<const Scalar>(input));
  }
  /// Room for an output of `features` elements per sample.
  [[nodiscard]] static Output make_output(const MatrixView<Element>& input, Index features) {
    return Output(input.rows, features);
  }
  /// The output's memory, one sample per row.
  [[nodiscard]] static MatrixView<Scalar> rows(const MatrixView<Element>& output) {
    static_assert(!std::is_const_v<Element>, "lora: an output is written; pass a view of memory that is not const");
    return output;
  }
};
template <class Element>
struct RowsOf<const MatrixView<Element>> : RowsOf<MatrixView<Element>> {};

/// Compiles only if the scalars of an input are the layer's.
template <class LayerScalar, class Input>
constexpr void check_input_scalar() {
  static_assert(std::is_same_v<std::remove_const_t<typename RowsOf<Input>::Scalar>, LayerScalar>,
                "lora: the input's scalar type is not the layer's; cast it explicitly");
}

/// Calls body with the rows of `input`, after checking that its scalars are the layer's.
template <class LayerScalar, class Input, class Body>
void with_rows(const Input& input, const Body& body) {
  check_input_scalar<LayerScalar, Input>();
  RowsOf<Input>::with_rows(input, body);
}

/// @throws ShapeError unless `view` is rows x features with contiguous rows.
template <class Scalar>
void require_output(const Operation& operation, std::string_view argument, const MatrixView<Scalar>& view, Index rows,
                    Index features) {
  require_shape(operation, argument, rows, features, view.rows, view.cols);
  if (view.col_stride == 1 || view.cols < 2) return;
  throw ShapeError(operation.text(), argument, "contiguous rows",
                   "an inner stride of " + std::to_string(view.col_stride));
}

/// The rows of `output`, which must be rows x features. @throws ShapeError
template <class LayerScalar, class Output>
[[nodiscard]] MatrixView<LayerScalar> output_rows(const Operation& operation, std::string_view argument, Output& output,
                                                  Index rows, Index features) {
  static_assert(std::is_same_v<typename RowsOf<Output>::Scalar, LayerScalar>,
                "lora: the output's scalar type is not the layer's");
  const MatrixView<LayerScalar> view = RowsOf<Output>::rows(output);
  require_output(operation, argument, view, rows, features);
  return view;
}

}  // namespace lora
