// The frozen part of a linear layer: weight, bias, and the orientation in which the caller stores the weight.
#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "lora/core/shape.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// W (out_features x in_features whatever the caller's orientation) and bias. A value; `operation` names whoever
/// constructs it in errors.
template <RealScalar Scalar, FrozenWeight Weight>
struct FrozenLinear {
  Weight weight;
  RowVector<Scalar> bias;  ///< out_features, or empty
  bool fan_in_fan_out;     ///< the caller stores W in_features x out_features

  /// @throws ShapeError when the weight is empty.
  FrozenLinear(std::string_view operation, Weight w, bool transposed)
      : weight(std::move(w)), fan_in_fan_out(transposed) {
    if (out_features() < 1 || in_features() < 1) {
      throw ShapeError(operation, "weight", "at least 1 x 1", shape_text(out_features(), in_features()));
    }
  }

  /// @throws ShapeError also when the bias is no vector of out_features.
  template <class B>
  FrozenLinear(std::string_view operation, Weight w, const Eigen::DenseBase<B>& b, bool transposed)
      : FrozenLinear(operation, std::move(w), transposed) {
    set_bias(operation, b);
  }

  /// @throws ShapeError unless the bias is a vector of out_features; then nothing has changed
  template <class B>
  void set_bias(std::string_view operation, const Eigen::DenseBase<B>& b) {
    static_assert(B::IsVectorAtCompileTime, "lora: the bias is a vector");
    static_assert(std::is_same_v<typename B::Scalar, Scalar>, "lora: the bias' scalar type is not the layer's");
    if (b.size() != out_features()) {
      throw ShapeError(operation, "bias", std::to_string(out_features()) + " elements", std::to_string(b.size()));
    }
    bias.resize(b.size());
    for (Index j = 0; j < b.size(); ++j) bias[j] = b.derived().coeff(j);
  }

  [[nodiscard]] Index in_features() const noexcept { return weight.in_features(); }
  [[nodiscard]] Index out_features() const noexcept { return weight.out_features(); }

  /// A weight of an Eigen matrix, map, block or expression that the caller stores in that orientation.
  template <class W>
  [[nodiscard]] static Weight weight_from(const Eigen::DenseBase<W>& w0, bool transposed) {
    static_assert(std::is_same_v<typename W::Scalar, Scalar>, "lora: the weight's scalar type is not the layer's");
    if constexpr ((W::Flags & Eigen::DirectAccessBit) != 0) {
      const auto view = view_of(w0);
      return Weight(transposed ? view.transpose() : view);
    } else {
      static_assert(std::is_copy_constructible_v<Weight>, "lora: a weight that views memory cannot view an expression");
      const typename W::PlainObject evaluated = w0.derived();
      const MatrixView<const Scalar> view = view_of(evaluated);
      return Weight(transposed ? view.transpose() : view);
    }
  }

  /// What write(view) puts into an out_features x in_features view, as the caller would store it.
  template <class Write>
  [[nodiscard]] Matrix<Scalar> oriented(const Write& write) const {
    Matrix<Scalar> result(fan_in_fan_out ? in_features() : out_features(),
                          fan_in_fan_out ? out_features() : in_features());
    write(fan_in_fan_out ? view_of(result).transpose() : view_of(result));
    return result;
  }
};

}  // namespace lora
