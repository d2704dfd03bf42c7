// SPDX-License-Identifier: MIT
// A parameter of the user's model, trained whole or not at all, as a model's registry holds it.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

/// A reference to a Trainable with its name, its shape in files, and whether it trains. The Trainable must outlive it
/// and must not move. An adapter that trains it has its own values, gradient and moments, which are in the Trainable
/// while the adapter is active.
template <RealScalar Scalar>
class ModelParameter {
 public:
  /// @throws ShapeError when `shape` is not empty and has a different number of elements
  ModelParameter(std::string name, Trainable<Scalar>& parameter, std::vector<Index> shape)
      : name_(std::move(name)), parameter_(&parameter), shape_(std::move(shape)) {
    const Matrix<Scalar>& value = parameter.value;
    if (shape_.empty()) {
      shape_ = value.rows() == 1 ? std::vector<Index>{value.cols()} : std::vector<Index>{value.rows(), value.cols()};
    }
    if (!holds(value.size())) {
      throw ShapeError("LoraModel::add", name_, "a shape of " + std::to_string(value.size()) + " elements",
                       extents_text());
    }
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const std::vector<Index>& shape() const noexcept { return shape_; }
  [[nodiscard]] Index size() const noexcept { return parameter_->value.size(); }
  [[nodiscard]] bool trainable() const noexcept { return trainable_; }
  void set_trainable(bool trainable) noexcept { trainable_ = trainable; }
  void zero_grad() noexcept { zero_grad(*parameter_); }
  static void zero_grad(Trainable<Scalar>& trainable) noexcept {
    std::fill_n(trainable.gradient.data(), trainable.gradient.size(), Scalar(0));
  }
  [[nodiscard]] Parameter<Scalar> handle() {
    return parameter_->parameter(name_, shape_.size() == 1 ? ParameterRole::bias : ParameterRole::weight);
  }

  /// What an adapter starts with: the current values, without gradient and moments. @throws std::bad_alloc
  [[nodiscard]] Trainable<Scalar> copy() const { return {parameter_->value, {}, {}}; }
  /// Exchanges the contents of the user's Trainable with `other`, of the same shape.
  void swap(Trainable<Scalar>& other) noexcept { std::swap(*parameter_, other); }
  /// The tensor in files for a Trainable of this parameter. A copy.
  [[nodiscard]] SavedTensor<Scalar> saved(const Trainable<Scalar>& values) const {
    return {shape_, {values.value.data(), values.value.data() + values.value.size()}};
  }
  [[nodiscard]] const Trainable<Scalar>& current() const noexcept { return *parameter_; }

 private:
  // Whether a tensor of this shape has so many elements.
  [[nodiscard]] bool holds(Index size) const noexcept {
    Index elements = 1;
    for (const Index extent : shape_) {
      if (extent < 0 || (extent > 0 && elements > std::numeric_limits<Index>::max() / extent)) return false;
      elements *= extent;
    }
    return elements == size;
  }

  [[nodiscard]] std::string extents_text() const {
    std::string text;
    for (const Index extent : shape_) text.append(text.empty() ? "" : " x ").append(std::to_string(extent));
    return text;
  }

  std::string name_;
  Trainable<Scalar>* parameter_;
  std::vector<Index> shape_;
  bool trainable_ = true;
};

}  // namespace lora
