// A parameter of the user's model that is trained whole or not at all, as a model's registry holds it.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/model/adapter_weights.hpp"

namespace lora {

/// A reference to a Trainable with its name, the shape it has in files, and whether it trains. The Trainable outlives
/// it and does not move. While an adapter replaces the parameter, its former values are kept.
template <RealScalar Scalar>
class ModelParameter {
 public:
  /// @throws ShapeError when `shape` is not empty and has another number of elements
  ModelParameter(std::string name, Trainable<Scalar>& parameter, std::vector<Index> shape)
      : name_(std::move(name)), parameter_(&parameter), shape_(std::move(shape)) {
    const Matrix<Scalar>& value = parameter.value;
    if (shape_.empty()) {
      shape_ = value.rows() == 1 ? std::vector<Index>{value.cols()} : std::vector<Index>{value.rows(), value.cols()};
    }
    Index elements = 1;
    for (const Index extent : shape_) elements *= extent;
    if (elements != value.size()) {
      throw ShapeError("LoraModel::add", name_, "a shape of " + std::to_string(value.size()) + " elements",
                       std::to_string(elements));
    }
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const std::vector<Index>& shape() const noexcept { return shape_; }
  [[nodiscard]] Index size() const noexcept { return parameter_->value.size(); }
  [[nodiscard]] bool trainable() const noexcept { return trainable_; }
  void set_trainable(bool trainable) noexcept { trainable_ = trainable; }
  void zero_grad() noexcept { parameter_->gradient.setZero(); }
  [[nodiscard]] Parameter<Scalar> handle() { return parameter_->parameter(name_, ParameterRole::weight); }

  /// Whether an adapter has replaced the values.
  [[nodiscard]] bool replaced() const noexcept { return replaced_; }
  /// Keeps the values, which an adapter is about to change.
  void replace() {
    original_ = parameter_->value;
    replaced_ = true;
  }
  /// Gives the values back that replace() kept, if it did.
  void restore() noexcept {
    if (replaced_) parameter_->value.swap(original_);
    keep();
  }
  /// Forgets the values that replace() kept: those of now stay.
  void keep() noexcept {
    original_.resize(0, 0);
    replaced_ = false;
  }

  /// The values of now. A copy.
  [[nodiscard]] SavedTensor<Scalar> saved() const {
    const Scalar* first = parameter_->value.data();
    return {shape_, {first, first + size()}};
  }
  /// `values` has size() elements.
  void set(const std::vector<Scalar>& values) noexcept {
    std::copy(values.begin(), values.end(), parameter_->value.data());
  }

 private:
  std::string name_;
  Trainable<Scalar>* parameter_;
  std::vector<Index> shape_;
  Matrix<Scalar> original_;
  bool replaced_ = false;
  bool trainable_ = true;
};

}  // namespace lora
