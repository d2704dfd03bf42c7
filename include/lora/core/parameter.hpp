// SPDX-License-Identifier: MIT
// A trainable tensor with its gradient and its optimiser's state, and the handle that optimisers work on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/claim.hpp"
#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// What a parameter is for. The role, never the name, decides whether it trains and at which rate.
enum class ParameterRole : std::uint8_t {
  lora_A,     ///< the first factor
  lora_B,     ///< the second one
  lora_bias,  ///< of B
  magnitude,  ///< of DoRA
  bias,       ///< a layer's, or another tensor of one dimension that trains whole
  weight      ///< a tensor of more dimensions that trains whole
};

/// What an optimiser remembers about one parameter. It is stored with the parameter, so it is copied and moved with the
/// layer, and exists only for what trains.
template <class Scalar>
struct Moments {
  std::string_view owner;      ///< name of the optimiser that filled it; empty before the first step
  std::int64_t steps = 0;      ///< updates applied to this parameter
  std::vector<Scalar> first;   ///< momentum, or first moment
  std::vector<Scalar> second;  ///< second moment
  /// Factor on the optimiser's learning rate for this parameter (LoRA+). A setting, not history: `forget` keeps it.
  double learning_rate_scale = 1.0;

  /// Forgets all steps and frees the memory; the next step is a first step, and any optimiser may take it.
  void forget() noexcept {
    owner = {};
    steps = 0;
    std::vector<Scalar>().swap(first);
    std::vector<Scalar>().swap(second);
  }

  /// Bytes of state held for this parameter.
  [[nodiscard]] std::size_t bytes() const noexcept { return (first.size() + second.size()) * sizeof(Scalar); }
};

/// Handle on one trainable tensor. Valid until the object that returned it is moved or destroyed.
/// Reading and writing through handles of different parameters is safe from different threads.
template <class Scalar_>
class Parameter {
 public:
  using Scalar = Scalar_;
  /// The tensor as an Eigen matrix over its own memory.
  using Map = Eigen::Map<Matrix<Scalar>>;

  Parameter() = default;
  /// `gradient` has `rows * cols` scalars, like `value`. `locked`, if given, is true while the value must not change.
  Parameter(std::string name, ParameterRole role, Scalar* value, Scalar* gradient, Index rows, Index cols,
            Moments<Scalar>& moments, const bool* locked = nullptr)
      : name_(std::move(name)),
        role_(role),
        value_(value),
        gradient_(gradient),
        rows_(rows),
        cols_(cols),
        moments_(&moments),
        locked_(locked) {}

  /// "lora_A.weight", "layers.0.q_proj.lora_A.weight", ...
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Changes the name of this handle alone.
  void rename(std::string name) { name_ = std::move(name); }
  /// What the tensor is for.
  [[nodiscard]] ParameterRole role() const noexcept { return role_; }
  /// Rows of the tensor.
  [[nodiscard]] Index rows() const noexcept { return rows_; }
  /// Columns of the tensor.
  [[nodiscard]] Index cols() const noexcept { return cols_; }
  /// Scalars of the tensor.
  [[nodiscard]] Index size() const noexcept { return rows_ * cols_; }

  /// The value, to read and write. @throws StateError while the layer is merged.
  [[nodiscard]] Map value() const {
    require_unlocked("Parameter::value");
    return {value_, rows_, cols_};
  }
  /// The gradient, to read and write, of the same shape.
  [[nodiscard]] Map gradient() const noexcept { return {gradient_, rows_, cols_}; }
  /// What the optimiser remembers about it. Pre: the handle is not a default-constructed one.
  [[nodiscard]] Moments<Scalar>& moments() const noexcept { return *moments_; }

  /// Factor on the optimiser's learning rate for this parameter. It is stored with the value, so every handle on the
  /// parameter shares it and copies of the layer inherit it.
  [[nodiscard]] double learning_rate_scale() const noexcept {
    return moments_ != nullptr ? moments_->learning_rate_scale : 1.0;
  }
  /// Checked when an optimiser steps.
  void set_learning_rate_scale(double scale) const noexcept {
    if (moments_ != nullptr) moments_->learning_rate_scale = scale;
  }

  /// @throws StateError while the value must not change.
  void require_unlocked(std::string_view operation) const {
    if (locked_ != nullptr && *locked_) {
      throw StateError(operation, name_, "an unmerged layer (call train() or unmerge() first)", "a merged one");
    }
  }

 private:
  std::string name_;
  ParameterRole role_ = ParameterRole::weight;
  Scalar* value_ = nullptr;
  Scalar* gradient_ = nullptr;
  Index rows_ = 0;
  Index cols_ = 0;
  Moments<Scalar>* moments_ = nullptr;
  const bool* locked_ = nullptr;
};

/// A trainable tensor that owns its value. Memory for the gradient is allocated at its first use.
template <class Scalar>
struct Trainable {
  Matrix<Scalar> value;     ///< what trains
  Matrix<Scalar> gradient;  ///< of the same shape once ensure_gradient() was called
  Moments<Scalar> moments;  ///< the optimiser's
  Claim claim{};            ///< of a model it was added to

  /// Gives the gradient the shape of the value, filled with zeros, unless it already has that shape.
  void ensure_gradient() {
    if (gradient.rows() != value.rows() || gradient.cols() != value.cols()) {
      gradient = Matrix<Scalar>::Zero(value.rows(), value.cols());
    }
  }

  /// A handle for an optimiser. Valid until this object is moved or destroyed.
  [[nodiscard]] Parameter<Scalar> parameter(std::string name, ParameterRole role, const bool* locked = nullptr) {
    ensure_gradient();
    return {std::move(name), role, value.data(), gradient.data(), value.rows(), value.cols(), moments, locked};
  }
};

}  // namespace lora
